"""The picture of a comparison: rows from the best down, a dot for the mean, a bar of two standard errors each way."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from straightvq.diagnostics import panels
from straightvq.studies.comparing.standings import ONCE, Standing, Standings, mean_and_error
from straightvq.studies.study import Measure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By what a verdict says; in the order of the legend.
COLORS = {"best or tied": panels.PALETTE[1], "behind": panels.PALETTE[0], ONCE: panels.FAINT_INK}
LONGEST = 30  # letters of a row's name
WIDE_RANGE = 20  # times the least value, from which on an axis is logarithmic


def draw_ranking(standings: Standings, ranked_by: Measure, measures: Sequence[Measure], title: str) -> "Figure":
    """One panel for each measure, rows in the order of the ranking; blue is best or tied with it, by that measure.

    The network without a quantizer is a dashed line; a row without values is left out.
    """
    rows = [one.row for one in standings.by(ranked_by) if one.rank is not None]
    names = [panels.clip(row, LONGEST) for row in rows]
    left = 0.5 + panels.LETTER_WIDTH * max(map(len, names), default=1)
    width = max(left + 5.7 * len(measures), 0.8 + panels.HEADLINE_LETTER_WIDTH * (len(title) + 1))
    figure = panels.new_figure(width, 2.6 + 0.36 * max(2, len(rows)), title)
    axes = panels.grid(figure, len(measures), len(measures), top=0.75, above=0.75, below=0.75, left=left, between=0.4)
    for ax, measure in zip(axes, measures, strict=True):
        _panel(ax, standings, measure, rows)
        ax.set_yticks(list(range(len(rows))), names[::-1] if ax is axes[0] else [""] * len(rows))
    return figure


def _panel(ax: "Axes", standings: Standings, measure: Measure, rows: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    values, found = standings.values(measure), {one.row: one for one in standings.by(measure)}
    handles: dict[str, Artist] = {}
    seen = []
    for place, row in enumerate(reversed(rows)):
        mean, error = mean_and_error(values[row])
        if math.isnan(mean):
            continue
        name = _verdict(found[row])
        color = COLORS[name]
        if not math.isnan(error):
            ax.plot([mean - 2 * error, mean + 2 * error], [place] * 2, color=color, linewidth=2.6, alpha=0.5, zorder=2)
        dot = ax.plot(mean, place, marker="o", markersize=9, color=color, linestyle="none", zorder=3)[0]
        handles.setdefault(name, dot)
        seen.append(mean)
    for row in (name for name in standings.rows if standings.study.rows[name].bound):
        bound = mean_and_error(values[row])[0]
        if not math.isnan(bound):
            handles[row] = ax.axvline(bound, color=panels.FAINT_INK, linewidth=1.3, linestyle=(0, (5, 4)), zorder=1)
    if seen and min(seen) > 0 and max(seen) > WIDE_RANGE * min(seen):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel(f"{measure.heading} ({measure.better} is better)")
    panels.finish(ax, {name: handles[name] for name in [*COLORS, *handles] if name in handles}, measure.label)


def _verdict(standing: Standing) -> str:
    if standing.is_leading:
        return "best or tied"
    return ONCE if standing.verdict.startswith(ONCE) else "behind"
