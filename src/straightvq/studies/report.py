"""The report of a study: its tables, its figures, and how they were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from straightvq.io import write_text
from straightvq.studies.results import Findings, Result
from straightvq.studies.run import FINAL, TUNE, Cell
from straightvq.studies.study import Size, Study
from straightvq.studies.tables import Table, main_table, tuning_table

__all__ = ["Context", "write_report"]

FIGURES = {"results.png": "every run, and the mean of each row", "curves.png": "the course of training"}


@dataclass(frozen=True)
class Context:
    """What the report says about the study as a whole.

    Attributes:
        study, size: what was run.
        command: how.
        remark: on the data, or "".
        seeds: per row.
        left_out: how many results are of other settings than the study's, and not in the report.
    """

    study: Study
    size: Size
    command: str
    remark: str
    seeds: int
    left_out: int = 0


def write_report(folder: Path, context: Context, results: Findings, cells: Sequence[Cell]) -> None:
    """Writes ``report.md`` and ``report.tex`` of whatever is finished."""
    places = list(dict.fromkeys((cell.set, cell.model) for cell in cells))
    tables, tuned = [], []
    for place in places:
        here = [cell for cell in cells if (cell.set, cell.model) == place]
        if any(results.of(cell, FINAL) for cell in here):
            tables.append(main_table(context.study, here, results))
        if any(results.of(cell, TUNE) for cell in here):
            tuned.append(tuning_table(context.study, here, results))
    write_text(folder / "report.md", _page(folder, context, results, cells, tables, tuned))
    write_text(folder / "report.tex", "\n\n".join(table.latex() for table in [*tables, *tuned]) + "\n")


def _page(
    folder: Path, context: Context, results: Findings, cells: Sequence[Cell], tables: list[Table], tuned: list[Table]
) -> str:
    study, size = context.study, context.size
    first, headline = next(iter(study.rows)), study.measures[0]
    finals = [r for cell in cells for r in results.of(cell, FINAL)]
    lines = [f"# {study.title}", "", study.about.strip(), ""]
    lines += [
        f"Size `{size.name}`: {size.about.strip()}" if size.about else f"Size `{size.name}`.",
        f"`{context.command}`. {len(finals)} of {len(cells) * context.seeds} runs are finished{_origin(finals)}.",
        "",
    ]
    lines += [context.remark, ""] if context.remark else []
    if context.left_out:
        lines += [f"Results of other settings than the study has now are left out: {context.left_out}.", ""]
    if size.follows:
        before = [f"[{name}]({name}/report.md)" for name in (Path(name).stem for name in size.follows.values())]
        lines += [f"Built upon {', '.join(before)}, whose checkpoints are kept.", ""]
    comparison = (
        f" **Against {first}** is the mean of the paired differences in {headline.label} over common seeds ± its "
        "standard error; *tied* is within two standard errors."
    )
    values = "Values are mean ± standard deviation over seeds, on the test set."
    lines += [values + (comparison if len(study.rows) > 1 else ""), ""]
    for table in tables:
        lines += [f"## {table.title}", "", table.markdown(), "", *([table.note, ""] if table.note else [])]
    for name, text in FIGURES.items():
        if (folder / name).is_file():
            lines += [f"![{text}]({name})", ""]
    if tuned:
        lines += [
            "## Tuning",
            "",
            f"Each row tried the same number of settings with seed 0 and was measured by `{study.tune_by}` on the "
            "validation set; the best, in bold, was used for all seeds.",
            "",
        ]
        for table in tuned:
            lines += [f"### {table.title}", "", table.markdown(), ""]
    lines += _samples(folder, results, cells)
    failed = [r for cell in cells for kind in (TUNE, FINAL) for r in results.of(cell, kind) if r.error]
    if failed:
        lines += ["## Failed runs", ""]
        lines += [f"- {r.set} {r.model} {r.row}, {r.kind} {r.number}: {r.error}" for r in failed] + [""]
    lines += [
        "All metrics of every run: `results.csv`. One again: `straightvq fit --config` with its `config.yaml`.",
        "",
    ]
    return "\n".join(lines)


def _origin(results: Sequence[Result]) -> str:
    """With what, where and when these were made; results of older versions do not know."""
    parts = [" and ".join(sorted({getattr(r, name) for r in results} - {""})) for name in ("versions", "hardware")]
    dates = sorted({r.date for r in results} - {""})
    parts.append(" to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "")
    return "".join(f", {part}" for part in parts if part)


def _samples(folder: Path, results: Findings, cells: Sequence[Cell]) -> list[str]:
    """What models of images drew, of seed 0."""
    lines = []
    for cell in cells:
        grid = Path("runs") / cell.folder / "seed0" / "samples" / "grid.png"
        if any(r.number == 0 for r in results.of(cell, FINAL)) and (folder / grid).is_file():
            lines += [f"### {cell.title}", "", f"![{cell.title}]({grid.as_posix()})", ""]
    return ["## Samples", "", *lines] if lines else []
