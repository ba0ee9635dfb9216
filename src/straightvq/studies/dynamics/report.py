"""The report of the study: its tables, and what makes and writes it."""

import functools
import math
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from straightvq.diagnostics import save
from straightvq.io import write_text
from straightvq.studies.dynamics import experiments as ex
from straightvq.studies.dynamics.pictures import PICTURES
from straightvq.studies.dynamics.reading import (
    codes_ends,
    course,
    largest_difference,
    largest_of_all,
    mean_field,
    plateau_ends,
    plateau_fit,
    rows,
    simulated,
)
from straightvq.studies.dynamics.settings import Settings
from straightvq.studies.parts import Parts
from straightvq.studies.report.tables import NONE, Table
from straightvq.studies.reproduction import guarded
from straightvq.studies.study import Size


def run_dynamics(folder: Path, title: str, about: str, size: Size) -> None:
    """Computes what is missing of the study and writes ``report.md``, ``report.tex``, ``results.csv`` and pictures.

    Finished parts are in ``runs`` and not computed again, unless the size's settings have changed. A study that is
    stopped reports the rows that are finished.

    Args:
        folder: of the results.
        title, about: headline and introduction of the report.
        size: its ``config`` and ``seeds`` are read.

    Raises:
        ValueError, TypeError: for impossible settings, and for a file that is no result.
    """
    settings = Settings.of(size.config, size.seeds)
    parts = Parts(folder, ex.plan(settings))
    with guarded(parts):
        try:
            parts.run()
        finally:
            if parts:
                command = shlex.join(["straightvq", "reproduce", "dynamics", "--size", size.name])
                how = f"Size `{size.name}`: {size.about.strip()}\n`{command}`. {parts.origin()}."
                _write(folder, [f"# {title}", about.strip(), how], parts.table())


def _write(folder: Path, head: list[str], values: pd.DataFrame) -> None:
    """Whatever is there of the experiments."""
    write_text(folder / "results.csv", values.to_csv(index=False, float_format="%.6g"))
    page, tables = list(head), []
    for name, (heading, text) in SECTIONS.items():
        if not len(rows(values, name)):
            continue
        save(PICTURES[name](values), folder / f"{name}.png")
        page += [f"## {heading}", textwrap.fill(text, 120, break_on_hyphens=False)]
        if name in TABLES:
            tables.append(TABLES[name](values))
            page += [tables[-1].markdown(), tables[-1].note]
        page.append(f"![{heading}]({name}.png)")
    page.append("Every value: `results.csv`.")
    write_text(folder / "report.md", "\n\n".join(filter(None, page)) + "\n")
    write_text(folder / "report.tex", "\n\n".join(table.latex() for table in tables) + "\n")


# --- tables -----------------------------------------------------------------------------------------------------------


def courses_table(values: pd.DataFrame, experiment: str = ex.COURSES) -> Table:
    own = values[values.experiment == experiment]
    times = [time for time in ex.TIMES if time <= own["at"].max()]
    header = ["quantizer", "by", *(f"τ = {time:g}" for time in times), "largest difference", "3 / √d"]
    lines = []
    for row in rows(values, experiment):
        known = [s for s in (ex.CLOSED, ex.DENSITY, ex.PARTICLES) if len(course(values, experiment, row, s))]
        limit = mean_field(values, experiment, row)
        for number, source in enumerate(known):
            found = course(values, experiment, row, source)
            gap = NONE if not number else f"{(found[0] - limit).abs().max():.3f}"
            lines.append([row if not number else "", source, *_at(found, times), gap, ""])
        for d in simulated(values, experiment):
            found = course(values, experiment, row, ex.SIMULATION, d)
            off = largest_difference(values, experiment, row, d)
            lines.append(["", f"SGD, d = {d:,}", *_at(found, times), f"{off:.3f}", f"{3 / math.sqrt(d):.3f}"])
    note = f"The largest difference of SGD of all is {largest_of_all(values, experiment):.2f} / √d."
    return Table("Generalization error", header, lines, note)


