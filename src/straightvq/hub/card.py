"""The page that goes with a saved module: what it is, what was measured, how to use it."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from straightvq.version import __version__


@dataclass(frozen=True)
class Notes:
    """What only the person who saves a module knows.

    Attributes:
        name: what the page is called; ``owner/name`` where it goes to the Hub.
        about: sentences for its top, such as how the module was trained.
        metrics: measured numbers by name.
        measured_on: of what they are, such as "the test set".
        picture: a file to be shown; it is copied beside the page.
    """

    name: str
    about: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""
    picture: Path | None = None


def card(module: nn.Module, notes: Notes) -> str:
    """The page in Markdown, with the header that the Hub reads."""
    parts = [_HEADER, f"# {notes.name.rpartition('/')[2]}", _ABOUT.format(type(module).__name__)]
    parts += [notes.about] if notes.about else []
    parts += [_table(["quantizer", "codes", "width", "bits per vector"], [_facts(each) for each in quantizers(module)])]
    if notes.metrics:
        rows = [[name, f"{value:.4g}"] for name, value in notes.metrics.items()]
        parts += [f"Measured on {notes.measured_on}:", _table(["measure", "value"], rows)]
    if notes.picture is not None:
        parts += [f"![]({notes.picture.name})"]
    parts += ["## Use", _usage(module, notes.name), "## Parts", f"```\n{_parts(module)}\n```"]
    return "\n\n".join([*parts, f"Written by straightvq {__version__}."]) + "\n"


_HEADER = "---\nlibrary_name: straightvq\ntags:\n- straightvq\n- vector-quantization\n---"
_ABOUT = "A `{}` of the Python package `straightvq`, vector-quantized layers that train."


def quantizers(module: nn.Module) -> list[Any]:
    """The outermost quantizers of a module, itself if it is one."""

    def walk(inside: nn.Module) -> Iterator[Any]:
        if hasattr(inside, "codebook_sizes"):
            yield inside
            return
        for child in inside.children():
            yield from walk(child)

    return list(walk(module))


def _facts(quantizer: Any) -> list[str]:
    sizes = quantizer.codebook_sizes
    codes = f"{sizes[0]:,}" if len(set(sizes)) == 1 else ", ".join(f"{size:,}" for size in sizes)
    levels = f"{len(sizes)} x " if len(sizes) > 1 and len(set(sizes)) == 1 else ""
    bits = sum(math.log2(size) for size in sizes)
    return [f"`{type(quantizer).__name__}`", f"{levels}{codes}", str(quantizer.dim), f"{bits:.4g}"]


def _table(header: list[str], rows: list[list[str]]) -> str:
    rules = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rules, *rows])


def _parts(module: nn.Module) -> str:
    """What the quantizers are made of."""
    return "\n".join(map(repr, quantizers(module)))


def _usage(module: nn.Module, name: str) -> str:
    lines = ["import torch", "import straightvq as svq", ""]
    if hasattr(module, "codebook_sizes"):
        shape = [2, module.dim, 8, 8] if module.channel_dim == 1 else [2, 8, module.dim]
        lines += [
            f"layer = svq.from_pretrained({json.dumps(name)})",
            f"z = torch.randn({', '.join(map(str, shape))})  # your embeddings",
            "indices = layer.encode(z)",
            "quantized = layer.decode(indices)",
            "out = layer.train()(z)  # out.quantized, out.indices, out.loss: training goes on",
        ]
    else:
        lines += [f"model = svq.from_pretrained({json.dumps(name)})"]
        if hasattr(module, "tokenize"):
            lines += ["indices = model.tokenize(x)  # your data in a batch", "again = model.detokenize(indices)"]
        else:
            lines += ["out = model(x)  # your data in a batch"]
    return "\n".join(["```python", *lines, "```"])
