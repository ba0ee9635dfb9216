"""Every Python block of the documentation runs, and every relative link and named file exists."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if page.exists()
]
BY_NAME = {str(page.relative_to(ROOT)): page for page in PAGES}

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
EXCLUDED = re.compile(r"<!-- not executed: \S.*-->\s*\Z")
LINK = re.compile(r"\]\(([^()\s]+)\)")
NAMED_FILE = re.compile(r"`((?:src|tests|docs|examples|benchmarks)/[\w./-]+)`")


def blocks(text: str) -> list[tuple[int, str]]:
    """(line, source) of every Python block that is to run."""
    found = []
    for match in FENCE.finditer(text):
        if match[1] == "python" and not EXCLUDED.search(text[: match.start()]):
            found.append((text[: match.start(2)].count("\n"), match[2]))
    return found


def anchors(text: str) -> set[str]:
    """GitHub's names of the headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run(name: str) -> dict[str, object]:
    """Runs the blocks of a page in one namespace; tracebacks name the page's own lines."""
    namespace: dict[str, object] = {"__name__": "page"}
    for line, source in blocks(BY_NAME[name].read_text()):
        exec(compile("\n" * line + source, str(BY_NAME[name]), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", [name for name, page in BY_NAME.items() if blocks(page.read_text())])
def test_python_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run(name)


@pytest.mark.parametrize("name", BY_NAME)
def test_relative_links_lead_somewhere(name):
    page = BY_NAME[name]
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert not broken, f"{name}: broken links {broken}"


@pytest.mark.parametrize("name", BY_NAME)
def test_named_files_exist(name):
    missing = [path for path in NAMED_FILE.findall(BY_NAME[name].read_text()) if not (ROOT / path).exists()]
    assert not missing, f"{name}: names files that do not exist: {missing}"


def test_a_block_is_excluded_only_by_its_comment():
    text = (
        "```python\na\n```\n<!-- not executed: needs a GPU -->\n```python\nb\n```\n<!-- note -->\n```python\nc\n```\n"
    )
    assert [source for _, source in blocks(text)] == ["a\n", "c\n"]
    assert [line for line, _ in blocks(text)] == [1, 9]
