"""The pictures of the study. matplotlib is imported by the functions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from straightvq.diagnostics import panels
from straightvq.studies.binary import experiments as ex
from straightvq.studies.binary.estimators import CLIPPED, ENDS, METHODS, SECANTS, TANH, rectified
from straightvq.studies.binary.reading import at_the_end, course
from straightvq.studies.binary.reading import ends as known_ends
from straightvq.studies.binary.watching import INSTABILITY
from straightvq.studies.study import Measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AUTHORS = {rectified(end, "authors"): rectified(end) for end in ENDS[1:]}  # in the colours of the other secant's
_COLORS = dict(zip((row for row in METHODS if row not in AUTHORS), (*panels.PALETTE, panels.INK), strict=True))
COLORS = {row: _COLORS[AUTHORS.get(row, row)] for row in METHODS}
DASHED = (0, (4, 2))
SPACE: dict[str, Any] = {"top": 0.8, "below": 0.75, "left": 1.1, "between": 1.3}
ABOVE = 2.2  # inches for a panel's title and a legend of nine names


def ends(values: pd.DataFrame, names: Sequence[str], measure: Measure) -> "Figure":
    """A measure over the power at the end: mean and each seed; the other estimators as levels."""
    figure = panels.new_figure(7.4 * len(names), 6.4, f"{measure.label} by the power at the end")
    for ax, name in zip(panels.grid(figure, len(names), len(names), above=1.3, **SPACE), names, strict=True):
        found = at_the_end(values, name, measure)
        mean = found.mean()
        handles: dict[str, Any] = {}
        for secant, color in zip(SECANTS, (panels.INK, panels.PALETTE[1]), strict=True):
            there = known_ends(found, secant)
            label = "rectified" if secant == "continuous" else "authors' secant"
            handles[label] = ax.plot(list(there.values()), mean[list(there)], color=color, marker="o", linewidth=1.8)[0]
            for row, end in there.items():
                seeds = found[row].dropna()
                ax.scatter([end] * len(seeds), seeds, s=22, color=color, alpha=0.5, linewidths=0)
        for row in [row for row in (CLIPPED, TANH) if row in found]:
            handles[row] = ax.axhline(mean[row], color=COLORS[row], linewidth=1.4, linestyle=DASHED)
        ax.set_xscale("log")
        ax.set_xticks(list(ENDS), [str(end) for end in ENDS])
        ax.minorticks_off()
        ax.set(xlabel="o_end", ylabel=measure.heading)
        panels.finish(ax, handles, name)
    return figure


def courses(values: pd.DataFrame, name: str, series: Sequence[str]) -> "Figure":
    """Series over the training, mean of the seeds, one panel each; the instability on a logarithmic scale."""
    figure = panels.new_figure(7.4 * len(series), 6.6, f"{name}: what the estimators do over the training")
    for ax, one in zip(panels.grid(figure, len(series), len(series), above=ABOVE, **SPACE), series, strict=True):
        handles = {}
        for row in METHODS:
            found = course(values, name, row, one)
            if len(found):
                style = DASHED if row in AUTHORS else "-"
                line = ax.plot(found.index, found.mean(axis=1), color=COLORS[row], linestyle=style, linewidth=1.7)
                handles[_short(row)] = line[0]
        if one == INSTABILITY:
            ax.set_yscale("log")
        ax.set(xlabel="step" if name.startswith(ex.TOKENIZER) else "epoch", ylabel=one)
        panels.finish(ax, handles, one)
    return figure


def trade(values: pd.DataFrame, names: Sequence[str], series: str) -> "Figure":
    """Estimating error against gradient instability, both over the whole training; a dot is an estimator."""
    figure = panels.new_figure(7.4 * len(names), 6.6, f"{series} against gradient instability")
    for ax, name in zip(panels.grid(figure, len(names), len(names), above=ABOVE, **SPACE), names, strict=True):
        handles = {}
        for row in METHODS:
            errors, unstable = (course(values, name, row, one) for one in (series, INSTABILITY))
            if len(errors):
                at = unstable.mean().mean(), errors.mean().mean()
                marker = "D" if row in AUTHORS else "o"
                handles[_short(row)] = ax.scatter(*at, s=70, color=COLORS[row], marker=marker, linewidths=0, zorder=3)
        ax.set_xscale("log")
        ax.set(xlabel=INSTABILITY, ylabel=series)
        panels.finish(ax, handles, name)
    return figure


def formula(values: pd.DataFrame) -> "Figure":
    """The trade-off that follows from the formula alone, for both secants."""
    figure = panels.new_figure(8.0, 5.6, "The trade-off of the formula")
    (ax,) = panels.grid(figure, 1, 1, above=1.15, **SPACE)
    errors = last_of(values, ex.SQUARE)
    handles = {}
    for secant, color in zip(SECANTS, panels.PALETTE, strict=False):
        variances = last_of(values, f"{ex.VARIANCE}, {secant}")
        handles[f"secant {secant}"] = ax.plot(variances, errors[variances.index], color=color, marker="o")[0]
        for power, variance in variances.items():
            ax.annotate(f"{power:g}", (variance, errors[power]), (5, 5), textcoords="offset points", color=color)
    ax.set(xlabel=ex.VARIANCE, ylabel="estimating error per element")
    panels.finish(ax, handles, "Normal vectors of deviation 0.5; numbers are o")
    return figure


def _short(row: str) -> str:
    """A name that a legend of two columns has room for."""
    return row.replace("authors' secant", "secant")


def last_of(values: pd.DataFrame, series: str) -> "pd.Series[float]":
    """A series of the formulas over the power."""
    own = values[(values.experiment == ex.FORMULA) & (values.series == series)]
    return own.set_index("at")["value"].sort_index()
