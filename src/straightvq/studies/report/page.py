"""The report of a study: its tables, its pictures, and how they were made."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from straightvq.io import write_text
from straightvq.studies.plan import Plan
from straightvq.studies.report.pictures import draw
from straightvq.studies.report.tables import MainTable, tuning_table
from straightvq.studies.results import FINAL, TUNE, by_place, of_cells

FIGURES = {"results.png": "every run as a dot, and the mean of each row", "curves.png": "validation curves"}
ENDING = (
    "All metrics of every run are in `results.csv`. To repeat one, pass its `config.yaml` to `straightvq fit --config`."
)


@dataclass(frozen=True)
class Report:
    """``report.md`` and ``report.tex`` of whatever is finished of a plan."""

    plan: Plan
    command: str  # how it was run
    remark: str = ""  # on the data

    def write(self) -> None:
        study, results, folder = self.plan.study, self.plan.results, self.plan.results.folder
        runs = list(self.plan.reported())
        found, stale = results.matching(runs), sum(map(results.is_stale, runs))
        finals, tuned = found[found.kind == FINAL], found[found.kind == TUNE]
        places = by_place(self.plan.compared)
        mains = [MainTable(study, cells, finals).table() for cells in places if len(of_cells(finals, cells))]
        tunings = [tuning_table(study, cells, tuned) for cells in places if len(of_cells(tuned, cells))]
        tuning = (
            "Each row tried the same number of settings with seed 0 and was measured by "
            f"`{study.tune.by}` on the validation set; the best, in bold, was used for all seeds."
        )
        sections = [
            *self._head(finals, stale),
            *(part for table in mains for part in (f"## {table.title}", table.markdown(), table.note)),
            *(f"![{text}]({name})" for name, text in FIGURES.items() if (folder / name).is_file()),
            *(["## Tuning", tuning] if tunings else []),
            *(part for table in tunings for part in (f"### {table.title}", table.markdown())),
            *self._samples(finals),
            *self._failed(found),
            ENDING,
        ]
        write_text(folder / "report.md", "\n\n".join(filter(None, sections)) + "\n")
        write_text(folder / "report.tex", "\n\n".join(table.latex() for table in [*mains, *tunings]) + "\n")

    def draw(self) -> None:
        """Writes the pictures."""
        draw(self.plan)

    def _head(self, finals: pd.DataFrame, stale: int) -> list[str]:
        plan, study, size = self.plan, self.plan.study, self.plan.size
        count = f"{len(finals)} of {len(plan.compared) * plan.seeds} runs are finished{origin(finals)}."
        about = f"Size `{size.name}`: {size.about.strip()}" if size.about else f"Size `{size.name}`."
        left_out = f"Results left out because the study has other settings now: {stale}." if stale else ""
        before = [f"[{name}]({name}/report.md)" for name in (Path(file).stem for file in size.follows.values())]
        built = f"Built on {', '.join(before)}, whose checkpoints are kept." if before else ""
        values = "Values are mean ± standard deviation over seeds, on the test set."
        if len(study.rows) > 1:
            values += (
                f" **Against {next(iter(study.rows))}** is the mean of the paired differences in "
                f"{study.headline.label} over common seeds ± its standard error; *tied* is within two standard errors."
            )
        how = f"{about}\n`{self.command}`. {count}"
        return [f"# {study.title}", study.about.strip(), how, self.remark, left_out, built, values]

    def _samples(self, finals: pd.DataFrame) -> list[str]:
        """What models of images drew, of seed 0."""
        lines = []
        for cell in self.plan.compared:
            if 0 in set(of_cells(finals, [cell]).number) and (self.plan.results.folder / cell.picture).is_file():
                lines += [f"### {cell.title}", f"![{cell.title}]({cell.picture.as_posix()})"]
        return ["## Samples", *lines] if lines else []

    @staticmethod
    def _failed(results: pd.DataFrame) -> list[str]:
        failed = results[results.error != ""].itertuples()
        lines = [f"- {r.set} {r.model} {r.row}, {r.kind} {r.number}: {r.error}" for r in failed]
        return ["## Failed runs", "\n".join(lines)] if lines else []


def origin(finals: pd.DataFrame) -> str:
    """With what, where and when these were made; results of older versions do not know."""
    parts = [" and ".join(sorted(set(finals[name]) - {""})) for name in ("versions", "hardware")]
    dates = sorted(set(finals.date) - {""})
    parts.append(" to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "")
    return "".join(f", {part}" for part in parts if part)
