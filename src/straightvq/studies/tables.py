"""The tables of a study: each row against the first and against the paper, in Markdown and LaTeX."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from straightvq.studies.results import Findings, Result
from straightvq.studies.run import FINAL, TUNE, Cell
from straightvq.studies.study import Measure, Study

__all__ = ["Comparison", "Table", "best_rows", "compare", "main_table", "spread", "tuning_table"]

NONE = "–"


@dataclass(frozen=True)
class Comparison:
    """A row against the first one, seed by seed.

    Attributes:
        difference: mean of the paired differences, nan if no seed is common.
        error: its standard error, nan with fewer than two.
        verdict: "better", "worse", "tied", or "" where it cannot be told.
    """

    difference: float
    error: float
    verdict: str


def compare(own: Mapping[int, float], first: Mapping[int, float], better: str) -> Comparison:
    """Paired differences over the seeds that both have; "tied" is within two standard errors of zero.

    Args:
        own: values of the row by seed.
        first: values of the first row by seed.
        better: "higher" or "lower", or "" for no verdict.

    Example:
        >>> compare({0: 3.0, 1: 5.0}, {0: 1.0, 1: 2.0}, "higher")
        Comparison(difference=2.5, error=0.5, verdict='better')
        >>> compare({0: 3.0, 1: 1.0}, {0: 1.0, 1: 2.0}, "higher").verdict
        'tied'
    """
    differences = [own[seed] - first[seed] for seed in sorted(own.keys() & first.keys())]
    if not differences:
        return Comparison(math.nan, math.nan, "")
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return Comparison(mean, math.nan, "")
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    if abs(mean) <= 2 * error:
        return Comparison(mean, error, "tied" if better else "")
    return Comparison(mean, error, ("better" if (mean > 0) == (better == "higher") else "worse") if better else "")


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation.

    Example:
        >>> spread([1.0, 2.0, 3.0], 1), spread([1.25], 1), spread([], 1)
        ('2.0 ± 1.0', '1.2', '–')
    """
    if not values:
        return NONE
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


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
        lines = [head, "|".join(["---", *["---:"] * (len(self.header) - 1)]), *rows]
        return "\n".join(f"| {line} |" if number != 1 else f"|{line}|" for number, line in enumerate(lines))

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
        body = [" & ".join(_tex(cell) for cell in row) + r" \\" for row in self.rows]
        columns = "l" + "r" * (len(self.header) - 1)
        head = " & ".join(_tex(cell) for cell in self.header) + r" \\"
        return "\n".join(
            [
                f"% {self.title}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\hline",
                head,
                r"\hline",
                *body,
                r"\hline",
                r"\end{tabular}",
            ]
        )


def main_table(study: Study, cells: Sequence[Cell], results: Findings) -> Table:
    """One network on one set: all rows, the paper's values beside ours."""
    headline = study.measures[0]
    by_row = {cell.row: [r for r in results.of(cell, FINAL) if not r.error] for cell in cells}
    paper = {cell.row: _paper(study, cell) for cell in cells}
    has_paper = any(paper.values())
    first = cells[0].row
    header = ["row"]
    for measure in study.measures:
        header += [measure.heading, *(["paper"] if _known(paper, measure) else [])]
    is_compared = len(cells) > 1
    if is_compared:
        header += [f"against {first}", "verdict", *(["paper", "direction"] if has_paper else [])]
    header += ["seeds", "s per run"]
    lines = []
    for cell in cells:
        own = by_row[cell.row]
        line = [cell.row]
        for measure in study.measures:
            line.append(spread([measure.scale * v for v in _by_seed(own, measure).values()], measure.digits))
            if _known(paper, measure):
                value = paper[cell.row].get(measure.label)
                line.append(NONE if value is None else f"{value:.{measure.digits}f}")
        if is_compared:
            line += _compared(headline, cell.row, first, by_row, paper if has_paper else None)
        seconds = [r.seconds for r in own]
        line += [str(len(own)), f"{statistics.mean(seconds):.0f}" if seconds else NONE]
        lines.append(line)
    methods = {row: _by_seed(own, headline) for row, own in by_row.items() if not study.rows[row].bound}
    notes = [best_rows(methods, headline), *(note for row in by_row for note in _pairs(study, row, by_row, paper))]
    return Table(f"{cells[0].model} on {cells[0].set}", header, lines, " ".join(note for note in notes if note))


def _compared(
    headline: Measure,
    row: str,
    first: str,
    by_row: Mapping[str, Sequence[Result]],
    paper: Mapping[str, Mapping[str, float]] | None,
) -> list[str]:
    """Difference to the first row and verdict; the paper's difference and whether ours goes its way."""
    if row == first:
        return [""] * (2 if paper is None else 4)
    values, reference = _by_seed(by_row[row], headline), _by_seed(by_row[first], headline)
    against = compare(values, reference, headline.better)
    line = [_against(headline, against, values, reference), against.verdict]
    if paper is None:
        return line
    theirs, base = paper[row].get(headline.label), paper[first].get(headline.label)
    if theirs is None or base is None:
        return [*line, "", ""]
    return [*line, _paper_against(headline, theirs, base), _direction(headline, against, theirs - base)]


