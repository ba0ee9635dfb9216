"""The runs of a study, what is known of them, and where that is kept: one file per finished run, one table of all."""

import contextlib
import datetime
import functools
import hashlib
import json
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

import straightvq
from straightvq.errors import InvalidValueError
from straightvq.io import write_text
from straightvq.runs import read_log, write_log
from straightvq.studies.study import Config, slug

TABLE, CURVES = "results.csv", "curves.csv"
TUNE, FINAL = "tune", "final"


class Cell(NamedTuple):
    """One method in one network on one set."""

    set: str
    model: str
    row: str

    @property
    def title(self) -> str:
        return " ".join(self)

    @property
    def place(self) -> str:
        """What its row is compared within."""
        return f"{self.model} on {self.set}"

    @property
    def picture(self) -> Path:
        """Where a study keeps what a model of images drew, of seed 0."""
        return Path("samples", f"{slug(self.title)}.png")


def by_place(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells of one network on one set together."""
    places: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        places.setdefault((cell.set, cell.model), []).append(cell)
    return list(places.values())


@dataclass(frozen=True)
class Run:
    """One training, measured afterwards."""

    cell: Cell
    kind: str  # `TUNE`, measured on the validation set, or `FINAL`, on the test set
    number: int  # of the setting in tuning, else the seed
    setting: str  # its name, "" where nothing was tuned
    overlays: list[Config]  # each laid over the ones before
    source: str | None = None  # where the data lie, None for what the overlays say; it decides no result
    # The runs that this one builds upon: folder and fingerprint, by the option that gets the folder.
    upon: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Within that of its study."""
        return Path("runs", *map(slug, self.cell), f"{'tune' if self.kind == TUNE else 'seed'}{self.number}")

    @property
    def title(self) -> str:
        return f"{self.cell.title} {f'tuning: {self.setting}' if self.kind == TUNE else f'seed {self.number}'}"

    @property
    def seed(self) -> int:
        return 0 if self.kind == TUNE else self.number

    @functools.cached_property
    def settings(self) -> str:
        """Fingerprint of everything that decides the result."""
        upon = {name: fingerprint for name, (_, fingerprint) in self.upon.items()}
        content = json.dumps([self.overlays, self.seed, *([upon] if upon else [])], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Result:
    """A finished run."""

    set: str
    model: str
    row: str
    kind: str  # `TUNE` or `FINAL`
    number: int  # of the setting in tuning, else the seed
    setting: str  # "" where nothing was tuned
    settings: str  # fingerprint of the configuration
    seconds: float  # of training, interruptions left out
    error: str = ""  # why there are no metrics
    versions: str = ""
    hardware: str = ""
    date: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # by logged name

    @classmethod
    def of(cls, run: Run, seconds: float, metrics: dict[str, float], error: str = "") -> "Result":
        """Of a run that ends here and now."""
        what: dict[str, Any] = {"kind": run.kind, "number": run.number, "setting": run.setting}
        what |= {"settings": run.settings, "seconds": round(seconds, 1), "error": error, "metrics": metrics}
        versions = f"straightvq {straightvq.__version__}, torch {torch.__version__}"
        return cls(*run.cell, **what, versions=versions, hardware=hardware(), date=str(datetime.date.today()))

    @property
    def cell(self) -> Cell:
        return Cell(self.set, self.model, self.row)


NAMED = [item.name for item in fields(Result) if item.name != "metrics"]


class Results(dict[Path, Result]):
    """All finished runs below the folder of a study, by the run's own folder within it.

    Each run's result is a file in the run's own folder, written in one piece, so that a full disk or a killed process
    can damage no other. ``results.csv`` is made from them.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Reads what is there now."""
        for file in sorted(self.folder.glob("runs/*/*/*/*/result.json")):
            self[file.parent.relative_to(self.folder)] = _read(file)

    def of(self, run: Run) -> Result | None:
        """The result of a run with these very settings."""
        found = self.get(run.folder)
        return found if found is not None and found.settings == run.settings else None

    def is_stale(self, run: Run) -> bool:
        """Whether there is a result of other settings."""
        return run.folder in self and self.of(run) is None

    def add(self, run: Run, result: Result) -> None:
        """Writes a result and the table of all."""
        write_text(self.folder / run.folder / "result.json", json.dumps(asdict(result), indent=1) + "\n")
        self[run.folder] = result
        self.write()

    def write(self) -> None:
        """Writes the table of all, in an order that does not depend on that of running."""
        write_text(self.folder / TABLE, table(self.values()).to_csv(index=False))

    def matching(self, runs: Iterable[Run]) -> pd.DataFrame:
        """The table of these very runs, without results of other settings."""
        return table(found for run in runs if (found := self.of(run)) is not None)


def _read(file: Path) -> Result:
    try:
        return Result(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InvalidValueError(
            f"`reproduce`: {str(file)!r} is not a result of this version. Remove it to repeat the run."
        ) from error


def table(results: Iterable[Result]) -> pd.DataFrame:
    """One row per result: what it is of, how it was made, then its metrics."""
    rows = [asdict(result) for result in results]
    named = pd.DataFrame(rows, columns=NAMED)
    metrics = pd.DataFrame([row["metrics"] for row in rows], index=named.index, dtype=float)
    whole = pd.concat([named, metrics[sorted(metrics)]], axis=1)
    return whole.sort_values(["set", "model", "row", "kind", "number"], ignore_index=True)


def of_cells(rows: pd.DataFrame, cells: Iterable[Cell]) -> pd.DataFrame:
    """The part of a table, of results or of curves, that is of these methods."""
    return rows[pd.MultiIndex.from_frame(rows[["set", "model", "row"]]).isin(list(cells))]


def recorded_curves(folder: Path, finals: Iterable[Run], name: str) -> pd.DataFrame:
    """What the logs of final runs have of one measure on the validation set: one row per step."""
    parts = []
    for run in finals:
        steps, values = read_log(folder / run.folder, name)
        if steps:
            parts.append(pd.DataFrame({**run.cell._asdict(), "seed": run.seed, "step": steps, name: values}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def read_table(file: Path) -> list[Result]:
    """What `Results.write` wrote."""
    with _written("results", file) as rows:
        named = rows[NAMED].astype({"number": int, "seconds": float}).to_dict("records")
        metrics = rows.drop(columns=NAMED).to_dict("records")
        return [
            Result(**row, metrics={str(name): float(value) for name, value in values.items() if value})
            for row, values in zip(named, metrics, strict=True)
        ]


def read_curves(file: Path) -> pd.DataFrame:
    """What was written of `recorded_curves`."""
    with _written("curves", file) as curves:
        if list(curves)[:-1] != ["set", "model", "row", "seed", "step"]:
            raise ValueError("other columns")
        return curves.astype({"seed": int, "step": int, curves.columns[-1]: float})


@contextlib.contextmanager
def _written(what: str, file: Path) -> Iterator[pd.DataFrame]:
    """The texts of a table; whatever the block cannot read of it is named."""
    try:
        yield pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidValueError(f"`reproduce`: {str(file)!r} is not a table of {what} that a study wrote.") from error


class Known:
    """What another folder of the same study has in its tables: metrics, the curve that is drawn, and samples."""

    def __init__(self, folder: Path) -> None:
        if not (folder / TABLE).is_file():
            raise InvalidValueError(
                f"`reproduce`: `--known` must be a folder with the {TABLE} of a study. {str(folder)!r} has none."
            )
        self.folder = folder
        self.results = {(found.cell, found.kind, found.number): found for found in read_table(folder / TABLE)}
        self.curves = read_curves(folder / CURVES) if (folder / CURVES).is_file() else None
        self._taken: list[tuple[Run, Result]] = []

    def tell(self, results: Results, runs: Iterable[Run]) -> str:
        """Makes known what is missing of these runs, of the same settings; says how much.

        Each run is asked for after the ones before are known: tuning decides what the final runs are.
        """
        same = 0
        for run in runs:
            found = self.results.get((run.cell, run.kind, run.number))
            if found is not None and found.settings == run.settings:
                same += 1
                if run.folder not in results:
                    results[run.folder] = found
                    self._taken.append((run, found))
        others = len(self.results) - same
        left = f"; {others} others there are of other settings, or not asked for" if others else ""
        return f"{len(self._taken)} finished runs taken over from {self.folder}{left}"

    def copy(self, results: Results) -> None:
        """Writes what was told into the folder of the results."""
        for run, found in self._taken:
            if run.kind == FINAL:
                self._copy_curve(run, results.folder / run.folder)
                self._copy_samples(run, results.folder / run.cell.picture)
            results.add(run, found)

    def _copy_curve(self, run: Run, place: Path) -> None:
        if self.curves is not None and not (place / "metrics").exists():
            own = of_cells(self.curves[self.curves.seed == run.seed], [run.cell])
            if len(own):
                write_log(place, own.columns[-1], own.step.tolist(), own.iloc[:, -1].tolist())

    def _copy_samples(self, run: Run, target: Path) -> None:
        # The second is where versions before this one kept them.
        for source in (self.folder / run.cell.picture, self.folder / run.folder / "samples" / "grid.png"):
            if source.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


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
