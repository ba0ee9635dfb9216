"""What is known of a study's runs: one file per finished run, and one table of all."""

import contextlib
import datetime
import json
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import straightvq
from straightvq.errors import InvalidValueError
from straightvq.io import write_text
from straightvq.runs import read_log
from straightvq.studies.run import Cell, Run

TABLE, CURVES = "results.csv", "curves.csv"


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
        versions, hardware, date: with what, where and when it was made.
        metrics: by logged name.
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
    versions: str = ""
    hardware: str = ""
    date: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, seconds: float, metrics: dict[str, float], error: str = "") -> "Result":
        """Of a run that ends here and now."""
        of: dict[str, Any] = {**asdict(run.cell), "kind": run.kind, "number": run.number, "setting": run.setting}
        made: dict[str, Any] = {"versions": versions(), "hardware": hardware(), "date": str(datetime.date.today())}
        return cls(**of, settings=run.settings, seconds=round(seconds, 1), error=error, metrics=metrics, **made)

    @property
    def cell(self) -> Cell:
        return Cell(self.set, self.model, self.row)


NAMED = [item.name for item in fields(Result) if item.name != "metrics"]


class Results:
    """All finished runs below a folder.

    Each run's result is a file in the run's own folder, written in one piece, so that a full disk or a killed process
    can damage no other. ``results.csv`` is made from them.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, Result] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads what is there now."""
        for file in sorted(self.folder.glob("runs/*/*/*/*/result.json")):
            self._known[file.parent.relative_to(self.folder)] = _read(file)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def has(self, run: Run) -> bool:
        """Whether there is a result, whatever its settings."""
        return run.folder in self._known

    def get(self, run: Run) -> Result | None:
        """The result of a run with these very settings."""
        found = self._known.get(run.folder)
        return found if found is not None and found.settings == run.settings else None

    def is_stale(self, run: Run) -> bool:
        """Whether there is a result of other settings."""
        return self.has(run) and self.get(run) is None

    def suppose(self, run: Run, result: Result) -> None:
        """Knows a result without a file."""
        self._known[run.folder] = result

    def forget(self, run: Run) -> bool:
        """Drops what is known of a run, whatever its settings; returns whether there was something."""
        return self._known.pop(run.folder, None) is not None

    def add(self, run: Run, result: Result) -> None:
        """Writes a result and the table of all."""
        write_text(self.folder / run.folder / "result.json", json.dumps(asdict(result), indent=1) + "\n")
        self.suppose(run, result)
        self.write()

    def write(self) -> None:
        """Writes the table of all, in an order that does not depend on that of running."""
        write_text(self.folder / TABLE, table(self).to_csv(index=False))

    def matching(self, runs: Iterable[Run]) -> pd.DataFrame:
        """The table of these very runs, without results of other settings."""
        return table(found for run in runs if (found := self.get(run)) is not None)


def of_cells(results: pd.DataFrame, cells: Iterable[Cell], kind: str) -> pd.DataFrame:
    """The part of a table that is of these methods, and of tuning or final."""
    wanted = {(cell.set, cell.model, cell.row, kind) for cell in cells}
    return results.loc[
        [key in wanted for key in zip(results.set, results.model, results.row, results.kind, strict=True)]
    ]


def table(results: Iterable[Result]) -> pd.DataFrame:
    """One row per result: what it is of, how it was made, then its metrics."""
    rows = [asdict(result) for result in results]
    named = pd.DataFrame(rows, columns=NAMED)
    metrics = pd.DataFrame([row["metrics"] for row in rows], index=named.index, dtype=float)
    whole = pd.concat([named, metrics[sorted(metrics)]], axis=1)
    return whole.sort_values(["set", "model", "row", "kind", "number"], ignore_index=True)


def read_table(file: Path) -> list[Result]:
    """What `Results.write` wrote.

    Raises:
        ValueError: if it is something else.
    """
    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
        if not set(NAMED) <= set(rows):
            raise ValueError("other columns")
        return [_from_row(row) for row in rows.to_dict("records")]
    except (ValueError, TypeError) as error:
        raise InvalidValueError(f"`reproduce`: {str(file)!r} is not a table of results that a study wrote.") from error


def _from_row(row: dict[str, str]) -> Result:
    metrics = {name: float(value) for name, value in row.items() if name not in NAMED and value}
    numbers = {"number": int(row["number"]), "seconds": float(row["seconds"])}
    values: dict[str, Any] = {name: row[name] for name in NAMED} | numbers
    return Result(**values, metrics=metrics)


def _read(file: Path) -> Result:
    try:
        return Result(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InvalidValueError(
            f"`reproduce`: {str(file)!r} is not a result of this version. Remove it to repeat the run."
        ) from error


def recorded_curves(folder: Path, finals: Iterable[Run], name: str) -> pd.DataFrame:
    """What the logs of final runs have of one measure on the validation set: one row per step."""
    parts = []
    for run in finals:
        steps, values = read_log(folder / run.folder, name)
        if steps:
            parts.append(pd.DataFrame({**asdict(run.cell), "seed": run.seed, "step": steps, name: values}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def read_curves(file: Path) -> pd.DataFrame:
    """What was written of `recorded_curves`.

    Raises:
        ValueError: if it is something else.
    """
    try:
        curves = pd.read_csv(file, dtype=str, keep_default_na=False)
        if list(curves)[:-1] != ["set", "model", "row", "seed", "step"]:
            raise ValueError("other columns")
        return curves.astype({"seed": int, "step": int, curves.columns[-1]: float})
    except ValueError as error:
        raise InvalidValueError(f"`reproduce`: {str(file)!r} is not a table of curves that a study wrote.") from error


def hardware(device: str | None = None, threads: int | None = None) -> str:
    """The GPU's name, or the processor's and the number of threads.

    Args:
        device: "cuda" or "cpu"; None is the GPU where there is one.
        threads: on the CPU; None is torch's.
    """
    if (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux; elsewhere the processor's own word must do
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    threads = threads or torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> str:
    """Of this package and of torch."""
    return f"straightvq {straightvq.__version__}, torch {torch.__version__}"
