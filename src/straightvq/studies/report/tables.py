"""The tables of a study: each row against the first and against the paper, in Markdown and LaTeX."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from straightvq.studies.results import FINAL, TUNE, Cell, of_cells
from straightvq.studies.study import Measure, Study

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table that can be written in both languages."""

    title: str
    header: list[str]  # the first column is text, the others are numbers
    rows: list[list[str]]  # what starts and ends with ``**`` is bold
    note: str = ""  # a sentence below it

    def markdown(self) -> str:
        head, *rows = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in [self.header, *self.rows])
        line = "|".join(["---", *["---:"] * (len(self.header) - 1)])
        return "\n".join([f"| {head} |", f"|{line}|", *(f"| {row} |" for row in rows)])

    def latex(self) -> str:
        r"""A ``tabular`` that needs no package.

        Example:
            >>> print(Table("A", ["row", "%"], [["x_1", "2 ± 1"]]).latex())
            % A
            \begin{tabular}{lr}
            \hline
            row & \% \\
            \hline
            x\_1 & 2 $\pm$ 1 \\
            \hline
            \end{tabular}
        """
        head, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in [self.header, *self.rows])
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"
        return "\n".join([f"% {self.title}", begin, r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"])


_MACROS = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "–": "--"}
)


def _tex(text: str) -> str:
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return rf"\textbf{{{_tex(text[2:-2])}}}"
    return text.translate(_MACROS).replace("(x ", r"($\times$ ")


@dataclass(frozen=True)
class Comparison:
    """One row against another, seed by seed, in reported units."""

    difference: float  # mean of the paired differences, nan if no seed is common
    error: float  # its standard error, nan with fewer than two
    ratio: float  # of the means over the common seeds
    verdict: str  # "better", "worse", "tied", or "" where it cannot be told

    def text(self, measure: Measure) -> str:
        if math.isnan(self.difference):
            return NONE
        text = f"{self.difference:+.{measure.digits}f}"
        text += "" if math.isnan(self.error) else f" ± {self.error:.{measure.digits}f}"
        return f"{text} (x {self.ratio:.2f})" if measure.compare == "ratio" and not math.isnan(self.ratio) else text


def compare(own: pd.Series, other: pd.Series, better: str) -> Comparison:
    """Paired differences of two rows, values by seed; "tied" is within two standard errors of zero.

    Example:
        >>> compare(pd.Series([3.0, 5.0]), pd.Series([1.0, 3.5]), "higher").verdict
        'better'
    """
    pairs = pd.DataFrame({"own": own, "other": other}).dropna()
    differences = pairs.own - pairs.other
    mean, error, base = differences.mean(), differences.sem(), pairs.other.mean()
    verdict = ""
    if better and len(pairs) > 1:
        verdict = "tied" if abs(mean) <= 2 * error else _side(mean, better)
    return Comparison(mean, error, pairs.own.mean() / base if base else math.nan, verdict)


def _side(difference: float, better: str) -> str:
    return "better" if (difference > 0) == (better == "higher") else "worse"


def spread(values: pd.Series, digits: int) -> str:
    """Mean and standard deviation."""
    values = values.dropna()
    mean = _number(values.mean(), digits)
    return f"{mean} ± {values.std():.{digits}f}" if len(values) > 1 else mean


def _number(value: float, digits: int) -> str:
    return NONE if math.isnan(value) else f"{value:.{digits}f}"


