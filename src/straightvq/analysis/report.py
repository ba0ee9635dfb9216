"""The analysis of a run in words: a table of its numbers, what they mean, and what to try."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from straightvq.analysis.quantities import LEARNING_RATE, QUANTITIES, concerns


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
    parts = quantizer.get("parts", {})
    hint = f"{result['hint']}\n\n" if result["hint"] else ""
    return f"""\
# Analysis of {result["run"]}

straightvq {result["versions"]["straightvq"]}, torch {result["versions"]["torch"]}, {result["date"]}. \
{_sizes(quantizer)}. \
Measured in evaluation mode on {settings["images"]:,} test examples ({settings["vectors"]:,} vectors), \
seed {settings["seed"]}, device {settings["device"]}.

{hint}## At the end

{_advice(result)}

## Numbers

{markdown_table(["quantity", *map(_column, shown), "what it is"], rows)}

{_parts_table(checkpoints[-1]["parts"], parts) if parts else ""}\
Gradients, the step and its delay are measured on the first batch. The step is the next one that training would have \
taken, with the same data, optimizer state and learning rate. All numbers of all checkpoints are in `analysis.json`; \
docs/analysis.md says what each quantity means.{_missing(quantizer)}

## Pictures

![embeddings and codes along the first component](divergence.png)

![embeddings and codes as neighbours](tsne.png)

![all quantities over training](curves.png)
"""


def _sizes(quantizer: Mapping[str, Any]) -> str:
    if "parts" in quantizer:
        return f"{quantizer['name']}: {quantizer['num_quantizers']} codes for each vector"
    return f"{quantizer['name']}: {quantizer['codebook_size']:,} codes of {quantizer['codebook_dim']} channels"


def _missing(quantizer: Mapping[str, Any]) -> str:
    """What is not measured without a codebook."""
    told = quantizer.get("parts", {"": quantizer})
    names = list(dict.fromkeys(part["name"] for part in told.values() if not part["has_codebook"]))
    if not names:
        return ""
    are = "has no codebook" if len(names) == 1 else "have no codebooks"
    return f" {' and '.join(names)} {are}: there are no distances to one, and no codes that a step moves."


def _parts_table(values: Mapping[str, Mapping[str, float]], parts: Mapping[str, Any]) -> str:
    """The numbers of the last checkpoint, a row for each part."""
    shown = [q for q in QUANTITIES if q.name != LEARNING_RATE and any(q.name in each for each in values.values())]
    rows = [
        [name, _sizes(parts[name]), *(format_number(each.get(q.name)) for q in shown)] for name, each in values.items()
    ]
    meanings = "\n".join(f"- {q.label}: {q.meaning}" for q in shown)
    return f"""\
## Parts, at the end

Each part is measured on what it was given: a residual level on what the levels before it have left, a group on its \
channels. The gradient gap of a level is the one with the levels up to it; that of a group is the one of its channels \
if it alone were quantized.

{markdown_table(["part", "what it is", *(q.label for q in shown)], rows)}

{meanings}

"""


def _advice(result: Mapping[str, Any]) -> str:
    """What is wrong with the quantizer or a part of it at the end, and what to do about it."""
    last, quantizer = result["checkpoints"][-1], result["quantizer"]
    parts = quantizer.get("parts", {})
    lines = _advice_on("", last["values"], quantizer.get("codebook_size", 1), result["cures"])
    for name, part in parts.items():
        lines += _advice_on(name, last["parts"][name], part["codebook_size"], part["cures"])
    return "\n".join(lines) or "Nothing stands out: every number below is in its normal range."


def _advice_on(name: str, values: Mapping[str, float], size: int, cures: Sequence[str]) -> list[str]:
    bad = concerns(values, size)
    place, of_part = (f"{name}: ", f" of {name}") if name else ("", "")
    lines = [f"- **{place}{q.label} {format_number(values[q.name])}**: {cure}." for q, cure in bad]
    if cures and any("docs/collapse.md" in cure for _, cure in bad):
        lines += ["", f"Cures of a collapse{of_part} that this quantizer does not have yet, best evidence first:", ""]
        lines += [*(f"{number}. {cure}" for number, cure in enumerate(cures, 1)), *([""] if name else [])]
    return lines


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