def best_rows(values: Mapping[str, Mapping[int, float]], headline: Measure) -> str:
    """Which row is best on average, and which are tied with it over their common seeds.

    The average is that over the seeds which all repeated rows have, if there are two: a row must not win by the seeds
    that the others lack.

    Args:
        values: of each row by seed.
        headline: what is compared; without a better side nothing is best.

    Example:
        >>> accuracy = Measure("accuracy", "accuracy", better="higher")
        >>> best_rows({"a": {0: 1.0, 1: 1.2}, "b": {0: 3.0, 1: 4.0}, "c": {0: 2.0, 1: 4.5}}, accuracy)
        'Best accuracy: b; tied with it: c.'
    """
    rows = [row for row, own in values.items() if own]
    if not headline.better or len(rows) < 2:
        return ""
    repeated = [row for row in rows if len(values[row]) > 1] or rows  # one run proves little
    common = set.intersection(*(set(values[row]) for row in repeated))

    def mean(row: str) -> float:
        own = values[row]
        return statistics.mean(own[seed] for seed in (common if len(common) > 1 else own))

    best = (max if headline.better == "higher" else min)(repeated, key=mean)
    verdicts = {row: compare(values[row], values[best], headline.better).verdict for row in rows if row != best}
    unknown = [row for row, verdict in verdicts.items() if not verdict]
    text = f"Best {headline.label}: {best}"
    if len(unknown) < len(verdicts):
        text += f"; tied with it: {', '.join(row for row in verdicts if verdicts[row] == 'tied') or 'none'}"
    return text + (f"; too few common seeds to compare it with: {', '.join(unknown)}." if unknown else ".")


def _pairs(
    study: Study, row: str, by_row: Mapping[str, Sequence[Result]], paper: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """One sentence for each row, other than the first, that this one is to be compared with."""
    headline, sentences = study.measures[0], []
    own = _by_seed(by_row[row], headline)
    for other in study.rows[row].against:
        values = _by_seed(by_row.get(other, []), headline)
        against = compare(own, values, headline.better)
        if math.isnan(against.difference):
            continue
        text = f"{row} against {other}: {_against(headline, against, own, values)}"
        text += f", {against.verdict}" if against.verdict else ""
        theirs, base = paper[row].get(headline.label), paper[other].get(headline.label)
        # Two forms of one row of the paper's have the same values, which say nothing.
        if theirs is not None and base is not None and theirs != base:
            direction = _direction(headline, against, theirs - base)
            text += f" (paper {_paper_against(headline, theirs, base)}{f': {direction}' if against.verdict else ''})"
        sentences.append(text + ".")
    return sentences


def tuning_table(study: Study, cells: Sequence[Cell], results: Findings) -> Table:
    """What each row tried and found."""
    sign = 1 if study.measures[0].better == "higher" else -1
    width = max(len(results.of(cell, TUNE)) for cell in cells)
    lines = []
    for cell in cells:
        tried = results.of(cell, TUNE)
        values = [sign * r.metrics.get(study.tune_by, -sign * math.inf) for r in tried]
        texts = [
            f"{r.setting}: " + (f"{r.metrics[study.tune_by]:.4g}" if study.tune_by in r.metrics else "failed")
            for r in tried
        ]
        if values:
            best = values.index(max(values))
            texts[best] = f"**{texts[best]}**"
        lines.append([cell.row, *texts, *[NONE] * (width - len(texts))])
    return Table(f"{cells[0].model} on {cells[0].set}, tuning", ["row", *[""] * width], lines)


def _by_seed(results: Sequence[Result], measure: Measure) -> dict[int, float]:
    return {r.number: r.metrics[measure.name] for r in results if measure.name in r.metrics}


def _paper(study: Study, cell: Cell) -> dict[str, float]:
    """The paper's values of a row, given by network or by set."""
    known = study.rows[cell.row].paper
    return known.get(cell.model) or known.get(cell.set) or {}


def _known(paper: Mapping[str, Mapping[str, float]], measure: Measure) -> bool:
    return any(measure.label in values for values in paper.values())


def _against(headline: Measure, against: Comparison, own: Mapping[int, float], first: Mapping[int, float]) -> str:
    if math.isnan(against.difference):
        return NONE
    common = own.keys() & first.keys()
    text = f"{headline.scale * against.difference:+.{headline.digits}f}"
    if not math.isnan(against.error):
        text += f" ± {headline.scale * against.error:.{headline.digits}f}"
    if headline.compare == "ratio":
        base = statistics.mean(first[seed] for seed in common)
        text += f" (x {statistics.mean(own[seed] for seed in common) / base:.2f})" if base else ""
    return text


def _paper_against(headline: Measure, theirs: float, base: float) -> str:
    text = f"{theirs - base:+.{headline.digits}f}"
    return f"{text} (x {theirs / base:.2f})" if headline.compare == "ratio" else text


def _direction(headline: Measure, against: Comparison, theirs: float) -> str:
    """Whether ours goes where the paper's goes, if that goes anywhere."""
    if not against.verdict or theirs == 0:
        return NONE
    if against.verdict == "tied":
        return "tied here"
    expected = "better" if (theirs > 0) == (headline.better == "higher") else "worse"
    return "agrees" if against.verdict == expected else "disagrees"


_MACROS = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    | {"±": r"$\pm$", "–": "--"}
)


def _tex(text: str) -> str:
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        return rf"\textbf{{{_tex(text[2:-2])}}}"
    return text.translate(_MACROS).replace("(x ", r"($\times$ ")
