"""The course of a study's runs on the validation set: what ``curves.png`` shows and ``curves.csv`` holds."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from straightvq.errors import InvalidValueError
from straightvq.runs import read_log
from straightvq.studies.results import Findings
from straightvq.studies.run import FINAL, Cell

__all__ = ["Curves"]

FILE = "curves.csv"
KEY = ["set", "model", "row", "seed", "step"]
Points = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Curves:
    """Steps and values of one measure.

    Attributes:
        name: what the task logs, such as ``val/accuracy``.
        points: by cell and seed.
    """

    name: str
    points: dict[tuple[Cell, int], Points]

    @classmethod
    def recorded(cls, name: str, folder: Path, results: Findings, cells: Iterable[Cell]) -> "Curves":
        """What the logs of a study's finished runs have of it."""
        finals = [(cell, result.number) for cell in cells for result in results.of(cell, FINAL)]
        logs = {(cell, seed): read_log(folder / "runs" / cell.folder / f"seed{seed}", name) for cell, seed in finals}
        return cls(name, {key: points for key, points in logs.items() if points[0]})

    @classmethod
    def read(cls, file: Path) -> "Curves":
        """What `table` wrote.

        Raises:
            ValueError: if it is something else.
        """
        points: dict[tuple[Cell, int], Points] = {}
        try:
            with file.open(newline="", encoding="utf-8") as lines:
                (*key, name), *rows = csv.reader(lines)
            if key != KEY:
                raise ValueError("other columns")
            for place, model, row, seed, step, value in rows:
                steps, values = points.setdefault((Cell(place, model, row), int(seed)), ([], []))
                steps.append(int(step))
                values.append(float(value))
        except ValueError as error:
            raise InvalidValueError(
                f"`reproduce`: {str(file)!r} is not a table of curves that a study wrote."
            ) from error
        return cls(name, points)

    def of(self, cell: Cell) -> list[Points]:
        """The courses of a cell's runs."""
        return [points for (other, _), points in self.points.items() if other == cell]

    def table(self) -> str:
        """All points as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*KEY, self.name])
        for (cell, seed), points in self.points.items():
            for step, value in zip(*points, strict=True):
                writer.writerow([cell.set, cell.model, cell.row, seed, step, value])
        return text.getvalue()