def plateau_table(values: pd.DataFrame) -> Table:
    ends = plateau_ends(values)
    (d,) = simulated(values, ex.PLATEAU)
    seeds = [name for name in ends if isinstance(name, int)]
    lines = [
        [
            f"{reach:g}",
            f"{reach / ex.PLATEAU_STEPS_TO_THE_END:g}",
            *(_spread(line[by], 2) for by in ([ex.CLOSED], [ex.DENSITY], seeds)),
        ]
        for reach, line in ends.iterrows()
    ]
    return Table("Plateau", ["range", "step", "closed form", "density", f"SGD, d = {d:,}"], lines, _fitted(ends))


def _fitted(ends: pd.DataFrame) -> str:
    slope, intercept = plateau_fit(ends)
    if math.isnan(slope):
        return ""
    drift = 1 / (2 * 0.05 * ex.PLATEAU_STEPS_TO_THE_END)
    return (
        f"A straight line through the density's: τ = {slope:.3f} range {intercept:+.2f}. Drift alone, without the "
        f"spread of the weights, gives {drift:.3f} range."
    )


def rest_table(values: pd.DataFrame) -> Table:
    own = values[values.experiment == ex.REST]
    shown = [reach for reach in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0) if reach in set(own["at"])]
    lines = [[row, *_at(course(values, ex.REST, row, ex.CLOSED), shown)] for row in rows(values, ex.REST)]
    return Table("Error at rest", ["quantizer", *(f"range {reach:g}" for reach in shown)], lines)


def rates_table(values: pd.DataFrame) -> Table:
    (d,) = simulated(values, ex.RATES)
    rates = list(ex.SPEED_RATES)
    header = ["quantizer", "largest rate", "by", *(f"η = {rate:g}" for rate in rates)]
    lines = []
    for row in rows(values, ex.RATES):
        largest = float(course(values, ex.STEADY, row, ex.CLOSED)[0].iloc[0])
        shown = "any" if math.isinf(largest) else f"{largest:.2f}"
        closed, runs = course(values, ex.RATES, row, ex.CLOSED), course(values, ex.RATES, row, ex.SIMULATION, d)
        lines.append([row, shown, ex.CLOSED, *_at(closed, rates)])
        lines.append(["", "", f"SGD, d = {d:,}", *_at(runs, rates)])
    return Table("Error at the end, by the rate", header, lines)


def codes_table(values: pd.DataFrame) -> Table:
    own = values[values.experiment == ex.CODES]
    (d,) = simulated(values, ex.CODES)
    times = [time for time in (4.0, 8.0, 12.0) if time <= own["at"].max()]
    header = ["teacher", "codes", "plateau ends at τ", "SGD", *(s for t in times for s in (f"τ = {t:g}", "SGD"))]
    lines = []
    for name in ex.TEACHERS:
        there = [row for row in rows(values, ex.CODES) if row.endswith(f"; {name}")]
        for number, row in enumerate(there):
            title = row.partition("; ")[0]
            limit, ends = codes_ends(values, row)
            found = [
                text
                for pair in zip(
                    _at(course(values, ex.CODES, row, ex.PARTICLES), times),
                    _at(course(values, ex.CODES, row, ex.SIMULATION, d), times),
                    strict=True,
                )
                for text in pair
            ]
            off = f"{largest_difference(values, ex.CODES, row, d):.3f}"
            lines.append(
                [name if not number else "", title, _spread(pd.Series([limit]), 2), _spread(ends, 2), *found, off]
            )
    note = f"SGD with d = {d:,}; the largest difference of all is {largest_of_all(values, ex.CODES):.2f} / √d."
    return Table("Codes that move", [*header, "largest difference"], lines, note)


def _at(found: pd.DataFrame, times: list[float]) -> list[str]:
    return [_spread(found.loc[time], 3) if time in found.index else NONE for time in times]


