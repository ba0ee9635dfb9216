"""The analysis of a run in words: a table of its numbers, what they mean, and what to try."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, float]


@dataclass(frozen=True)
class Quantity:
    """One line of the table.

    Attributes:
        name: key in ``analysis.json``.
        label: what the report calls it.
        meaning: one sentence with unit and normal range.
        is_bad: of all numbers of one checkpoint and the number of codes.
        cure: what to try then, and the page that explains it.
    """

    name: str
    label: str
    meaning: str
    is_bad: Callable[[Values, int], bool] = lambda values, size: False
    cure: str = ""


_COLLAPSE = "docs/collapse.md: revive dead codes, start on the data, let the codes follow by themselves"
_REACH = "docs/collapse.md, cures 1 to 3; or a shared map, svq.Affine or svq.RunningAffine (docs/presets.md)"
_GAP = "docs/tuning.md: lower the quantization error first, to which the gap is proportional; then docs/gradients.md"

QUANTITIES = (
    Quantity(
        "usage",
        "usage",
        "fraction of codes assigned at least once; 0.9 and more is normal, below 0.1 is a collapse",
        lambda v, size: v["usage"] < 0.1,
        _COLLAPSE,
    ),
    Quantity(
        "perplexity",
        "perplexity",
        "effective number of codes; a third to nine tenths of the codebook is normal",
        lambda v, size: v["perplexity"] < size / 10,
        _COLLAPSE,
    ),
    Quantity(
        "error",
        "quantization error",
        "over the variance of the embeddings; 0 is perfect, 1 is as good as a single code",
        lambda v, size: v["error"] >= 0.9,
        "docs/tuning.md: more or narrower codes, an update that follows faster",
    ),
    Quantity(
        "mean_distance",
        "distance of the means",
        "of embeddings and codebook, in standard deviations of the embeddings; well below 1 is normal",
        lambda v, size: v["mean_distance"] > 1,
        _REACH,
    ),
    Quantity(
        "wasserstein",
        "Wasserstein, diagonal",
        "2-Wasserstein distance of P and C as Gaussians without correlations, in standard deviations of P",
        lambda v, size: v["wasserstein"] > 1,
        _REACH,
    ),
    Quantity(
        "wasserstein_full",
        "Wasserstein, full",
        "the same with correlations (Bures); much more than the diagonal one means another orientation",
        lambda v, size: v["wasserstein_full"] > 1,
        _REACH,
    ),
    Quantity(
        "effective_dimension",
        "effective dimension",
        "directions that the embeddings use; a `codebook_dim` much above it is wasted",
    ),
    Quantity(
        "gradient_gap",
        "gradient gap",
        "error of the straight-through gradient over the gradient without quantizer; 0 is exact, below 1 is normal",
        lambda v, size: v["gradient_gap"] > 1,
        _GAP,
    ),
    Quantity(
        "gradient_cosine",
        "gradient cosine",
        "between the two gradients; 1 is exact, clearly positive is normal",
        lambda v, size: v["gradient_cosine"] < 0.1,
        _GAP,
    ),
    Quantity(
        "gradient_sparsity",
        "codes with a gradient",
        "fraction of the raw table's rows that get one in a step; none is listed where the update takes none",
        lambda v, size: v["gradient_sparsity"] < 0.1 and v.get("codes_moved", 1) < 0.1,
        _REACH,
    ),
    Quantity(
        "codes_moved",
        "codes moved by a step",
        "fraction of the effective codes, by whatever rule; what stays still falls behind the embeddings",
        lambda v, size: v["codes_moved"] < 0.1 and v["learning_rate"] > 0,
        _REACH,
    ),
    Quantity(
        "codebook_gain",
        "gain of the codebook",
        "quantization error that the codebook's part of a step removes, over the variance of P",
    ),
    Quantity(
        "update_delay",
        "update delay",
        "quantization error that the encoder's part of a step adds, over the variance of P; near 0 is normal",
        lambda v, size: v["update_delay"] > max(0.01, v["codebook_gain"]),
        "docs/gradients.md: a synchronised update, svq.StraightThrough(sync=0.2); or a lower learning rate",
    ),
    Quantity("learning_rate", "learning rate", "of that step; schedules end at 0, where nothing moves by gradient"),
)


def concerns(values: Values, size: int) -> list[Quantity]:
    """Quantities that are not as they should be."""
    return [each for each in QUANTITIES if each.name in values and each.is_bad(values, size)]


def write_report(result: Mapping[str, Any]) -> str:
    """One page of Markdown from what ``analysis.json`` holds."""
    checkpoints, settings = result["checkpoints"], result["settings"]
    shown = _shown(checkpoints)
    size = result["quantizer"]["codebook_size"]
    last = checkpoints[-1]
    bad = concerns(last["values"], size)
    lines = [
        f"# Analysis of {result['run']}",
        "",
        f"straightvq {result['versions']['straightvq']}, torch {result['versions']['torch']}, {result['date']}. "
        f"{result['quantizer']['name']}: {size:,} codes of {result['quantizer']['codebook_dim']} channels. "
        f"Measured in evaluation mode on {settings['images']:,} test examples ({settings['vectors']:,} vectors), seed "
        f"{settings['seed']}, device {settings['device']}.",
        "",
        *([result["hint"], ""] if result["hint"] else []),
        "## At the end",
        "",
    ]
    if bad:
        lines += [f"- **{q.label} {format_number(last['values'][q.name])}**: {q.cure}." for q in bad]
        if result["cures"] and any("docs/collapse.md" in q.cure for q in bad):
            lines += ["", "Cures of a collapse that this quantizer does not have yet, best evidence first:", ""]
            lines += [f"{number}. {cure}" for number, cure in enumerate(result["cures"], 1)]
    else:
        lines.append("Nothing stands out: every number below is in its normal range.")
    lines += ["", "## Numbers", ""]
    columns = " | ".join(_column(c) for c in shown)
    lines.append(f"| quantity | {columns} | what it is |")
    lines.append("|---|" + "---:|" * len(shown) + "---|")
    for quantity in QUANTITIES:
        row = [c["values"].get(quantity.name) for c in shown]
        if any(value is not None for value in row):
            cells = " | ".join("" if value is None else format_number(value) for value in row)
            lines.append(f"| {quantity.label} | {cells} | {quantity.meaning} |")
    lines += [
        "",
        "Gradients, the step and its delay are measured on the first batch; the step is the next one of the training, "
        "with its own data, optimizer state and learning rate. All numbers and checkpoints: `analysis.json`. "
        "What each quantity means: docs/analysis.md.",
        "",
        "## Pictures",
        "",
        "![embeddings and codes along the first component](divergence.png)",
        "",
        "![embeddings and codes as neighbours](tsne.png)",
        "",
        "![what was measured in the course of training](curves.png)",
        "",
    ]
    return "\n".join(lines)


def _column(checkpoint: Any) -> str:
    # The name of a checkpoint that was kept only repeats the step.
    names = [name for name in checkpoint["names"] if not name.startswith("step")]
    return f"step {checkpoint['step']:,}" + (f" ({', '.join(names)})" if names else "")


def _shown(checkpoints: list[Any]) -> list[Any]:
    """The first, the best and the last; a table of all would not fit on a page."""
    first, last = checkpoints[0], checkpoints[-1]
    best = [c for c in checkpoints[1:-1] if "best" in c["names"]]
    return [first, *best, last] if len(checkpoints) > 1 else [last]


def format_number(value: float) -> str:
    """Three digits that count.

    Example:
        >>> format_number(0.012345), format_number(326.0), format_number(0.00012)
        ('0.0123', '326', '0.00012')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
