"""The tables of a study: each row against the first and against the paper, in Markdown and LaTeX."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from straightvq.studies.results import of_cells
from straightvq.studies.run import FINAL, TUNE, Cell
from straightvq.studies.study import Measure, Study

NONE = "–"


@dataclass(frozen=True)
class Comparison:
    """One row against another, seed by seed, in reported units.

    Attributes:
        difference: mean of the paired differences, nan if no seed is common.
        error: its standard error, nan with fewer than two.
        ratio: of the means over the common seeds.
        verdict: "better", "worse", "tied", or "" where it cannot be told.
    """

    difference: float
    error: float
    ratio: float
    verdict: str


def compare(own: pd.Series, other: pd.Series, better: str) -> Comparison:
    """Paired differences over the seeds that both have; "tied" is within two standard errors of zero.

    Args:
        own: values of the row by seed.
        other: values of the other row by seed.
        better: "higher" or "lower", or "" for no verdict.

    Example:
        >>> compare(pd.Series([3.0, 5.0]), pd.Series([1.0, 3.5]), "higher").verdict
        'better'
        >>> compare(pd.Series([3.0, 1.0]), pd.Series([1.0, 2.0]), "higher").verdict
        'tied'
    """
    pairs = pd.DataFrame({"own": own, "other": other}).dropna()
    differences = pairs.own - pairs.other
    mean, error, base = differences.mean(), differences.sem(), pairs.other.mean()
    verdict = ""
    if better and len(pairs) > 1:
        verdict = "better" if (mean > 0) == (better == "higher") else "worse"
        verdict = "tied" if abs(mean) <= 2 * error else verdict
    return Comparison(mean, error, pairs.own.mean() / base if base else math.nan, verdict)


def spread(values: pd.Series, digits: int) -> str:
    """Mean and standard deviation.

    Example:
        >>> spread(pd.Series([1.0, 2.0, 3.0]), 1), spread(pd.Series([1.25]), 1), spread(pd.Series([]), 1)
        ('2.0 ± 1.0', '1.2', '–')
    """
    values = values.dropna()
    if values.empty:
        return NONE
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.{digits}f}"


@dataclass(frozen=True)
class Table:
    """A table that can be written in both languages.

    Attributes:
        title: above it.
        header: one cell per column; the first column is text, the others are numbers.
        rows: of cells; what starts and ends with ``**`` is bold.
        note: a sentence below it, or "".
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """A table whose first column is on the left, the others on the right.

        Example:
            >>> print(Table("A", ["row", "%"], [["a|b", "1"]]).markdown())
            | row | % |
            |---|---:|
            | a\\|b | 1 |
        """
        head, *rows = (" | ".join(cell.replace("|", r"\|") for cell in row) for row in [self.header, *self.rows])
        line = "|".join(["---", *["---:"] * (len(self.header) - 1)])
        return "\n".join([f"| {head} |", f"|{line}|", *(f"| {row} |" for row in rows)])

    def latex(self) -> str:
        """A ``tabular`` that needs no package.

        Example:
            >>> print(Table("A", ["row", "%"], [["x_1", "2 ± 1"]]).latex())
            % A
            \\begin{tabular}{lr}
            \\hline
            row & \\% \\\\
            \\hline
            x\\_1 & 2 $\\pm$ 1 \\\\
            \\hline
            \\end{tabular}
        """
        head, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in [self.header, *self.rows])
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"
        return "\n".join([f"% {self.title}", begin, r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"])


def main_table(study: Study, cells: Sequence[Cell], results: pd.DataFrame) -> Table:
    """One network on one set: all rows, the paper's values beside ours.

    Args:
        study: what is compared.
        cells: the rows.
        results: of runs, as of `straightvq.studies.results.table`; what failed or was tuned counts nowhere.
    """
    return _MainTable(study, cells, results).table()


class _MainTable:
    def __init__(self, study: Study, cells: Sequence[Cell], results: pd.DataFrame) -> None:
        self.study, self.headline = study, study.headline
        self.place, self.names = cells[0].place, [cell.row for cell in cells]
        finals = of_cells(results, cells, FINAL)
        self.results = finals[finals.error == ""]
        paper = pd.DataFrame({name: self._quoted(name) for name in self.names}).T
        self.paper = paper.reindex(columns=[measure.label for measure in study.measures.values()]).astype(float)
        self.values = self._by_seed(self.headline)

    def _quoted(self, row: str) -> pd.Series:
        """The paper's values of a row, given by network or by set."""
        known = self.study.rows[row].paper
        return pd.Series(known.get(self.place[1]) or known.get(self.place[0]) or {}, dtype=float)

    def _by_seed(self, measure: Measure) -> pd.DataFrame:
        """Seeds x rows, in reported units; nan where there is no value."""
        results = self.results.reindex(columns=["number", "row", measure.name])
        values = results.pivot(index="number", columns="row", values=measure.name).reindex(columns=self.names)
        return values.astype(float) * measure.scale

    def table(self) -> Table:
        header, columns = ["row"], [self.names]
        for measure in self.study.measures.values():
            values, quoted = self._by_seed(measure), self.paper[measure.label]
            header.append(measure.heading)
            columns.append([spread(values[name], measure.digits) for name in self.names])
            if quoted.notna().any():
                header.append("paper")
                columns.append([NONE if math.isnan(v) else f"{v:.{measure.digits}f}" for v in quoted])
        if len(self.names) > 1:
            first = self.names[0]
            header += [f"against {first}", "verdict"]
            width = 2
            if self.paper.notna().any(axis=None):
                header += ["paper", "direction"]
                width = 4
            lines = [[""] * width, *(self._compared(name, first)[:width] for name in self.names[1:])]
            columns += map(list, zip(*lines, strict=True))
        seconds = self.results.groupby("row").seconds.agg(["count", "mean"]).reindex(self.names)
        header += ["seeds", "s per run"]
        columns += [[f"{count:.0f}" for count in seconds["count"].fillna(0)]]
        columns += [[NONE if math.isnan(mean) else f"{mean:.0f}" for mean in seconds["mean"]]]
        methods = [name for name in self.names if not self.study.rows[name].bound]
        pairs = [(name, other) for name in self.names for other in self.study.rows[name].against]
        notes = [best_rows(self.values[methods], self.headline), *(self._pair(*pair) for pair in pairs)]
        rows = [list(row) for row in zip(*columns, strict=True)]
        return Table(" on ".join(reversed(self.place)), header, rows, " ".join(note for note in notes if note))

    def _compared(self, name: str, other: str) -> list[str]:
        """Difference to another row and verdict; the paper's difference and whether ours goes its way."""
        found = compare(self.values[name], self.values[other], self.headline.better)
        theirs, base = self.paper[self.headline.label][[name, other]]
        line = [self._difference(found.difference, found.error, found.ratio), found.verdict]
        if math.isnan(theirs - base):
            return [*line, "", ""]
        paper = self._difference(theirs - base, math.nan, theirs / base if base else math.nan)
        return [*line, paper, _direction(self.headline, found, theirs - base)]

    def _difference(self, difference: float, error: float, ratio: float) -> str:
        if math.isnan(difference):
            return NONE
        text = f"{difference:+.{self.headline.digits}f}"
        text += "" if math.isnan(error) else f" ± {error:.{self.headline.digits}f}"
        return text if self.headline.compare != "ratio" or math.isnan(ratio) else f"{text} (x {ratio:.2f})"

    def _pair(self, name: str, other: str) -> str:
        """One sentence on a row and another one, not the first, that it is to be compared with."""
        if other not in self.names:
            return ""
        difference, verdict, paper, direction = self._compared(name, other)
        if difference == NONE:
            return ""
        text = f"{name} against {other}: {difference}{f', {verdict}' if verdict else ''}"
        # Two forms of one row of the paper's have the same values, which say nothing.
        is_told = paper and len(set(self.paper[self.headline.label][[name, other]])) > 1
        return text + (f" (paper {paper}{f': {direction}' if verdict else ''})." if is_told else ".")


def _direction(headline: Measure, found: Comparison, theirs: float) -> str:
    """Whether ours goes where the paper's goes, if that goes anywhere."""
    if not found.verdict or theirs == 0:
        return NONE
    if found.verdict == "tied":
        return "tied here"
    expected = "better" if (theirs > 0) == (headline.better == "higher") else "worse"
    return "agrees" if found.verdict == expected else "disagrees"


def best_rows(values: pd.DataFrame, headline: Measure) -> str:
    """Which row is best on average, and which are tied with it over their common seeds.

    The average is that over the seeds which all repeated rows have, if there are two: a row must not win by the seeds
    that the others lack.

    Args:
        values: seeds x rows, nan where there is none.
        headline: what is compared; without a better side nothing is best.

    Example:
        >>> accuracy = Measure("accuracy", "accuracy", better="higher")
        >>> best_rows(pd.DataFrame({"a": [1.0, 1.2], "b": [3.0, 4.0], "c": [2.0, 4.5]}), accuracy)
        'Best accuracy: b; tied with it: c.'
    """
    values = values.dropna(axis=1, how="all")
    if not headline.better or values.shape[1] < 2:
        return ""
    is_repeated = values.count() > 1  # one run proves little
    repeated = values.loc[:, is_repeated] if is_repeated.any() else values
    common = repeated.dropna()
    means = (common if len(common) > 1 else repeated).mean()
    best = means.idxmax() if headline.better == "higher" else means.idxmin()
    verdicts = {row: compare(values[row], values[best], headline.better).verdict for row in values if row != best}
    unknown = [row for row, verdict in verdicts.items() if not verdict]
    text = f"Best {headline.label}: {best}"
    if len(unknown) < len(verdicts):
        text += f"; tied with it: {', '.join(row for row in verdicts if verdicts[row] == 'tied') or 'none'}"
    return text + (f"; too few common seeds to compare it with: {', '.join(unknown)}." if unknown else ".")


def tuning_table(study: Study, cells: Sequence[Cell], results: pd.DataFrame) -> Table:
    """What each row tried and found, the best in bold."""
    lines = []
    for cell in cells:
        tried = of_cells(results, [cell], TUNE).reindex(columns=["setting", study.tune.by])
        values = tried[study.tune.by].astype(float)
        found = ["failed" if math.isnan(value) else f"{value:.4g}" for value in values]
        texts = [f"{setting}: {text}" for setting, text in zip(tried.setting, found, strict=True)]
        if values.notna().any():
            best = int(values.argmax() if study.headline.better == "higher" else values.argmin())
            texts[best] = f"**{texts[best]}**"
        lines.append([cell.row, *texts])
    width = max(map(len, lines))
    rows = [line + [NONE] * (width - len(line)) for line in lines]
    return Table(f"{cells[0].model} on {cells[0].set}, tuning", ["row", *[""] * (width - 1)], rows)


_MACROS = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"±": r"$\pm$", "–": "--"}
)


def _tex(text: str) -> str:
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return rf"\textbf{{{_tex(text[2:-2])}}}"
    return text.translate(_MACROS).replace("(x ", r"($\times$ ")
