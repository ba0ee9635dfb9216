"""The figures of a study: every run as a dot, and the course of training. matplotlib is imported by the functions."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from straightvq.diagnostics import panels, save
from straightvq.io import write_text
from straightvq.studies import curves
from straightvq.studies.curves import Curves
from straightvq.studies.report import Context
from straightvq.studies.results import Findings
from straightvq.studies.run import FINAL, Cell
from straightvq.studies.study import Measure, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "mean_curve"]

# More rows than colours: the second round is dashed.
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
LONGEST_NAME = 36  # letters of a row's
WIDEST = 24.0  # inches of a figure that only its headline makes wide


def draw(folder: Path, context: Context, results: Findings, cells: Sequence[Cell]) -> None:
    """Writes ``results.png``, ``curves.png`` and the points of the latter, ``curves.csv``, of whatever is finished."""
    places = [
        (place, [cell for cell in cells if (cell.set, cell.model) == place])
        for place in dict.fromkeys((cell.set, cell.model) for cell in cells)
    ]
    shown = [here for _, here in places if any(results.of(cell, FINAL) for cell in here)]
    if shown:
        save(_dots(context.study, results, shown), folder / "results.png")
        # The first measure that is also taken on the validation set; some are known at the end only.
        for measure in context.study.measures:
            name = f"val/{measure.name.partition('/')[2]}"
            recorded = Curves.recorded(name, folder, results, [cell for here in shown for cell in here])
            if recorded.points:
                write_text(folder / curves.FILE, recorded.table())
                save(_curves(context.study, measure, recorded, shown), folder / "curves.png")
                break


def _dots(study: Study, results: Findings, places: Sequence[Sequence[Cell]]) -> "Figure":
    """One panel per network and measure; a dot is a run, the bar the mean."""
    measures, rows = study.measures[:2], len(places[0])
    height = 1.6 + 0.42 * rows
    names = [panels.clip(cell.row, LONGEST_NAME) for cell in reversed(places[0])]
    left = max(2.0, 0.3 + panels.LETTER_WIDTH * max(map(len, names)))
    # A letter more, since what is cut to whole letters must not lose one by rounding.
    headline = 0.8 + panels.HEADLINE_LETTER_WIDTH * (len(study.title) + 1)
    width = max((6.0 + left) * len(measures), min(headline, WIDEST))
    figure = panels.new_figure(width, 0.8 + height * len(places))
    panels.headline(figure, study.title)
    for place, cells in enumerate(places):
        for column, measure in enumerate(measures):
            ax = _axes(figure, place, column, len(places), len(measures), left=left, height=height)
            for number, cell in enumerate(cells):
                found = [r.metrics[measure.name] for r in results.of(cell, FINAL) if measure.name in r.metrics]
                values = [measure.scale * value for value in found]
                if not values:
                    continue
                color = _color(number)
                y = rows - 1 - number
                ax.scatter(values, [y] * len(values), s=34, color=color, alpha=0.7, linewidths=0, zorder=3)
                mean = statistics.mean(values)
                ax.plot([mean, mean], [y - 0.3, y + 0.3], color=color, linewidth=2.4, zorder=4)
            ax.set_yticks(list(range(rows)), names)
            ax.set_ylim(-0.6, rows - 0.4)
            ax.set_xlabel(measure.heading)
            panels.finish(ax, {}, f"{cells[0].model} on {cells[0].set}")
    return figure


def _curves(study: Study, measure: Measure, recorded: Curves, shown: Sequence[Sequence[Cell]]) -> "Figure":
    """A measure of the methods on the validation set over the steps, mean of the seeds that are there."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    places = [cells for cells in shown if any(recorded.of(cell) for cell in cells)]
    rows = max(map(len, places))
    above = 0.6 + 0.32 * (1 if rows <= 4 else math.ceil(rows / 2))  # a legend in one line, or in two columns
    height = 3.8 + above
    figure = panels.new_figure(8.0 * len(places), 0.8 + height)
    panels.headline(figure, f"{measure.label} on the validation set")
    for place, cells in enumerate(places):
        ax = _axes(figure, 0, place, 1, len(places), left=1.0, height=height, above=above)
        handles = {}
        for number, cell in enumerate(cells):
            steps, values = mean_curve(recorded.of(cell))
            if steps and not study.rows[cell.row].bound:
                (handles[cell.row],) = ax.plot(
                    steps,
                    [measure.scale * value for value in values],
                    color=_color(number),
                    linestyle=STYLES[number // len(panels.PALETTE) % len(STYLES)],
                    linewidth=1.8,
                )
        ax.set_xlabel("training step")
        ax.set_ylabel(measure.heading)
        if measure.compare == "ratio" and handles:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8)))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panels.finish(ax, handles, f"{cells[0].model} on {cells[0].set}")
    return figure


def mean_curve(curves: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    """The mean over the range of steps that all curves cover.

    Steps are those of the curve that ends first; in between the others are taken as straight: seeds that draw other
    validation images can differ by a step per epoch.

    Example:
        >>> mean_curve([([10, 20, 30], [1.0, 2.0, 3.0]), ([11, 22, 33], [4.0, 4.0, 4.0])])
        ([20, 30], [3.0, 3.5])
    """
    known = [curve for curve in curves if curve[0]]
    if not known:
        return [], []
    start = max(steps[0] for steps, _ in known)
    steps = [step for step in min((steps for steps, _ in known), key=lambda steps: steps[-1]) if step >= start]
    return steps, np.mean([np.interp(steps, *curve) for curve in known], axis=0).tolist()


def _color(number: int) -> str:
    return panels.PALETTE[number % len(panels.PALETTE)]


def _axes(
    figure: "Figure",
    row: int,
    column: int,
    rows: int,
    columns: int,
    *,
    left: float,
    height: float,
    above: float = 0.55,
) -> "Axes":
    """Axes in a grid of panels, lengths in inches."""
    page_width, page_height = figure.get_size_inches()
    width = (page_width - 0.3) / columns
    box = (
        (column * width + left) / page_width,
        ((rows - 1 - row) * height + 0.75) / page_height,
        (width - left - 0.3) / page_width,
        (height - 0.75 - above) / page_height,
    )
    return panels.prepare(figure.add_axes(box))
