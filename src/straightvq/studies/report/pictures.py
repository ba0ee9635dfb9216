"""The pictures of a study: every run as a dot, and the course of training. matplotlib is imported by the functions."""

import math
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from straightvq.diagnostics import panels, save
from straightvq.io import write_text
from straightvq.studies.plan import Plan
from straightvq.studies.results import CURVES, FINAL, Cell, by_place, of_cells, recorded_curves
from straightvq.studies.study import Measure, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More rows than colours: the second round is dashed.
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
LONGEST_NAME = 36  # letters of a row's
TOP, BELOW = 0.8, 0.75  # inches for the headline, and for the labels of an axis
WIDEST = 24.0  # inches of a figure that only its headline makes wide


def draw(plan: Plan) -> None:
    """Writes ``results.png``, ``curves.png`` with its points ``curves.csv``, and ``samples``, of what is finished."""
    folder, study = plan.results.folder, plan.study
    finished = [run for run in plan.reported() if run.kind == FINAL and plan.results.of(run)]
    for run in finished:
        grid = folder / run.folder / "samples" / "grid.png"
        if run.number == 0 and grid.is_file():
            (folder / run.cell.picture).parent.mkdir(exist_ok=True)
            shutil.copyfile(grid, folder / run.cell.picture)
    done = {run.cell.place for run in finished}
    places = [cells for cells in by_place(plan.compared) if cells[0].place in done]
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
    names = [panels.clip(cell.row, LONGEST_NAME) for cell in reversed(places[0])]
    left = max(2.0, 0.3 + panels.LETTER_WIDTH * max(map(len, names)))
    # A letter more, since what is cut to whole letters must not lose one by rounding.
    headline = 0.8 + panels.HEADLINE_LETTER_WIDTH * (len(study.title) + 1)
    width = max((6.0 + left) * len(measures), min(headline, WIDEST))
    figure = panels.new_figure(width, TOP + (1.6 + 0.42 * rows) * len(places), study.title)
    shown = [(cells, measure) for cells in places for measure in measures]
    space = {"top": TOP, "above": 0.55, "below": BELOW, "left": left, "between": left + 0.3}
    axes = panels.grid(figure, len(shown), len(measures), **space)
    for ax, (cells, measure) in zip(axes, shown, strict=True):
        for number, cell in enumerate(cells):
            values = of_cells(finals, [cell]).reindex(columns=[measure.name])[measure.name].dropna() * measure.scale
            y, color = rows - 1 - number, _color(number)
            if len(values):
                ax.scatter(values, [y] * len(values), s=34, color=color, alpha=0.7, linewidths=0, zorder=3)
                ax.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color=color, linewidth=2.4, zorder=4)
        ax.set_yticks(list(range(rows)), names)
        ax.set_ylim(-0.6, rows - 0.4)
        ax.set_xlabel(measure.heading)
        panels.finish(ax, {}, cells[0].place)
    return figure


def courses(study: Study, measure: Measure, curves: pd.DataFrame, places: Sequence[Sequence[Cell]]) -> "Figure":
    """A measure of the methods on the validation set over the steps, mean of the seeds that are there."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    places = [cells for cells in places if len(of_cells(curves, cells))]
    rows = max(map(len, places))
    above = 0.6 + 0.32 * (1 if rows <= 4 else math.ceil(rows / 2))  # a legend in one line, or in two columns
    title = f"{measure.label} on the validation set"
    figure = panels.new_figure(8.0 * len(places), TOP + 3.8 + above, title)
    axes = panels.grid(figure, len(places), len(places), top=TOP, above=above, below=BELOW, between=1.3)
    for ax, cells in zip(axes, places, strict=True):
        handles = {}
        for number, cell in enumerate(cells):
            seeds = [own.set_index("step").iloc[:, -1] for _, own in of_cells(curves, [cell]).groupby("seed")]
            if seeds and not study.rows[cell.row].bound:
                mean = mean_curve(seeds) * measure.scale
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
        panels.finish(ax, handles, cells[0].place)
    return figure


def mean_curve(curves: Sequence[pd.Series]) -> pd.Series:
    """The mean, by step, over the range of steps that all curves cover.

    Steps are those of the curve that ends first; in between the others are taken as straight: seeds that draw other
    validation images can differ by a step per epoch.
    """
    shortest = min(curves, key=lambda curve: curve.index[-1]).index
    steps = shortest[shortest >= max(curve.index[0] for curve in curves)]
    return pd.Series(np.mean([np.interp(steps, curve.index, curve) for curve in curves], axis=0), steps)


def _color(number: int) -> str:
    return panels.PALETTE[number % len(panels.PALETTE)]
