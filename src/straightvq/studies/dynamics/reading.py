"""What tables and pictures read off the values of the study."""

import math

import numpy as np
import pandas as pd

from straightvq.studies.dynamics import experiments as ex


def rows(values: pd.DataFrame, experiment: str) -> list[str]:
    """Those of an experiment that are there, in their order."""
    return list(values[values.experiment == experiment].row.unique())


def course(values: pd.DataFrame, experiment: str, row: str, source: str, d: int = 0) -> pd.DataFrame:
    """The values of one part, index ``at``, a column for each series."""
    own = values[(values.experiment == experiment) & (values.row == row) & (values.source == source) & (values.d == d)]
    return own.pivot(index="at", columns="series", values="value")


def mean_field(values: pd.DataFrame, experiment: str, row: str) -> "pd.Series[float]":
    """The limit: closed form if there is one, else the density's, else the particles'."""
    for source in (ex.CLOSED, ex.DENSITY, ex.PARTICLES):
        found = course(values, experiment, row, source)
        if len(found):
            return found[0]
    raise KeyError((experiment, row))


def simulated(values: pd.DataFrame, experiment: str) -> list[int]:
    """Numbers of weights of an experiment's simulations."""
    own = values[(values.experiment == experiment) & (values.source == ex.SIMULATION)]
    return sorted(own.d.unique().tolist())


def largest_difference(values: pd.DataFrame, experiment: str, row: str, d: int) -> float:
    """Of the mean of the seeds from the limit, over all times."""
    runs = course(values, experiment, row, ex.SIMULATION, d).mean(axis=1)
    limit = mean_field(values, experiment, row)
    return float((runs - np.interp(runs.index, limit.index, limit)).abs().max())


def largest_of_all(values: pd.DataFrame, experiment: str) -> float:
    """Of the mean of the seeds from the limit, in units of ``1 / sqrt(d)``."""
    dims = simulated(values, experiment)
    off = [
        largest_difference(values, experiment, row, d) * math.sqrt(d) for row in rows(values, experiment) for d in dims
    ]
    return max(off)


def plateau_ends(values: pd.DataFrame) -> pd.DataFrame:
    """Index reach; closed form, density and each seed of the simulations."""
    lines: dict[float, dict[str | int, float]] = {}
    (d,) = simulated(values, ex.PLATEAU)
    for row in rows(values, ex.PLATEAU):
        closed = course(values, ex.PLATEAU, row, ex.CLOSED)[0]
        density = course(values, ex.PLATEAU, row, ex.DENSITY)[0]
        runs = course(values, ex.PLATEAU, row, ex.SIMULATION, d)
        line: dict[str | int, float] = {ex.CLOSED: float(closed.iloc[0])}
        line[ex.DENSITY] = ex.left_plateau(density.index, density)
        lines[float(closed.index[0])] = line | {int(seed): ex.left_plateau(runs.index, runs[seed]) for seed in runs}
    return pd.DataFrame(lines).T


def plateau_fit(ends: pd.DataFrame) -> tuple[float, float]:
    """Slope and intercept of the density's plateaus over the range; nan where too few of them ended."""
    known = ends[ex.DENSITY][np.isfinite(ends[ex.DENSITY])]
    if len(known) < 2:
        return math.nan, math.nan
    slope, intercept = np.polyfit(known.index.to_numpy(dtype=float), known.to_numpy(), 1)
    return float(slope), float(intercept)


def codes_ends(values: pd.DataFrame, row: str) -> tuple[float, "pd.Series[float]"]:
    """When the plateau ends: the mean field's, and that of each seed."""
    (d,) = simulated(values, ex.CODES)
    limit, runs = course(values, ex.CODES, row, ex.PARTICLES)[0], course(values, ex.CODES, row, ex.SIMULATION, d)
    ends = pd.Series({seed: ex.left_plateau(runs.index, runs[seed]) for seed in runs}, dtype=float)
    return ex.left_plateau(limit.index, limit), ends
