"""Who is where: rows ranked by a measure, each with its paired difference to the best and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from straightvq.studies.report.tables import Comparison, best_row, compare
from straightvq.studies.results import FINAL
from straightvq.studies.study import Measure, Study

BEST, TIED, ONCE = "best", "tied", "too few seeds"


@dataclass(frozen=True)
class Standing:
    """Where one row is.

    Attributes:
        row: its name.
        rank: 1 for the best; None for a row without values, and for one that is a bound.
        to_best: its values less those of the best, in pairs of one seed; None for the best itself, and without rank.
        verdict: "best"; "tied", which is within two standard errors; "worse"; "better", of a row that wins the seeds it
            shares with the best; "too few seeds" to tell; what failed, where anything did.
    """

    row: str
    rank: int | None
    to_best: Comparison | None
    verdict: str

    @property
    def is_leading(self) -> bool:
        """Whether nothing says that another row is better."""
        return self.verdict.split(";")[0] in (BEST, TIED)


class Standings:
    """The finished runs of a comparison on one set, ranked by any of its measures.

    Args:
        study: whose rows are ranked.
        results: of its runs, as `straightvq.studies.results.table` makes it.
        seeds: how many each row is to have.
    """

    def __init__(self, study: Study, results: pd.DataFrame, seeds: int) -> None:
        finals = results[results.kind == FINAL]
        self.study, self.seeds, self.rows = study, seeds, list(study.rows)
        self.finals, self.failed = finals[finals.error == ""], finals[finals.error != ""]

    def values(self, measure: Measure) -> pd.DataFrame:
        """Seeds x rows in reported units, nan where there is none."""
        found = self.finals.reindex(columns=["number", "row", measure.name])
        values = found.pivot(index="number", columns="row", values=measure.name).reindex(columns=self.rows)
        return values.astype(float) * measure.scale

    def by(self, measure: Measure) -> list[Standing]:
        """All rows, best first; then those without values, then the bounds."""
        values = self.values(measure)
        methods = [name for name in self.rows if not self.study.rows[name].bound]
        ranked = values[methods].dropna(axis=1, how="all")
        order = list(ranked.mean().sort_values(ascending=measure.better == "lower", kind="stable").index)
        if order:
            best = best_row(ranked, measure.better)
            order = [best, *(name for name in order if name != best)]
        standings = []
        for rank, name in enumerate(order, 1):
            found = None if rank == 1 else compare(ranked[name], ranked[order[0]], measure.better)
            verdict = BEST if found is None else found.verdict or ONCE
            standings.append(Standing(name, rank, found, self._with_failures(name, verdict)))
        rest = [name for name in methods if name not in order] + [name for name in self.rows if name not in methods]
        return standings + [Standing(name, None, None, self._with_failures(name, "")) for name in rest]

    def _with_failures(self, row: str, verdict: str) -> str:
        errors = self.failed[self.failed.row == row].error
        if not len(errors):
            return verdict
        text = f"{len(errors)} of {self.seeds} seeds failed: {errors.iloc[0]}"
        return f"{verdict}; {text}" if verdict else text


def mean_and_error(values: Sequence[float] | pd.Series) -> tuple[float, float]:
    """Mean and its standard error, nan with fewer than two values.

    Example:
        >>> mean_and_error([1.0, 2.0, 3.0])
        (2.0, 0.5773502691896258)
    """
    series = pd.Series(values, dtype=float).dropna()
    return float(series.mean()), float(series.sem()) if len(series) > 1 else math.nan
