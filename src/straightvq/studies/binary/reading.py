"""What tables, pictures and sentences read off the values of the study."""

import pandas as pd

from straightvq.nn.slots.estimators.reste import Secant
from straightvq.studies.binary.estimators import ENDS, METHODS, rectified
from straightvq.studies.binary.training import ACCURACY, MSE
from straightvq.studies.report.tables import best_row, compare
from straightvq.studies.study import Measure

BEST = Measure(ACCURACY, "test accuracy", "higher", scale=100, digits=2, unit="%")
LEAST = Measure(MSE, "test error", "lower", scale=100, digits=2, unit="% of the variance")


def at_the_end(values: pd.DataFrame, experiment: str, measure: Measure) -> pd.DataFrame:
    """Seeds x estimators, in reported units; of the estimators that are there."""
    own = values[(values.experiment == experiment) & (values.series == measure.name)]
    found = own.pivot(index="source", columns="row", values="value")
    return found.reindex(columns=[row for row in METHODS if row in found]) * measure.scale


def course(values: pd.DataFrame, experiment: str, row: str, series: str) -> pd.DataFrame:
    """A series over the training: index ``at``, a column for each seed."""
    own = values[(values.experiment == experiment) & (values.row == row) & (values.series == series)]
    return own.pivot(index="at", columns="source", values="value")


def last(values: pd.DataFrame, experiment: str, series: str) -> pd.DataFrame:
    """A series in the last epoch, or the last part of the training: seeds x estimators."""
    own = values[(values.experiment == experiment) & (values.series == series)]
    found = own[own["at"] == own["at"].max()].pivot(index="source", columns="row", values="value")
    return found.reindex(columns=[row for row in METHODS if row in found])


def ends(found: pd.DataFrame, secant: Secant) -> dict[str, int]:
    """The rectified estimators that are there, with their powers at the end."""
    return {name: end for end in ENDS if (name := rectified(end, secant)) in found}


def top(found: pd.DataFrame, measure: Measure, secant: Secant, at: int = 3) -> str:
    """Whether the rectified estimator is best with a power of ``at`` at the end, in one sentence.

    Args:
        found: as `at_the_end` gives it.
        measure: what it is of.
        secant: of the estimator.
        at: one of `ENDS`; the paper says 3.
    """
    known, wanted = ends(found, secant), rectified(at, secant)
    if len(known) < 2 or wanted not in known:
        return ""
    values = found[list(known)]
    best = best_row(values, measure.better)
    start = "With the continuous factor" if secant == "continuous" else "With the authors' secant"
    if best != wanted:
        gap = compare(values[wanted], values[best], measure.better)
        told = {"tied": "tied with it", "": "not repeated often enough to tell"}.get(gap.verdict, gap.verdict)
        return (
            f"{start} there is no top at o_end = {at}: the best mean is that of o_end = {known[best]}, and {at} "
            f"is {told} ({gap.text(measure)})."
        )
    verdicts = {end: compare(values[row], values[wanted], measure.better).verdict for row, end in known.items()}
    level = [str(end) for end, verdict in verdicts.items() if end != at and verdict != "worse"]
    if not level:
        return f"{start} the top is at o_end = {at}: every other one is worse by more than two standard errors."
    return f"{start} the best mean is that of o_end = {at}, but {', '.join(level)} cannot be told from it."