def _spread(values: "pd.Series[float]", digits: int) -> str:
    """Mean and standard deviation of the seeds; one that never came to it counts as such."""
    values = values.dropna()
    if np.isinf(values).any():
        return "never" if np.isinf(values).all() else f"never in {int(np.isinf(values).sum())} of {len(values)}"
    mean = f"{values.mean():.{digits}f}" if abs(values.mean()) < 1e4 else f"{values.mean():.1e}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {values.std():.{digits}f}" if values.std() < 1e4 else f"{mean} ± {values.std():.0e}"


TABLES: dict[str, Callable[[pd.DataFrame], Table]] = {
    ex.COURSES: courses_table,
    ex.PLATEAU: plateau_table,
    ex.REST: rest_table,
    ex.RATES: rates_table,
    ex.ESTIMATORS: functools.partial(courses_table, experiment=ex.ESTIMATORS),
    ex.CODES: codes_table,
}

# --- what stands above each -------------------------------------------------------------------------------------------

SECTIONS = {
    ex.COURSES: (
        "Courses",
        "The error over time, by SGD in d dimensions (mean ± standard deviation over the seeds) and by its limit. The "
        "limit is computed in two ways, by independent particles and by an equation for the density of the weights, "
        "and without quantized weights in closed form. The largest difference is that of the mean of the seeds from "
        "the first line of the quantizer, over all times. With few bits the error is not monotonic: weights "
        "overshoot, and those whose target is no code come to rest at a threshold, now one code and now the other.",
    ),
    ex.HISTOGRAM: (
        "Where the weights go",
        "The weights with 2 bits and range 2, whose codes are ±2/3 and ±2: bars are SGD, the line is the density. The "
        "target, 1, is no code, and the weights gather at the threshold between 2/3 and 2, at 4/3. The paper has this "
        "figure for the same d, start, bits and range, at τ = 10, 25, 50 and 100; its rate is not known, so that the "
        "shapes alone compare.",
    ),
    ex.PLATEAU: (
        "The plateau",
        "A grid of 15 codes with one at 0, weights that start at it (standard deviation 0.05), η = 0.05. Nothing is "
        "learned until the first weights have walked half a step, and that takes as long as the grid is coarse. The "
        "plateau ends where the error is below 90 % of that at the start.",
    ),
    ex.REST: (
        "At rest",
        "The error in the end, exact for every rate, over the number of bits and the range: with a target of 1 and "
        "with targets from a standard normal distribution. Rate 0 is the limit of a slow rate, (b − w\\*)(w\\* − a) / "
        "2 between the codes a and b. This is the deviation from the unquantized model, whose error is 0. Where the "
        "target is a code it is 0; beyond the outermost code it is the distance to that.",
    ),
    ex.RATES: (
        "Large rates",
        "Without quantized weights training diverges from η = 2 / k₂ on, so that quantized inputs of a small range "
        "allow a larger rate. With quantized weights it never diverges, since the codes are bounded; the largest rate "
        "is the one up to which the student ends better than by answering 0. At η = 1 and more the weights spread "
        "over the whole grid.",
    ),
    ex.ESTIMATORS: (
        "Other estimators",
        "The same with other estimators of the library. The rectified estimator passes nothing beyond 1.5, and "
        "weights that start at less than −1.5 never learn. The rotation trick multiplies the gradient by |code| / "
        "|w|, at most 2: at a threshold the larger code is left sooner than the smaller one is, and the error at rest "
        "is another one.",
    ),
    ex.CODES: (
        "Codes that move",
        "Pairs of weights share nine codes, at first the square grid {−1.5, 0, 1.5}², and start near 0 (standard "
        "deviation 0.05). The codes move by the library's own updates: by the codebook loss, EMA, alternated; with "
        "the synchronised gradient; with a commitment loss. Speed 1: a code that owns all weights approaches their "
        "mean by a share of dτ. The teacher has the target (1, 1) for all pairs, or (±1, ±1) in equal parts. The "
        "limit is that of particles with the equations of `straightvq.studies.dynamics.codes`; SGD trains the layer "
        "itself.",
    ),
}
