"""The pictures of a study: every run as a dot, and the course of training. matplotlib is imported by the functions."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from straightvq.diagnostics import panels, save
from straightvq.io import write_text
from straightvq.studies.plan import Plan
from straightvq.studies.results import CURVES, of_cells, recorded_curves
from straightvq.studies.run import FINAL, Cell
from straightvq.studies.study import Measure, Study, slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More rows than colours: the second round is dashed.
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
LONGEST_NAME = 36  # letters of a row's
WIDEST = 24.0  # inches of a figure that only its headline makes wide


def sample_picture(cell: Cell) -> Path:
    """Where a study keeps what a model of images drew, of seed 0."""
    return Path("samples", f"{slug(cell.title)}.png")


def draw(plan: Plan) -> None:
    """Writes ``results.png``, ``curves.png`` with its points ``curves.csv``, and ``samples``, of what is finished."""
    folder, study = plan.results.folder, plan.study
    finished = [run for run in plan.reported() if run.kind == FINAL and plan.results.get(run)]
    for run in finished:
        grid = folder / run.folder / "samples" / "grid.png"
        if run.number == 0 and grid.is_file():
            (folder / sample_picture(run.cell)).parent.mkdir(exist_ok=True)
            shutil.copyfile(grid, folder / sample_picture(run.cell))
    shown = list(dict.fromkeys(run.cell.place for run in finished))
    places = [[cell for cell in plan.compared if cell.place == place] for place in shown]
    if not places:
        return
    save(dots(study, plan.results.matching(finished), places), folder / "results.png")
    # The first measure that is also taken on the validation set; some are known at the end only.
    for measure in study.measures.values():
        curves = recorded_curves(folder, finished, f"val/{measure.name.partition('/')[2]}")
        if len(curves):
            write_text(folder / CURVES, curves.to_csv(index=False))
            save(courses(study, measure, curves, places), folder / "curves.png")
            break


def dots(study: Study, finals: pd.DataFrame, places: Sequence[Sequence[Cell]]) -> "Figure":
    """One panel per network and measure; a dot is a run, the bar the mean."""
    measures, rows = list(study.measures.values())[:2], len(places[0])
    height = 1.6 + 0.42 * rows
    names = [panels.clip(cell.row, LONGEST_NAME) for cell in reversed(places[0])]
    left = max(2.0, 0.3 + panels.LETTER_WIDTH * max(map(len, names)))
    # A letter more, since what is cut to whole letters must not lose one by rounding.
    headline = 0.8 + panels.HEADLINE_LETTER_WIDTH * (len(study.title) + 1)
    width = max((6.0 + left) * len(measures), min(headline, WIDEST))
    figure = panels.new_figure(width, 0.8 + height * len(places))
    panels.headline(figure, study.title)
    grid = (len(places), len(measures))
    for place, cells in enumerate(places):
        for column, measure in enumerate(measures):
            ax = _axes(figure, (place, column), grid, left=left, height=height)
            for number, cell in enumerate(cells):
                own = of_cells(finals, [cell], FINAL).reindex(columns=[measure.name])
                values = own[measure.name].dropna() * measure.scale
                y, color = rows - 1 - number, _color(number)
                if len(values):
                    ax.scatter(values, [y] * len(values), s=34, color=color, alpha=0.7, linewidths=0, zorder=3)
                    ax.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color=color, linewidth=2.4, zorder=4)
            ax.set_yticks(list(range(rows)), names)
            ax.set_ylim(-0.6, rows - 0.4)
            ax.set_xlabel(measure.heading)
            panels.finish(ax, {}, f"{cells[0].model} on {cells[0].set}")
    return figure


def courses(study: Study, measure: Measure, curves: pd.DataFrame, places: Sequence[Sequence[Cell]]) -> "Figure":
    """A measure of the methods on the validation set over the steps, mean of the seeds that are there."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    by_cell: dict[Cell, list[pd.Series]] = {}
    for (place, model, row, _), own in curves.groupby(["set", "model", "row", "seed"]):
        by_cell.setdefault(Cell(place, model, row), []).append(own.set_index("step").iloc[:, -1])
    places = [cells for cells in places if any(cell in by_cell for cell in cells)]
    rows = max(map(len, places))
    above = 0.6 + 0.32 * (1 if rows <= 4 else math.ceil(rows / 2))  # a legend in one line, or in two columns
    height = 3.8 + above
    figure = panels.new_figure(8.0 * len(places), 0.8 + height)
    panels.headline(figure, f"{measure.label} on the validation set")
    for place, cells in enumerate(places):
        ax = _axes(figure, (0, place), (1, len(places)), left=1.0, height=height, above=above)
        handles = {}
        for number, cell in enumerate(cells):
            if cell in by_cell and not study.rows[cell.row].bound:
                mean = mean_curve(by_cell[cell]) * measure.scale
                style = STYLES[number // len(panels.PALETTE) % len(STYLES)]
                line = ax.plot(mean.index, mean, color=_color(number), linestyle=style, linewidth=1.8)
                handles[cell.row] = line[0]
        ax.set_xlabel("training step")
        ax.set_ylabel(measure.heading)
        if measure.compare == "ratio" and handles:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8)))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panels.finish(ax, handles, f"{cells[0].model} on {cells[0].set}")
    return figure


def mean_curve(curves: Sequence[pd.Series]) -> pd.Series:
    """The mean, by step, over the range of steps that all curves cover.

    Steps are those of the curve that ends first; in between the others are taken as straight: seeds that draw other
    validation images can differ by a step per epoch.

    Example:
        >>> one, other = pd.Series({10: 1.0, 20: 2.0, 30: 3.0}), pd.Series({11: 4.0, 22: 4.0, 33: 4.0})
        >>> mean_curve([one, other]).to_dict()
        {20: 3.0, 30: 3.5}
    """
    shortest = min(curves, key=lambda curve: curve.index[-1]).index
    steps = shortest[shortest >= max(curve.index[0] for curve in curves)]
    return pd.Series(np.mean([np.interp(steps, curve.index, curve) for curve in curves], axis=0), steps)


def _color(number: int) -> str:
    return panels.PALETTE[number % len(panels.PALETTE)]


def _axes(
    figure: "Figure", at: tuple[int, int], grid: tuple[int, int], *, left: float, height: float, above: float = 0.55
) -> "Axes":
    """Axes in a grid of panels, lengths in inches."""
    page_width, page_height = figure.get_size_inches()
    width = (page_width - 0.3) / grid[1]
    box = (
        (at[1] * width + left) / page_width,
        ((grid[0] - 1 - at[0]) * height + 0.75) / page_height,
        (width - left - 0.3) / page_width,
        (height - 0.75 - above) / page_height,
    )
    return panels.prepare(figure.add_axes(box))
