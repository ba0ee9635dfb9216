"""The analysis of a run in words: a table of its numbers, what they mean, and what to try."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from straightvq.analysis.quantities import QUANTITIES, concerns


def report_page(result: Mapping[str, Any]) -> str:
    """One page of Markdown from what ``analysis.json`` holds."""
    checkpoints, settings, quantizer = result["checkpoints"], result["settings"], result["quantizer"]
    # The first, the best and the last; a table of all would not fit on a page.
    shown = [c for c in checkpoints if c in (checkpoints[0], checkpoints[-1]) or "best" in c["names"]]
    rows = [
        [q.label, *(format_number(c["values"].get(q.name)) for c in shown), q.meaning]
        for q in QUANTITIES
        if any(q.name in c["values"] for c in shown)
    ]
    hint = f"{result['hint']}\n\n" if result["hint"] else ""
    return f"""\
# Analysis of {result["run"]}

straightvq {result["versions"]["straightvq"]}, torch {result["versions"]["torch"]}, {result["date"]}. \
{quantizer["name"]}: {quantizer["codebook_size"]:,} codes of {quantizer["codebook_dim"]} channels. \
Measured in evaluation mode on {settings["images"]:,} test examples ({settings["vectors"]:,} vectors), \
seed {settings["seed"]}, device {settings["device"]}.

{hint}## At the end

{_advice(checkpoints[-1]["values"], quantizer["codebook_size"], result["cures"])}

## Numbers

{markdown_table(["quantity", *map(_column, shown), "what it is"], rows)}

Gradients, the step and its delay are measured on the first batch. The step is the next one that training would have \
taken, with the same data, optimizer state and learning rate. All numbers of all checkpoints are in `analysis.json`; \
docs/analysis.md says what each quantity means.

## Pictures

![embeddings and codes along the first component](divergence.png)

![embeddings and codes as neighbours](tsne.png)

![all quantities over training](curves.png)
"""


def _advice(values: Mapping[str, float], size: int, cures: Sequence[str]) -> str:
    bad = concerns(values, size)
    if not bad:
        return "Nothing stands out: every number below is in its normal range."
    lines = [f"- **{quantity.label} {format_number(values[quantity.name])}**: {cure}." for quantity, cure in bad]
    if cures and any("docs/collapse.md" in cure for _, cure in bad):
        lines += ["", "Cures of a collapse that this quantizer does not have yet, best evidence first:", ""]
        lines += [f"{number}. {cure}" for number, cure in enumerate(cures, 1)]
    return "\n".join(lines)


def _column(checkpoint: Mapping[str, Any]) -> str:
    # The name of a checkpoint that was kept only repeats the step.
    names = ", ".join(name for name in checkpoint["names"] if not name.startswith("step"))
    return f"step {checkpoint['step']:,}" + (f" ({names})" if names else "")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is flush left and so is one called "what it is"; the others hold numbers."""
    rules = ["---" if place == 0 or name == "what it is" else "---:" for place, name in enumerate(header)]
    first, *others = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return "\n".join([first, f"|{'|'.join(rules)}|", *others])


def format_number(value: float | None) -> str:
    """Three significant digits; nothing where there is no number.

    Example:
        >>> format_number(0.012345), format_number(326.0), format_number(0.00012), format_number(None)
        ('0.0123', '326', '0.00012', '')
    """
    if value is None or math.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
