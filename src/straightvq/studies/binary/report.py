"""The report of the study: its tables, its verdicts, and what makes and writes it."""

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from straightvq.diagnostics import panels, save
from straightvq.io import write_text
from straightvq.studies.binary import experiments as ex
from straightvq.studies.binary import pictures, training
from straightvq.studies.binary.estimators import CLIPPED, SECANTS
from straightvq.studies.binary.reading import BEST, LEAST, at_the_end, last, top
from straightvq.studies.binary.settings import Settings
from straightvq.studies.binary.watching import INSTABILITY
from straightvq.studies.parts import Parts
from straightvq.studies.report.tables import NONE, Table, best_rows, compare, spread
from straightvq.studies.reproduction import guarded
from straightvq.studies.study import Measure, Size

NETWORK = (training.WEIGHTS, training.ACTIVATIONS, INSTABILITY)


def run_binary(folder: Path, title: str, about: str, size: Size, sources: Mapping[str, str | None]) -> None:
    """Computes what is missing of the study and writes ``report.md``, ``report.tex``, ``results.csv`` and pictures.

    Finished trainings are in ``runs`` and not repeated, unless the size's settings have changed. A study that is
    stopped reports the rows that are finished.

    Args:
        folder: of the results.
        title, about: headline and introduction of the report.
        size: its ``config`` and ``seeds`` are read.
        sources: place of each set that binary networks are trained on, None for embedded ones.

    Raises:
        ValueError, TypeError: for impossible settings, and for a file that is no result.
    """
    settings = Settings.of(size.config, size.seeds)
    parts = Parts(folder, ex.plan(settings, sources))
    with guarded(parts):
        try:
            parts.run()
        finally:
            if parts:
                given = ["--data", "SETS"] if any(sources.values()) else []
                given += [] if list(sources) in (size.sets, size.without_data) else ["--sets", *sources]
                command = shlex.join(["straightvq", "reproduce", "binary", "--size", size.name, *given])
                how = f"Size `{size.name}`: {size.about.strip()}\n`{command}`. {parts.origin()}."
                _write(folder, [f"# {title}", about.strip(), how], parts.table(), list(sources))


def _write(folder: Path, head: list[str], values: pd.DataFrame, sets: list[str]) -> None:
    """Whatever is there of the experiments."""
    write_text(folder / "results.csv", values.to_csv(index=False, float_format="%.6g"))
    there = set(values.experiment)
    networks = [name for name in sets if name in there]
    tokenizers = [name for name in map(ex.tokenizer, training.QUANTIZERS) if name in there]
    page, tables = list(head), []
    if ex.FORMULA in there:
        tables.append(formula_table(values))
        page += ["## The formula", _text(FORMULA), tables[-1].markdown()]
        page.append(_picture(folder, "formula", pictures.formula(values)))
    sections = [
        ("Binary networks", NETWORKS, networks, BEST, NETWORK),
        ("Tokenizers", TOKENIZERS, tokenizers, LEAST, (training.ERROR, INSTABILITY)),
    ]
    for heading, text, names, measure, series in sections:
        if not names:
            continue
        word = heading.split()[-1].lower()
        page += [f"## {heading}", _text(text)]
        page.append(_picture(folder, f"{word}-ends", pictures.ends(values, names, measure)))
        for name in names:
            tables.append(results_table(values, name, measure, series))
            page += [f"### {name}", tables[-1].markdown(), tables[-1].note]
            file = f"{word}-{name.rpartition(', ')[2]}"
            page.append(_picture(folder, file, pictures.courses(values, name, series)))
        page.append(_picture(folder, f"{word}-trade-off", pictures.trade(values, names, series[-2])))
    page.append("Every value: `results.csv`.")
    write_text(folder / "report.md", "\n\n".join(filter(None, page)) + "\n")
    write_text(folder / "report.tex", "\n\n".join(table.latex() for table in tables) + "\n")


def _picture(folder: Path, name: str, figure: "panels.Figure") -> str:
    save(figure, folder / f"{name}.png")
    return f"![{name.replace('-', ' ')}]({name}.png)"


def _text(text: str) -> str:
    return textwrap.fill(text.strip(), 120, break_on_hyphens=False)


# --- tables -----------------------------------------------------------------------------------------------------------


def formula_table(values: pd.DataFrame) -> Table:
    errors = pictures.last_of(values, ex.SQUARE)
    header = ["o", "error per element", "variance of the factor", "with the authors' secant"]
    variances = [pictures.last_of(values, f"{ex.VARIANCE}, {secant}") for secant in SECANTS]
    lines = [
        [f"{power:g}", f"{error:.3f}", *(f"{variance[power]:.3f}" for variance in variances)]
        for power, error in errors.items()
    ]
    return Table("The formula", header, lines)


def results_table(values: pd.DataFrame, name: str, measure: Measure, series: tuple[str, ...]) -> Table:
    """Every estimator with its difference to the first, paired by seed, and the indicators at the end."""
    found = at_the_end(values, name, measure)
    others = [training.VALIDATION] if measure is BEST else [training.USED]
    header = ["estimator", measure.heading, f"against {CLIPPED}", "verdict", *(f"{one}, %" for one in others), *series]
    lines = []
    for row in found:
        against = compare(found[row], found[CLIPPED], measure.better) if row != CLIPPED and CLIPPED in found else None
        line = [row, spread(found[row], measure.digits)]
        line += [against.text(measure), against.verdict] if against else [NONE, NONE]
        line += [spread(100 * last(values, name, one)[row], 1) for one in others]
        lines.append([*line, *(f"{last(values, name, one)[row].mean():.3g}" for one in series)])
    tops = [top(found, measure, secant) for secant in SECANTS]
    return Table(name, header, lines, " ".join(filter(None, [best_rows(found, measure), *tops])))


# --- what stands above each -------------------------------------------------------------------------------------------

FORMULA = """
What follows from f(z) = sign(z) |z|^(1/o) alone, for vectors from a normal distribution of deviation 0.5. The mean
square of sign(z) − f(z) falls with o. Within 0.1 of zero, where the derivative has no bound, the library's factor stays
what it is at 0.1, so that it is continuous; the authors' is the slope of the secant, o times as large. Only with the
authors' does the variance of the factor rise with o: the trade-off is that of the secant, not of the power.
"""
NETWORKS = """
Weights and activations of one bit, first and last layer in full precision, a scale per output channel. SGD with
momentum 0.9, weight decay 1e-4 and a cosine after a warm-up; no setting was tuned. The accuracy is that of the last
epoch on the test set, which nothing else has seen; the validation images are held apart from it. straight-through
passes the gradient within 1 and nothing beyond; tanh is the error decay estimator; the power of the rectified ones,
which pass nothing beyond 1.5, rises from 1 to o_end, with the continuous factor, and with the authors' secant.
Networks of one seed start alike and see the same batches; differences are paired by seed, ± their standard error, and
within two of these tied. Indicators are means over the steps of the last epoch, with the estimator as it was in each:
the mean square of sign(z) − f(z) over all binary weights, and over the inputs of the binary convolutions; and the
variance of the size of the binary weights' gradients.
"""
TOKENIZERS = """
The same estimators in the layer of an autoencoder on the digits: signs on the cube (LFQ) and on the sphere (BSQ), and
four levels in each of half as many channels (FSQ), where rounding is a sign around the nearest threshold. The same
network, bits and steps. The error is that of the test images over their variance; differences and indicators as above,
the last tenth of the training in place of the last epoch, the instability that of the encoder's gradients.
"""
