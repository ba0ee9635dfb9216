"""The sources of the documentation site are complete, and docstrings become the markup that it needs."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from contents import RESULTS, ROOT, docnames, reports, sections, toctree
from docstrings import fields, first_sentence

import straightvq

REFERENCE = ROOT / "docs" / "reference"
OBJECTS = re.compile(r"^\.\. objects:: (\S+)\n\n((?: +\S+\n)+)", re.MULTILINE)
DATA = re.compile(r"^\.\. py:data:: (\S+)\.(\w+)$", re.MULTILINE)
TOCTREE = re.compile(r"^\.\. toctree::\n(?: +:\w+:\n)*\n((?: +\S+\n)+)", re.MULTILINE)


def listed() -> list[str]:
    """The entries of all toctrees."""
    index = (ROOT / "docs" / "index.md").read_text()
    nested = [
        (file.parent / name).relative_to(ROOT).as_posix()
        for file in sorted(REFERENCE.glob("*.rst"))
        for block in TOCTREE.findall(file.read_text())
        for name in block.split()
    ]
    return [page for pages in sections(index).values() for page in pages] + list(reports()) + nested


def documented() -> list[tuple[str, str]]:
    """(module, name) of every entry of the reference."""
    texts = [file.read_text() for file in sorted(REFERENCE.glob("*.rst"))]
    objects = [(module, name) for text in texts for module, names in OBJECTS.findall(text) for name in names.split()]
    return objects + [found for text in texts for found in DATA.findall(text)]


def rooms() -> list[str]:
    """The packages with public names, and the module of errors."""
    packages = [info.name for info in pkgutil.iter_modules(straightvq.__path__, "straightvq.") if info.ispkg]
    return ["straightvq", "straightvq.errors", *packages]


def test_every_page_stands_in_one_toctree_once() -> None:
    pages = [*docnames("docs/**/*.md"), *docnames("docs/**/*.rst"), *reports(), "CHANGELOG", "CONTRIBUTING"]
    assert sorted(listed()) == sorted(set(pages) - {"docs/index"})
    assert RESULTS in pages  # the reports hang on it


def test_index_keeps_the_order_of_the_site() -> None:
    table = "| page | about |\n|---|---|\n| [concepts](concepts.md) | a |\n| [x](../CHANGELOG.md) | b |\n"
    index = f"# t\n\n## Guides\n\n{table}\n## Coming from another library\n"
    assert list(sections(index)["Guides"].items()) == [
        ("docs/concepts", "Concepts"), ("CHANGELOG", "X"),
    ]  # fmt: skip
    assert toctree({"docs/a": "A b", "docs/c": ""}, "Guides").strip() == (
        "```{toctree}\n:caption: Guides\n:hidden:\n\nA b </docs/a>\n/docs/c\n```"
    )


@pytest.mark.parametrize("room", rooms())
def test_every_public_name_is_in_the_reference(room: str) -> None:
    known = {id(getattr(importlib.import_module(module), name)) for module, name in documented()}
    module = importlib.import_module(room)
    names = getattr(module, "__all__", [name for name in vars(module) if name.endswith("Error")])
    public = {name: getattr(module, name) for name in names}
    modules = {name for name, thing in public.items() if type(thing) is type(pkgutil)}
    assert sorted(name for name in public.keys() - modules if id(public[name]) not in known) == []


def test_reference_names_what_is_public_and_only_once() -> None:
    entries = documented()
    assert len(set(entries)) == len(entries) == len({id(getattr(importlib.import_module(m), n)) for m, n in entries})
    private = [(m, n) for m, n in entries if n not in getattr(importlib.import_module(m), "__all__", [n])]
    assert private == []


def test_sections_on_the_line_of_their_label_become_fields() -> None:
    assert fields(
        ["Source: a paper, and", "its code.", "", "Raises: ValueError if wrong.", "Example:", "    >>> 1"]
    ) == (
        ["", ":Source: a paper, and", "    its code.", "", "", ":Raises: ValueError if wrong.", "Example:", "    >>> 1"]
    )


def test_shapes_become_a_list_of_code() -> None:
    assert fields(["Shape:", "    z: Float (*batch, dim), of any", "    rank; of Int64 (*batch).", "", "Args:"]) == (
        [
            "",
            ":Shape:",
            "    * **z**: ``Float (*batch, dim)``, of any",
            "      rank; of ``Int64 (*batch)``.",
            "",
            "Args:",
        ]
    )


def test_stars_of_shapes_are_no_emphasis() -> None:
    lines = ["(*batch, n) is *one* of ``(*batch)``", ">>> f(*a)"]
    assert fields(lines) == ["(\\*batch, n) is *one* of ``(*batch)``", ">>> f(*a)"]


def test_shapes_within_code_are_left_alone() -> None:
    line = "``{'image': Float (B, C)}`` of"
    assert fields([line, "Bool (B,)"]) == [line, "``Bool (B,)``"]


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One thing.\n\nMore.", "One thing."),
        ("One\nthing. And\nmore.", "One thing. And more."),
        ("The equation::\n\n    x", "The equation."),
        ("", ""),
    ],
)
def test_first_sentence_of_a_docstring(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


def test_pages_stay_plain_markdown() -> None:
    plain = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    marked: list[Path] = [
        page for page in plain if re.search(r"^(```+|:::+)\{|^\(\w+\)=$", page.read_text(), re.MULTILINE)
    ]
    assert marked == []


def test_gallery_shows_every_picture_of_the_repository() -> None:
    page = ROOT / "docs" / "gallery.md"
    shown = [(page.parent / path).resolve() for path in re.findall(r"!\[[^\]]+\]\(([^()]+)\)", page.read_text())]
    drawn = [file for folder in ("docs", "benchmarks/results") for file in (ROOT / folder).rglob("*.*g")]
    assert sorted(shown) == sorted(file for file in drawn if file.suffix in (".png", ".svg"))
