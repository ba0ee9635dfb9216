"""The pictures of the study. matplotlib is imported by the functions."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from straightvq.diagnostics import panels
from straightvq.studies.dynamics import experiments as ex
from straightvq.studies.dynamics.reading import plateau_ends, plateau_fit, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMITS = (ex.CLOSED, ex.DENSITY, ex.PARTICLES)  # the first that is there is drawn
STYLES = ("-", (0, (4, 2)))  # more rows than colours: the second round is dashed
SPACE: dict[str, Any] = {"top": 0.8, "below": 0.75, "left": 0.9}


def courses(values: pd.DataFrame) -> "Figure":
    """One panel for each quantizer: lines are the limit, dots SGD."""
    return _courses(values, ex.COURSES, "The error over time: lines are the limit, dots SGD")


def estimators(values: pd.DataFrame) -> "Figure":
    return _courses(values, ex.ESTIMATORS, "Other estimators: lines are the limit, dots SGD")


def _courses(values: pd.DataFrame, experiment: str, title: str) -> "Figure":
    own = values[values.experiment == experiment]
    there = rows(values, experiment)
    columns = 4 if len(there) > 6 else 3
    figure = panels.new_figure(5.2 * columns, 0.8 + 4.1 * -(-len(there) // columns), title)
    axes = panels.grid(figure, len(there), columns, above=1.05, **SPACE)
    for ax, row in zip(axes, there, strict=True):
        mine = own[own.row == row]
        handles = _limit(ax, mine, panels.INK)
        for d, color in zip(sorted(set(mine.d) - {0}), panels.PALETTE, strict=False):
            handles[f"d = {d:,}"] = _dots(ax, mine[mine.d == d], color)
        ax.set(xlabel="τ = steps / d", ylabel="error", ylim=(0, None))
        panels.finish(ax, handles, row.replace("; ", ";\n"))
    return figure


def _limit(ax: "panels.Axes", mine: pd.DataFrame, color: str, style: Any = "-") -> dict[str, Any]:
    for source in LIMITS:
        found = mine[mine.source == source]
        if len(found):
            return {source: ax.plot(found["at"], found["value"], color=color, linewidth=1.7, linestyle=style)[0]}
    return {}


def _dots(ax: "panels.Axes", runs: pd.DataFrame, color: str, *, every: int = 1) -> Any:
    """The mean of the seeds, with their range as a bar."""
    by_time = runs.groupby("at").value.agg(["mean", "min", "max"]).iloc[::every]
    ax.vlines(by_time.index, by_time["min"], by_time["max"], color=color, linewidth=1.0, alpha=0.6)
    return ax.scatter(by_time.index, by_time["mean"], s=16, color=color, linewidths=0, zorder=3)


def histogram(values: pd.DataFrame) -> "Figure":
    """Bars are SGD, the line is the density."""
    own = values[values.experiment == ex.HISTOGRAM]
    times = sorted(own.series.unique())
    figure = panels.new_figure(18.0, 4.9, f"Weights with {ex.PICTURED}: bars are SGD, lines the density")
    for ax, time in zip(panels.grid(figure, len(times), len(times), above=0.85, **SPACE), times, strict=True):
        bars, line = (
            own[(own.series == time) & (own.source == source)].sort_values("at")
            for source in (ex.SIMULATION, ex.DENSITY)
        )
        handles: dict[str, Any] = {}
        handles["SGD"] = ax.bar(bars["at"], bars["value"], width=0.05, color=panels.PALETTE[5])
        handles["density"] = ax.plot(line["at"], line["value"], color=panels.INK, linewidth=1.3)[0]
        ax.axvline(4 / 3, color=panels.FAINT_INK, linewidth=1.0, linestyle=(0, (5, 4)))
        ax.set(xlabel="weight", ylabel="density", xlim=(-4, 4))
        panels.finish(ax, handles, f"τ = {time:g}")
    return figure


def plateau(values: pd.DataFrame) -> "Figure":
    """The courses, and the plateau's length over the range."""
    own = values[values.experiment == ex.PLATEAU]
    figure = panels.new_figure(15.0, 5.6, "A coarser grid is left later")
    left, right = panels.grid(figure, 2, 2, above=1.25, **SPACE)
    handles: dict[str, Any] = {}
    shown = rows(values, ex.PLATEAU)[::2]
    for row, color in zip(shown, panels.PALETTE, strict=False):
        mine = own[own.row == row]
        handles[row] = next(iter(_limit(left, mine[mine.source != ex.CLOSED], color).values()))
        _dots(left, mine[mine.source == ex.SIMULATION], color, every=4)
    left.set(xlabel="τ = steps / d", ylabel="error", ylim=(0, None))
    panels.finish(left, handles, "Lines are the density, dots SGD")
    ends = plateau_ends(values).replace(np.inf, np.nan)
    seeds = [name for name in ends if isinstance(name, int)]
    slope, intercept = plateau_fit(ends)
    handles = {"closed form": right.plot(ends.index, ends[ex.CLOSED], color=panels.INK, linewidth=1.6)[0]}
    handles["density"] = right.scatter(ends.index, ends[ex.DENSITY], s=42, color=panels.PALETTE[1], zorder=3)
    for seed in seeds:
        handles["SGD"] = right.scatter(ends.index, ends[seed], s=18, color=panels.PALETTE[0], zorder=4)
    if np.isfinite(slope):
        line = right.plot(ends.index, slope * ends.index + intercept, color=panels.PALETTE[1], linestyle=(0, (5, 4)))
        handles[f"{slope:.2f} range {intercept:+.2f}"] = line[0]
    right.set(xlabel="range of the 15 codes", ylabel="plateau ends at τ", ylim=(0, None))
    panels.finish(right, handles, "The length of the plateau")
    return figure


