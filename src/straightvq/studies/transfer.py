"""Finished runs of another place, such as another machine: taken over from the tables that are kept of them."""

import shutil
from pathlib import Path

import pandas as pd

from straightvq.errors import InvalidValueError
from straightvq.runs import write_log
from straightvq.studies.plan import Plan
from straightvq.studies.report.pictures import sample_picture
from straightvq.studies.results import CURVES, TABLE, Result, read_curves, read_table
from straightvq.studies.run import FINAL, Run


class Known:
    """What another folder of the same study has in its tables: metrics, the curve that is drawn, and samples.

    Args:
        folder: with ``results.csv`` and, if there were curves, ``curves.csv``.

    Raises:
        ValueError: if that is no folder of results.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / TABLE).is_file():
            raise InvalidValueError(
                f"`reproduce`: `--known` must be a folder with the {TABLE} of a study. {str(folder)!r} has none."
            )
        self.folder = folder
        self.results = {(found.cell, found.kind, found.number): found for found in read_table(folder / TABLE)}
        self.curves = read_curves(folder / CURVES) if (folder / CURVES).is_file() else None
        self._taken: list[tuple[Run, Result]] = []

    def tell(self, plan: Plan) -> str:
        """Makes what is missing in a plan known to it, but of other settings nothing; says so."""
        same = 0
        for run in plan.reported():  # tuning comes first: it decides what the final runs are
            found = self.results.get((run.cell, run.kind, run.number))
            if found is not None and found.settings == run.settings:
                same += 1
                if not plan.results.has(run):
                    plan.results.suppose(run, found)
                    self._taken.append((run, found))
        others = len(self.results) - same
        left = f"; {others} others there are of other settings, or not asked for" if others else ""
        return f"{len(self._taken)} finished runs taken over from {self.folder}{left}"

    def copy(self, plan: Plan) -> None:
        """Writes what was told into the folder of the plan."""
        for run, found in self._taken:
            place = plan.results.folder / run.folder
            if run.kind == FINAL and not (place / "metrics").exists():
                self._copy_curve(run, place)
            self._copy_samples(run, plan.results.folder / sample_picture(run.cell))
            plan.results.add(run, found)

    def _copy_samples(self, run: Run, target: Path) -> None:
        # The second is where versions before this one kept them.
        for source in (self.folder / sample_picture(run.cell), self.folder / run.folder / "samples" / "grid.png"):
            if run.kind == FINAL and source.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _copy_curve(self, run: Run, place: Path) -> None:
        if self.curves is None:
            return
        key = {"set": run.cell.set, "model": run.cell.model, "row": run.cell.row, "seed": run.seed}
        own = self.curves[(self.curves[list(key)] == pd.Series(key)).all(axis=1)]
        if len(own):
            write_log(place, own.columns[-1], own.step.tolist(), own.iloc[:, -1].tolist())
