"""The order of the site's pages, read from ``docs/index.md``: one section a heading, one page a row of its table."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEADING = re.compile(r"## (.+)")
ROW = re.compile(r"\| \[([^\]]+)\]\(([^()\s#]+)\.(?:md|rst)\) \|")

COMING = "Coming from another library"  # its section takes all pages of that name, with or without a row
RESULTS = "docs/results"  # the page under which the reports stand


def docnames(pattern: str) -> list[str]:
    """Pages by the names that Sphinx gives them: paths from the root, without suffix."""
    return [file.relative_to(ROOT).with_suffix("").as_posix() for file in sorted(ROOT.glob(pattern))]


def sections(index: str) -> dict[str, dict[str, str]]:
    """The pages of every section in order, each with its short title; "" stands for the title on the page.

    Args:
        index: the text of ``docs/index.md``.
    """
    found: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in index.splitlines():
        if heading := HEADING.match(line):
            section = found.setdefault(heading[1], {})
        if row := ROW.match(line):
            page = (ROOT / "docs" / row[2]).resolve().relative_to(ROOT).as_posix()
            section[page] = row[1][0].upper() + row[1][1:]
    for page in docnames("docs/coming_from_*.md"):
        found[COMING].setdefault(page, "")
    return {title: pages for title, pages in found.items() if pages}


def reports() -> dict[str, str]:
    """The reports of studies and benchmarks, which no row lists."""
    return dict.fromkeys(docnames("benchmarks/results/**/*.md"), "")


def toctree(pages: dict[str, str], caption: str = "") -> str:
    """A hidden toctree in Markdown, for the end of a page."""
    entries = [f"{title} </{page}>" if title else f"/{page}" for page, title in pages.items()]
    title = [f":caption: {caption}"] if caption else []
    return "\n".join(["", "", "```{toctree}", *title, ":hidden:", "", *entries, "```", ""])
