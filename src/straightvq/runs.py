"""A run's folder as `straightvq fit` leaves it: its configuration, its checkpoints, its logs."""

import copy
import csv
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from straightvq.checkpoints import BEST, LAST, checkpoint_files
from straightvq.checkpoints import KEPT as KEPT
from straightvq.checkpoints import Checkpoint as Checkpoint
from straightvq.checkpoints import load_weights as load_weights
from straightvq.checkpoints import read_checkpoint as read_checkpoint
from straightvq.configuration import deny_foreign_code, explained
from straightvq.errors import InvalidValueError
from straightvq.io import write_text

CONFIG = "config.yaml"
LOGS = "metrics"
"""Subfolder of the CSV logs; each start of the training writes one, in ``version_0`` and so on."""
_HINT = "Pass a folder that `straightvq fit` made, such as runs/photos."


def run_directory(runs: Path, name: str, *, is_new: bool) -> Path:
    """``runs/name`` or its newest successor ``runs/name-2``, ...; with ``is_new`` the next one that is free.

    Example:
        >>> run_directory(Path("nowhere"), "photos", is_new=True).name
        'photos'
    """
    number = 1
    while (runs / f"{name}-{number + 1}").exists():
        number += 1
    newest = runs / (name if number == 1 else f"{name}-{number}")
    return runs / f"{name}-{number + 1}" if is_new and newest.exists() else newest


class RunFolder:
    """A run's folder, with ``config.yaml``, read as ``config``, and a checkpoint, in it or in ``checkpoints/``.

    A ValueError refuses other folders in the name of the ``owner``.
    """

    def __init__(self, folder: Path, owner: str = "analyze") -> None:
        self.folder, self.owner = folder, owner
        if not folder.is_dir():
            raise InvalidValueError(f"`{owner}`: there is no folder {str(folder)!r}. {_HINT}")
        self.config = self._read_config()
        self._files = checkpoint_files(folder)
        if not self._files:
            raise InvalidValueError(
                f"`{owner}`: {str(folder)!r} has no checkpoint: neither {LAST}.ckpt, nor {BEST}.ckpt, nor any in "
                f"{KEPT}/. Train until the first is written (--save_every)."
            )

    def _read_config(self) -> dict[str, Any]:
        file = self.folder / CONFIG
        if not file.is_file():
            here = f"{str(self.folder)!r} is not a run's folder"
            raise InvalidValueError(f"`{self.owner}`: {here}: it has no {CONFIG}. {_HINT}")
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidValueError(f"`{self.owner}`: {str(file)!r} is not readable as YAML. {_HINT}") from error
        if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("model", "data")):
            raise InvalidValueError(f"`{self.owner}`: {str(file)!r} configures no model and data. {_HINT}")
        return config

    @functools.cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """All of them in the order of training, one per step. Raises a `ValueError` if one cannot be read."""
        by_step: dict[int, Checkpoint] = {}
        for found in (Checkpoint.at(file, self.owner) for file in self._files):
            known = by_step.setdefault(found.step, replace(found, names=()))
            by_step[found.step] = replace(known, names=known.names + found.names)
        return [by_step[step] for step in sorted(by_step)]

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """The one of that file name, without suffix; None takes the best, or else the last. Reads no other one.

        A ValueError says that there is none of that name, or that it cannot be read.
        """
        for wanted in (BEST, LAST) if name is None else (name,):
            for file in self._files:
                if file.stem == wanted:
                    return Checkpoint.at(file, self.owner)
        if name is None:
            return self.checkpoints[-1]
        known = ", ".join(file.stem for file in self._files)
        raise InvalidValueError(f"`{self.owner}`: {str(self.folder)!r} has no checkpoint {name!r}. It has {known}.")

    def build(self) -> tuple[lightning.LightningModule, lightning.LightningDataModule]:
        """Task and data of the configuration, with the weights of a new network."""
        built = self._built(model=lightning.LightningModule, data=lightning.LightningDataModule)
        return built.model, built.data

    def build_task(self) -> lightning.LightningModule:
        """The task alone; the data may be gone."""
        return cast(lightning.LightningModule, self._built(model=lightning.LightningModule).model)

    def build_data(self, **changed: Any) -> lightning.LightningDataModule:
        """The data of the configuration with other arguments; the task is not built."""
        described = self.config["data"]
        described["init_args"] = {**(described.get("init_args") or {}), **changed}
        return cast(lightning.LightningDataModule, self._built(data=lightning.LightningDataModule).data)

    def _built(self, **kinds: type) -> Any:
        deny_foreign_code()
        parser = LightningArgumentParser(exit_on_error=False)
        for key, kind in kinds.items():
            parser.add_lightning_class_args(kind, key, subclass_mode=True)
        # The parser writes its own objects into lists.
        described = copy.deepcopy({key: self.config[key] for key in kinds})
        with explained(described):
            return parser.instantiate_classes(parser.parse_object(described))

    def log(self, name: str) -> tuple[list[int], list[float]]:
        """One column of the run's log; see `read_log`."""
        return read_log(self.folder, name)


