"""Sphinx's extension for the API reference: the directive ``objects``, and the sections of our docstrings."""

import importlib
import inspect
from typing import Any

from docstrings import fields, first_sentence
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxDirective


def directive_of(thing: object) -> str:
    """Autodoc's directive for an object."""
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    return "autofunction"


class Objects(SphinxDirective):
    """A table of public names with their first sentences, then the documentation of each.

    Takes the module, and one name of it a line.
    """

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        lines = [".. list-table::", "   :class: objects", ""]
        details: list[str] = []
        for name in filter(None, map(str.strip, self.content)):
            thing, path = getattr(module, name), f"{module.__name__}.{name}"
            lines += [f"   * - :py:obj:`{name} <{path}>`", f"     - {first_sentence(inspect.getdoc(thing) or '')}"]
            details += ["", f".. {directive_of(thing)}:: {path}"]
        return self.parse_text_to_nodes("\n".join([*lines, *details, ""]))


def write_fields(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = fields(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("objects", Objects)
    app.connect("autodoc-process-docstring", write_fields, priority=400)  # napoleon, at 500, reads the rest
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}