def rest(values: pd.DataFrame) -> "Figure":
    """The error at rest over the range, for each number of bits and each rate."""
    own = values[values.experiment == ex.REST]
    figure = panels.new_figure(15.0, 5.6, "The error at rest depends on bits, range and rate")
    axes = panels.grid(figure, 2, 2, above=1.25, **SPACE)
    styles = {"rate 0": "-", "rate 0.5": (0, (4, 2))}
    for ax, name in zip(axes, ("target 1", "normal targets"), strict=True):
        handles = {}
        for bits, color in zip(ex.REST_BITS, panels.PALETTE, strict=False):
            for rate, style in styles.items():
                what = f"{bits} bit{'s' * (bits > 1)}"
                mine = own[own.row == f"{what}, {name}, {rate}"]
                handles[f"{what}, {rate}"] = ax.plot(mine["at"], mine["value"], color=color, linestyle=style)[0]
        ax.set(xlabel="range", ylabel="error", ylim=(0, 1))
        panels.finish(ax, handles, name)
    return figure


def rates(values: pd.DataFrame) -> "Figure":
    """The error at the end over the rate."""
    own = values[values.experiment == ex.RATES]
    figure = panels.new_figure(10.0, 6.2, "Large rates: lines are exact, dots SGD")
    (ax,) = panels.grid(figure, 1, 1, above=1.35, **SPACE)
    handles = {}
    for row, color in zip(rows(values, ex.RATES), panels.PALETTE, strict=False):
        mine = own[own.row == row]
        handles[row] = next(iter(_limit(ax, mine, color).values()))
        _dots(ax, mine[mine.source == ex.SIMULATION], color)
    panels.level(ax, 0.5)
    ax.set(xlabel="rate η", ylabel="error", ylim=(0, 4))
    panels.finish(ax, handles, "The dashed line is the error of answering 0")
    return figure


def codes(values: pd.DataFrame) -> "Figure":
    """One panel for each teacher: lines are particles, dots SGD through the layer."""
    own = values[values.experiment == ex.CODES]
    figure = panels.new_figure(17.0, 6.6, "Codes that move: lines are the limit, dots SGD through the layer")
    axes = panels.grid(figure, len(ex.TEACHERS), 2, above=1.95, **SPACE)
    for ax, name in zip(axes, ex.TEACHERS, strict=True):
        handles = {}
        for number, title in enumerate(ex.RULES):
            mine = own[own.row == f"{title}; {name}"]
            if not len(mine):
                continue
            color = panels.PALETTE[number % len(panels.PALETTE)]
            style = STYLES[number // len(panels.PALETTE)]
            handles[title] = next(iter(_limit(ax, mine, color, style).values()))
            _dots(ax, mine[mine.source == ex.SIMULATION], color, every=3)
        ax.set(xlabel="τ = steps / d", ylabel="error", ylim=(0, None))
        panels.finish(ax, handles, name)
    return figure


PICTURES: "dict[str, Callable[[pd.DataFrame], Figure]]" = {
    "courses": courses,
    "histogram": histogram,
    "plateau": plateau,
    "rest": rest,
    "rates": rates,
    "estimators": estimators,
    "codes": codes,
}
