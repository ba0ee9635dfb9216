"""Pictures of quantities over the steps of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from straightvq.diagnostics import panels
from straightvq.errors import InvalidValueError

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class CurvePanel:
    """One quantity over the steps of training.

    Args:
        title: its name.
        unit: label of the vertical axis.
        lines: steps and values by what they were measured on. Values that are not finite are left out.
        reference: a level worth a dashed line, such as 1 for a gap as large as the gradient.
        is_share: whether values are fractions of 1, drawn on an axis from 0 to 100 %.

    Raises: ValueError if the steps and values of a line differ in number.
    """

    title: str
    unit: str
    lines: Lines = field(default_factory=dict)
    reference: float | None = None
    is_share: bool = False

    def __post_init__(self) -> None:
        for name, (steps, values) in self.lines.items():
            if len(steps) != len(values):
                raise InvalidValueError(
                    f"`CurvePanel`: the line {name!r} must have as many steps as values. "
                    f"Got {len(steps)} and {len(values)}."
                )


def curves_over_time(plots: Sequence[CurvePanel], *, title: str | None = None) -> "panels.Figure":
    """Small plots in rows of four over one axis of training steps; the lines of a plot take the colours in order.

    Args:
        plots: at least one, each with at most six lines.

    Raises: ValueError if there is no plot or one has too many lines.
    """
    most = max((len(plot.lines) for plot in plots), default=0)
    if not plots or most > len(panels.PALETTE):
        raise InvalidValueError(
            f"`curves_over_time`: `plots` must be at least one, each with at most {len(panels.PALETTE)} lines. "
            f"Got {len(plots)} with up to {most}."
        )
    top = 0.85 if title else 0.2
    figure = panels.new_figure(17.0, top + 3.6 * -(-len(plots) // 4), title)
    last = max((step for plot in plots for steps, _ in plot.lines.values() for step in steps), default=1)
    axes = panels.grid(figure, len(plots), 4, top=top, above=1.05, below=0.65, left=0.9, between=0.95)
    for ax, plot in zip(axes, plots, strict=True):
        _draw(ax, plot, panels.PALETTE[1:] + panels.PALETTE[:1])
        # One measurement alone would stand on an axis of its own.
        ax.set_xlim(0, 1.04 * last or 1)
    return figure


def usage_over_time(
    target: "panels.Target", series: Lines, *, colors: Sequence[str] = panels.PALETTE, title: str | None = None
) -> "panels.Figure":
    """Codebook usage in the course of training, one line per name.

    Args:
        target: axes to draw into, a figure to fill, or None for a new figure.
        series: for each name the training steps and the usage there, a fraction in [0, 1].
        colors: one per name, in order.

    Raises: ValueError if steps and values differ in number or `colors` are too few.
    """
    if len(colors) < len(series):
        raise InvalidValueError(f"`usage_over_time`: `colors` must be at least {len(series)}. Got {len(colors)}.")
    ax = panels.prepare(target)
    _draw(ax, CurvePanel(title or "", "codes used (%)", series, is_share=True), colors)
    return panels.figure_of(ax)


def _draw(ax: "panels.Axes", plot: CurvePanel, colors: Sequence[str]) -> None:
    handles = {}
    scale = 100 if plot.is_share else 1
    for (name, (steps, values)), color in zip(plot.lines.items(), colors, strict=False):
        at, height = np.asarray(steps, dtype=float), scale * np.asarray(values, dtype=float)
        finite = np.isfinite(height)
        # Single measurements are dots, a dense log is a line.
        marker = "o" if finite.sum() <= 25 else None
        (handles[name],) = ax.plot(at[finite], height[finite], color=color, lw=1.8, marker=marker, ms=4.5)
    if plot.reference is not None:
        panels.level(ax, scale * plot.reference)
    if not handles:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=panels.FAINT_INK)
    if plot.is_share:
        ax.set(ylim=(-2, 104), yticks=[0, 25, 50, 75, 100])
    else:
        low, high = min(ax.get_ylim()[0], 0), ax.get_ylim()[1]
        ax.set_ylim(low, high + 0.06 * (high - low))  # whole markers, also of a single value
    ax.set(xlabel="training step", ylabel=plot.unit)
    panels.finish(ax, handles, plot.title)