def open_run(path: Path, owner: str) -> tuple[RunFolder, Checkpoint]:
    """A run's folder and its checkpoint, the best or else the last; or those of a .ckpt file in such a folder."""
    if path.suffix != ".ckpt":
        run = RunFolder(path, owner)
        return run, run.checkpoint()
    folder = path.parent.parent if path.parent.name == KEPT else path.parent
    run = RunFolder(folder, owner)
    return run, run.checkpoint(path.stem)


class MetricsLog(CSVLogger):
    """Lightning's ``metrics.csv``, which a kill leaves whole when a column is added, and without repeated rows."""

    _latest: tuple[int | None, dict[str, Any]] | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = (step, dict(metrics))
        if row != self._latest:  # `StepCheckpoint` logs a step early, Lightning once more
            super().log_metrics(metrics, step)
        self._latest = row

    @rank_zero_only
    def save(self) -> None:
        table = self.experiment
        file = Path(table.metrics_file_path)
        columns = sorted({*table.metrics_keys, *(name for row in table.metrics for name in row)})
        if columns != table.metrics_keys and file.is_file():
            with file.open(newline="", encoding="utf-8") as old:
                rows = list(csv.DictReader(old))
            wider = io.StringIO(newline="")
            writer = csv.DictWriter(wider, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(file, wider.getvalue())
        table.metrics_keys = columns  # so that Lightning finds nothing new, and appends
        super().save()


def read_log(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of a run's CSV logs, with those of resumed parts; empty if there is none."""
    values = {}
    for row in log_rows(folder):
        step, value = _number(row.get("step")), _number(row.get(name))
        if step is not None and value is not None:
            values[int(step) + 1] = value  # the loggers count steps from 0, the checkpoints from 1
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def write_log(folder: Path, name: str, steps: list[int], values: list[float]) -> None:
    """A log for `read_log`, of a run that was made elsewhere."""
    lines = [f"step,{name}", *(f"{step - 1},{value!r}" for step, value in zip(steps, values, strict=True))]
    write_text(folder / LOGS / "version_0" / "metrics.csv", "\n".join([*lines, ""]))


def log_rows(folder: Path) -> Iterator[dict[str, str]]:
    """The rows of a run's CSV logs in the order of writing, text by column."""
    files = folder.glob(f"{LOGS}/version_*/metrics.csv")
    for file in sorted(files, key=lambda f: (len(f.parent.name), f.parent.name)):
        with file.open(newline="", encoding="utf-8") as lines:
            yield from csv.DictReader(lines)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def pick_device(owner: str, name: str, kinds: Sequence[str]) -> torch.device:
    """The device called ``name``, one of the ``kinds`` that the owner can use; "auto" takes CUDA where it is present.

    A ValueError names the devices that are here.
    """
    is_here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present = [kind for kind in kinds if is_here[kind]]
    if name == "auto":
        return torch.device("cuda" if "cuda" in present else "cpu")
    if name not in present:
        raise InvalidValueError(f"`{owner}`: `device` must be one of auto, {', '.join(present)} here. Got {name!r}.")
    return torch.device(name)
