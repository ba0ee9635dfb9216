"""The picture of a set of IDs."""

from typing import TYPE_CHECKING

from straightvq.diagnostics import panels
from straightvq.diagnostics.semantic_ids.measure import IdReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def id_picture(report: IdReport, *, title: str | None = None) -> "Figure":
    """One page: codes in use at each level, the error of each prefix, and how alike items of one prefix are.

    Args:
        report: of the IDs.
        title: headline; by default how many of the IDs are unique.
    """
    before, after = report.unique
    headline = f"{report.num_items:,} items: {before:.2%} unique IDs, {after:.2%} when made unique"
    figure = panels.new_figure(16.0, 5.2, title or headline)
    usage, error, cosine = panels.grid(figure, 3, 3, top=0.9, above=0.7, below=0.8, between=1.0)
    levels = list(range(1, len(report.codes_used) + 1))
    names = [str(level) for level in levels]
    _bars(
        usage,
        names,
        [100 * used / size for used, size in zip(report.codes_used, report.codebook_sizes, strict=True)],
        [f"{used:,} of {size:,}" for used, size in zip(report.codes_used, report.codebook_sizes, strict=True)],
        panels.PALETTE[1],
    )
    usage.set(ylim=(0, 112), yticks=[0, 25, 50, 75, 100], xlabel="level", ylabel="codes used (%)")
    panels.finish(usage, {}, "Codes in use")
    errors = [(name, value) for name, value in zip(names, report.relative_error, strict=True) if value is not None]
    error.plot(
        [name for name, _ in errors],
        [value for _, value in errors],
        color=panels.PALETTE[0],
        marker="o",
        linewidth=1.8,
    )
    for at in errors:
        error.annotate(f"{at[1]:.3f}", at, (5, 5), textcoords="offset points", color=panels.INK)
    error.set(
        ylim=(0, 1.18 * max([value for _, value in errors if value] or [1.0])),
        xlabel="codes of the ID",
        ylabel="squared error / variance",
    )
    error.margins(x=0.16)
    panels.finish(error, {}, "Error of a prefix")
    shared = [(name, value) for name, value in zip(names, report.cosine, strict=True) if value is not None]
    any_two = [] if report.cosine_random is None else [("any two", report.cosine_random)]
    bars = any_two + shared
    _bars(
        cosine,
        [name for name, _ in bars],
        [value for _, value in bars],
        [f"{value:.2f}" for _, value in bars],
        panels.PALETTE[2],
        first=panels.POINT if any_two else None,
    )
    values = [0.0, *(value for _, value in bars)]
    cosine.set(ylim=(1.15 * min(values), 1.15 * max(0.1, *values)), xlabel="first codes shared", ylabel="mean cosine")
    panels.finish(cosine, {}, "Likeness of two items")
    return figure


def _bars(
    ax: "Axes", names: list[str], heights: list[float], labels: list[str], color: str, first: str | None = None
) -> None:
    colors = [color if number or first is None else first for number in range(len(names))]
    bars = ax.bar(names, heights, color=colors, width=0.62)
    ax.bar_label(bars, labels, padding=3, fontsize=panels.TEXT_SIZE - 1, color=panels.INK)
    ax.grid(axis="x", visible=False)
