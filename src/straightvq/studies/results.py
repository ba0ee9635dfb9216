"""What is known of a study's runs: one file per finished run, one table of all."""

import csv
import datetime
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from straightvq.errors import InvalidValueError
from straightvq.io import write_text
from straightvq.studies.origin import hardware, versions
from straightvq.studies.run import Cell, Run

__all__ = ["Findings", "Result", "Results", "read_table"]

FILE, TABLE = "result.json", "results.csv"


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        set, model, row: what was trained.
        kind: "tune" or "final".
        number: of the setting in tuning, else the seed.
        setting: name of the setting, "" where nothing was tuned.
        settings: fingerprint of the configuration.
        seconds: of training, interruptions left out.
        error: why there are no metrics, or "".
        metrics: by logged name.
        versions, hardware, date: with what, where and when it was made.
    """

    set: str
    model: str
    row: str
    kind: str
    number: int
    setting: str
    settings: str
    seconds: float
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    versions: str = ""
    hardware: str = ""
    date: str = ""

    @classmethod
    def of(cls, run: Run, seconds: float, metrics: dict[str, float], error: str = "") -> "Result":
        cell = run.cell
        return cls(
            cell.set,
            cell.model,
            cell.row,
            run.kind,
            run.number,
            run.setting,
            run.settings,
            round(seconds, 1),
            error,
            metrics,
            versions(),
            hardware(),
            str(datetime.date.today()),
        )


NAMED = [name for name in Result.__dataclass_fields__ if name != "metrics"]


class Findings:
    """Results to be compared.

    Args:
        known: by the folder of the run.
    """

    def __init__(self, known: Mapping[Path, Result]) -> None:
        self._known = dict(known)

    def of(self, cell: Cell, kind: str) -> list[Result]:
        """The results of a cell, by number."""
        found = [r for r in self if (r.set, r.model, r.row, r.kind) == (cell.set, cell.model, cell.row, kind)]
        return sorted(found, key=lambda r: r.number)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)


class Results(Findings):
    """All finished runs below a folder.

    Each run's result is a file in the run's own folder, written in one piece, so that a full disk or a killed process
    can damage no other. ``results.csv`` is made from them, those that other processes have written meanwhile included.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__({})
        self.folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Reads what is there now."""
        files = sorted((self.folder / "runs").glob(f"*/*/*/*/{FILE}"))
        self._known = {file.parent: _read(file) for file in files}

    def place(self, run: Run) -> Path:
        """Folder of a run."""
        return self.folder / self.inner(run)

    @staticmethod
    def inner(run: Run) -> Path:
        """Folder of a run within that of its study."""
        return Path("runs") / run.cell.folder / run.name

    def get(self, run: Run) -> Result | None:
        """The result of a run with these very settings."""
        found = self._known.get(self.place(run))
        return found if found is not None and found.settings == run.settings else None

    def has(self, run: Run) -> bool:
        """Whether there is a result, whatever its settings."""
        return self.place(run) in self._known

    def is_stale(self, run: Run) -> bool:
        """Whether there is a result of other settings."""
        return self.has(run) and self.get(run) is None

    def suppose(self, run: Run, result: Result) -> None:
        """Knows a result until the files are read again."""
        self._known[self.place(run)] = result

    def matching(self, runs: Iterable[Run]) -> Findings:
        """The results of these very runs, without those of other settings."""
        return Findings({self.place(run): found for run in runs if (found := self.get(run)) is not None})

    def add(self, run: Run, result: Result) -> None:
        """Writes a result and the table of all."""
        write_text(self.place(run) / FILE, json.dumps(asdict(result), indent=1) + "\n")
        self.write()

    def write(self) -> None:
        """Writes the table of all."""
        self.refresh()
        write_text(self.folder / TABLE, self.table())

    def forget(self, run: Run) -> bool:
        """Drops what is known of a run, whatever its settings; returns whether there was something."""
        return self._known.pop(self.place(run), None) is not None

    def table(self) -> str:
        """All results as CSV, one line per run, in an order that does not depend on that of running."""
        rows: list[dict[str, Any]] = []
        for result in self:
            row = asdict(result)
            rows.append({**row, **row.pop("metrics")} | {"metrics": None})
        rows.sort(key=lambda r: (r["set"], r["model"], r["row"], r["kind"], r["number"]))
        metrics = sorted({key for result in self for key in result.metrics})
        text = io.StringIO()
        writer = csv.DictWriter(text, [*NAMED, *metrics], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def read_table(file: Path) -> list[Result]:
    """What `Results.table` wrote.

    Raises:
        ValueError: if it is something else.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            if not set(NAMED) <= set(reader.fieldnames or []):
                raise ValueError("other columns")
            return [_from_row(row) for row in reader]
    except (ValueError, TypeError) as error:
        raise InvalidValueError(f"`reproduce`: {str(file)!r} is not a table of results that a study wrote.") from error


def _from_row(row: dict[str, str]) -> Result:
    metrics = {name: float(value) for name, value in row.items() if name not in NAMED and value}
    numbers = {"number": int(row["number"]), "seconds": float(row["seconds"])}
    values: dict[str, Any] = {name: row[name] for name in NAMED} | numbers | {"metrics": metrics}
    return Result(**values)


def _read(file: Path) -> Result:
    try:
        return Result(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InvalidValueError(
            f"`reproduce`: {str(file)!r} is not a result of this version. Remove it to repeat the run."
        ) from error