class MainTable:
    """One network on one set: all rows, the paper's values beside ours; what failed or was tuned counts nowhere."""

    def __init__(self, study: Study, cells: Sequence[Cell], results: pd.DataFrame) -> None:
        self.study, self.headline = study, study.headline
        self.cell, self.names = cells[0], [cell.row for cell in cells]
        own = of_cells(results, cells)
        self.results = own[(own.kind == FINAL) & (own.error == "")]
        paper = pd.DataFrame({name: self._quoted(name) for name in self.names}).T
        self.paper = paper.reindex(columns=[measure.label for measure in study.measures.values()]).astype(float)
        self.values = self._by_seed(self.headline)

    def _quoted(self, row: str) -> pd.Series:
        """The paper's values of a row, given by network or by set."""
        known = self.study.rows[row].paper
        return pd.Series(known.get(self.cell.model) or known.get(self.cell.set) or {}, dtype=float)

    def _by_seed(self, measure: Measure) -> pd.DataFrame:
        """Seeds x rows, in reported units; nan where there is no value."""
        results = self.results.reindex(columns=["number", "row", measure.name])
        values = results.pivot(index="number", columns="row", values=measure.name).reindex(columns=self.names)
        return values.astype(float) * measure.scale

    def table(self) -> Table:
        columns = [("row", self.names)]
        for measure in self.study.measures.values():
            values, quoted = self._by_seed(measure), self.paper[measure.label]
            columns.append((measure.heading, [spread(values[name], measure.digits) for name in self.names]))
            if quoted.notna().any():
                columns.append(("paper", [_number(value, measure.digits) for value in quoted]))
        first, *others = self.names
        if others:
            header = [f"against {first}", "verdict", "paper", "direction"]
            lines = [[""] * len(header), *(self._compared(name, first) for name in others)]
            compared = list(zip(header, map(list, zip(*lines, strict=True)), strict=True))
            columns += compared if self.paper.notna().any(axis=None) else compared[:2]
        seconds = self.results.groupby("row").seconds.agg(["count", "mean"]).reindex(self.names)
        columns.append(("seeds", [_number(count, 0) for count in seconds["count"].fillna(0)]))
        columns.append(("s per run", [_number(mean, 0) for mean in seconds["mean"]]))
        methods = [name for name in self.names if not self.study.rows[name].bound]
        pairs = [(name, other) for name in self.names for other in self.study.rows[name].against]
        notes = [best_rows(self.values[methods], self.headline), *(self._pair(*pair) for pair in pairs)]
        rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
        return Table(self.cell.place, [name for name, _ in columns], rows, " ".join(filter(None, notes)))

    def _compared(self, name: str, other: str) -> list[str]:
        """Difference to another row and verdict; the paper's difference and whether ours goes its way."""
        found = compare(self.values[name], self.values[other], self.headline.better)
        theirs, base = self.paper[self.headline.label][[name, other]]
        line = [found.text(self.headline), found.verdict]
        if math.isnan(theirs - base):
            return [*line, "", ""]
        paper = Comparison(theirs - base, math.nan, theirs / base if base else math.nan, "")
        return [*line, paper.text(self.headline), self._direction(found.verdict, theirs - base)]

    def _direction(self, verdict: str, theirs: float) -> str:
        """Whether ours goes where the paper's goes, if that goes anywhere."""
        if not verdict or theirs == 0:
            return NONE
        if verdict == "tied":
            return "tied here"
        return "agrees" if verdict == _side(theirs, self.headline.better) else "disagrees"

    def _pair(self, name: str, other: str) -> str:
        """One sentence on a row and another one, not the first, that it is to be compared with."""
        difference, verdict, paper, direction = self._compared(name, other) if other in self.names else [NONE] * 4
        if difference == NONE:
            return ""
        text = f"{name} against {other}: {difference}{f', {verdict}' if verdict else ''}"
        # Two forms of one row of the paper's have the same values, which say nothing.
        is_told = paper and self.paper[self.headline.label][[name, other]].nunique() > 1
        return text + (f" (paper {paper}{f': {direction}' if verdict else ''})." if is_told else ".")


def best_rows(values: pd.DataFrame, headline: Measure) -> str:
    """Which row is best on average, and which are tied with it over their common seeds.

    ``values`` are seeds x rows, nan where there is none.
    """
    values = values.dropna(axis=1, how="all")
    if not headline.better or values.shape[1] < 2:
        return ""
    best = best_row(values, headline.better)
    verdicts = {row: compare(values[row], values[best], headline.better).verdict for row in values if row != best}
    unknown = [row for row, verdict in verdicts.items() if not verdict]
    text = f"Best {headline.label}: {best}"
    if len(unknown) < len(verdicts):
        text += f"; tied with it: {', '.join(row for row in verdicts if verdicts[row] == 'tied') or 'none'}"
    return text + (f"; too few common seeds to compare it with: {', '.join(unknown)}." if unknown else ".")


def best_row(values: pd.DataFrame, better: str) -> str:
    """The row of the best average over the seeds which all repeated rows have, if there are two.

    A row must not win by the seeds that the others lack. ``values`` are seeds x rows; every row has at least one.
    """
    is_repeated = values.count() > 1  # one run proves little
    repeated = values.loc[:, is_repeated] if is_repeated.any() else values
    common = repeated.dropna()
    means = (common if len(common) > 1 else repeated).mean()
    return str(means.idxmax() if better == "higher" else means.idxmin())


def tuning_table(study: Study, cells: Sequence[Cell], results: pd.DataFrame) -> Table:
    """What each row tried and found, the best in bold."""
    tried = results[results.kind == TUNE].reindex(columns=["set", "model", "row", "setting", study.tune.by])
    rows = []
    for cell in cells:
        own = of_cells(tried, [cell])
        values = own[study.tune.by].astype(float)
        found = ["failed" if math.isnan(value) else f"{value:.4g}" for value in values]
        texts = [f"{setting}: {text}" for setting, text in zip(own.setting, found, strict=True)]
        if values.notna().any():
            best = int(values.argmax() if study.headline.better == "higher" else values.argmin())
            texts[best] = f"**{texts[best]}**"
        rows.append([cell.row, *texts])
    width = max(map(len, rows))
    rows = [row + [NONE] * (width - len(row)) for row in rows]
    return Table(f"{cells[0].place}, tuning", ["row", *[""] * (width - 1)], rows)
