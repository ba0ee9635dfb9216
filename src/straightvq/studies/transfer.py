"""Finished runs of another place, such as another machine: taken over from the tables that are kept of them."""

import shutil
from pathlib import Path

from straightvq.errors import InvalidValueError
from straightvq.runs import write_log
from straightvq.studies import curves, results
from straightvq.studies.curves import Curves
from straightvq.studies.results import Results, read_table
from straightvq.studies.run import FINAL
from straightvq.studies.work import Work

__all__ = ["take_over"]

GRID = Path("samples", "grid.png")


def take_over(work: Work, known: Path, *, write: bool) -> str:
    """Takes over what another folder of the same study has finished, has in its tables, and is missing here.

    That is the metrics of every run, the curve that is drawn, and the samples that the report shows; no checkpoints.
    Results of other settings are left where they are.

    Args:
        work: what is asked for.
        known: folder with ``results.csv`` and, if there were curves, ``curves.csv``.
        write: whether to write them into the folder of the study, or only to know them.

    Returns:
        What was done, in words.

    Raises:
        ValueError: if that is no folder of results.
    """
    if not (known / results.TABLE).is_file():
        raise InvalidValueError(
            f"`reproduce`: `--known` must be a folder with the {results.TABLE} of a study. {str(known)!r} has none."
        )
    found = {(r.set, r.model, r.row, r.kind, r.number): r for r in read_table(known / results.TABLE)}
    drawn = Curves.read(known / curves.FILE) if (known / curves.FILE).is_file() else Curves("", {})
    same = taken = 0
    # Tuning comes first: it decides what the final runs are.
    for run in work.compared():
        cell = run.cell
        result = found.get((cell.set, cell.model, cell.row, run.kind, run.number))
        if result is None or result.settings != run.settings:
            continue
        same += 1
        if work.results.has(run):
            continue
        taken += 1
        if not write:
            work.results.suppose(run, result)
            continue
        place = work.results.place(run)
        if run.kind == FINAL and (cell, run.seed) in drawn.points and not (place / "metrics").exists():
            write_log(place, drawn.name, *drawn.points[cell, run.seed])
        grid = known / Results.inner(run) / GRID
        if grid.is_file() and not (place / GRID).exists():
            (place / GRID).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(grid, place / GRID)
        work.results.add(run, result)
    left = f"; {len(found) - same} others there are of other settings, or not asked for" if len(found) > same else ""
    return f"{taken} finished runs taken over from {known}{left}"
