"""Sphinx's configuration for ``make docs``, which builds from the repository's root: links work as they do there."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

from straightvq import __version__

sys.path.insert(0, str(Path(__file__).parent / "site"))

from contents import RESULTS, reports, sections, toctree

project = "straightvq"
author = "The straightvq developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "api",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/**.rst", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/results/**.md"]
exclude_patterns = [".*", "build", "dist", "runs", "studies", "src", "tests"]
default_role = "py:obj"
rst_prolog = ".. currentmodule:: straightvq"
myst_heading_anchors = 4
smartquotes_action = "D"  # dashes only: quoted values are typed as they stand

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"straightvq {version}"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_extra_path = ["site/root"]
html_copy_source = False
html_show_sphinx = False


def add_toctrees(app: Sphinx, name: str, source: list[str]) -> None:
    """The pages are plain Markdown; their order is that of the index."""
    if name == root_doc:
        source[0] += "".join(toctree(pages, title) for title, pages in sections(source[0]).items())
    if name == RESULTS:
        source[0] += toctree(reports())


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_toctrees)
