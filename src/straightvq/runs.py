"""A finished run as `straightvq fit` leaves it: its configuration, its checkpoints, its log."""

import contextlib
import csv
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from straightvq.errors import InvalidValueError
from straightvq.io import write_text

KEPT = "checkpoints"
"""Subfolder of the checkpoints that ``--keep_every`` writes."""


@dataclass(frozen=True)
class Checkpoint:
    """One state of the training.

    Attributes:
        path: its file.
        names: all files of the run that hold this step, without suffix.
        step: optimizer steps done.
    """

    path: Path
    names: tuple[str, ...]
    step: int


class RunFolder:
    """What is in a run's folder.

    Args:
        folder: the folder, with ``config.yaml`` and at least one checkpoint, in it or in ``checkpoints/``.
        owner: who asks, for messages.

    Attributes:
        config: the configuration of the training, all defaults included.

    Raises:
        ValueError: if it is no such folder.
    """

    def __init__(self, folder: Path, owner: str = "analyze") -> None:
        self.folder, self.owner = folder, owner
        if not folder.is_dir():
            raise InvalidValueError(
                f"`{owner}`: there is no folder {str(folder)!r}. Pass the one that `straightvq fit` made."
            )
        self.config = self._read_config()
        self._files = sorted([*folder.glob("*.ckpt"), *folder.glob(f"{KEPT}/*.ckpt")])
        if not self._files:
            raise InvalidValueError(
                f"`{owner}`: {str(folder)!r} has no checkpoint: neither last.ckpt, nor best.ckpt, nor any in {KEPT}/. "
                "Train until the first is written (--save_every)."
            )

    def _read_config(self) -> dict[str, Any]:
        file = self.folder / "config.yaml"
        hint = "Pass a folder that `straightvq fit` made, such as runs/photos."
        if not file.is_file():
            here = f"{str(self.folder)!r} is not a run's folder"
            raise InvalidValueError(f"`{self.owner}`: {here}: it has no config.yaml. {hint}")
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidValueError(f"`{self.owner}`: {str(file)!r} is not readable as YAML. {hint}") from error
        if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("model", "data")):
            raise InvalidValueError(f"`{self.owner}`: {str(file)!r} configures no model and data. {hint}")
        return config

    @functools.cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """All of them in the order of training, one per step.

        Raises:
            ValueError: if one cannot be read.
        """
        by_step: dict[int, list[Path]] = {}
        for file in self._files:
            by_step.setdefault(int(read_checkpoint(file, self.owner)["global_step"]), []).append(file)
        return [Checkpoint(same[0], tuple(file.stem for file in same), step) for step, same in sorted(by_step.items())]

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """The one of that file name, without suffix; None takes the best, or else the last. No other one is read.

        Raises:
            ValueError: if there is none of that name, or it cannot be read.
        """
        for wanted in ("best", "last") if name is None else (name,):
            for file in self._files:
                if file.stem == wanted:
                    return Checkpoint(file, (wanted,), int(read_checkpoint(file, self.owner)["global_step"]))
        if name is None:
            return self.checkpoints[-1]
        known = ", ".join(file.stem for file in self._files)
        raise InvalidValueError(f"`{self.owner}`: {str(self.folder)!r} has no checkpoint {name!r}. It has {known}.")

    def build(self) -> tuple[lightning.LightningModule, lightning.LightningDataModule]:
        """Task and data as the configuration describes them, the weights still those of a new network."""
        built = self._built({"model": lightning.LightningModule, "data": lightning.LightningDataModule})
        return built.model, built.data

    def build_task(self) -> lightning.LightningModule:
        """The task alone; the data may be gone."""
        return cast(lightning.LightningModule, self._built({"model": lightning.LightningModule}).model)

    def _built(self, kinds: dict[str, type]) -> Any:
        deny_foreign_code()
        parser = LightningArgumentParser(exit_on_error=False)
        for key, kind in kinds.items():
            parser.add_lightning_class_args(kind, key, subclass_mode=True)
        return parser.instantiate_classes(parser.parse_object({key: self.config[key] for key in kinds}))

    def log(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one column of the run's log; see `read_log`."""
        return read_log(self.folder, name)


def read_log(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of a run's CSV logs, resumed parts included; empty if there is none."""
    values = {
        int(step): value
        for row in log_rows(folder)
        if (step := _number(row.get("step"))) is not None and (value := _number(row.get(name))) is not None
    }
    steps = sorted(values)
    # The loggers count a step from 0, the checkpoints from 1.
    return [step + 1 for step in steps], [values[step] for step in steps]


def write_log(folder: Path, name: str, steps: list[int], values: list[float]) -> None:
    """A log for `read_log`, of a run that was made elsewhere."""
    lines = [f"step,{name}", *(f"{step - 1},{value!r}" for step, value in zip(steps, values, strict=True))]
    write_text(folder / "metrics" / "version_0" / "metrics.csv", "\n".join([*lines, ""]))


def log_rows(folder: Path) -> Iterator[dict[str, str]]:
    """The rows of a run's CSV logs as they were written, text by column."""
    files = folder.glob("metrics/version_*/metrics.csv")
    for file in sorted(files, key=lambda f: (len(f.parent.name), f.parent.name)):
        with file.open(newline="", encoding="utf-8") as lines:
            yield from csv.DictReader(lines)


def read_checkpoint(file: Path, owner: str = "analyze") -> dict[str, Any]:
    """A checkpoint of Lightning's, by the loader that runs no code of the file. Tensors stay on disk until used.

    Raises:
        ValueError: if it is damaged, holds other objects than tensors and plain values, or is not one.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what torch.load raises for damaged files is not documented
        raise InvalidValueError(
            f"`{owner}`: {str(file)!r} cannot be read as a checkpoint: it is damaged, or holds other objects than "
            "tensors and plain values, which are not loaded."
        ) from error
    sound = isinstance(content, dict) and isinstance(content.get("state_dict"), dict)
    if not sound or not isinstance(content.get("global_step"), int):
        raise InvalidValueError(f"`{owner}`: {str(file)!r} is not a checkpoint of a training run.")
    return content


def find_sound(folder: Path, *, other_than: Path) -> Checkpoint | None:
    """The newest checkpoint of a run's folder that can be read, leaving one out."""
    sound = []
    for file in sorted([*folder.glob("*.ckpt"), *folder.glob(f"{KEPT}/*.ckpt")]):
        if file != other_than:
            with contextlib.suppress(ValueError):
                sound.append(Checkpoint(file, (file.stem,), read_checkpoint(file)["global_step"]))
    return max(sound, key=lambda checkpoint: checkpoint.step, default=None)


def deny_foreign_code() -> None:
    """Configurations may name parts of networks, data and training; nothing that runs code, reads or writes files.

    jsonargparse checks that a class fits its slot. Its list of denied modules (os, subprocess, pickle, functools, ...)
    also covers slots for functions, but only warns unless it is switched on. Holds for the whole process.
    """
    set_parsing_settings(
        import_path_denylist=["torch.hub", "torch.serialization", "torch.jit"], instantiate_subclass_spec_in_any=False
    )


def load_weights(task: lightning.LightningModule, checkpoint: Checkpoint, owner: str = "analyze") -> None:
    """Loads the network's weights strictly.

    Raises:
        ValueError: if the checkpoint is of another network than the configuration's.
    """
    state = read_checkpoint(checkpoint.path, owner)["state_dict"]
    found = differences(task, state)
    if found:
        raise InvalidValueError(
            f"`{owner}`: {str(checkpoint.path)!r} is of another network, or another version of it, than config.yaml "
            f"describes: it {found}. Use the version that trained it; config.yaml names it."
        )
    task.load_state_dict(state)


def differences(task: lightning.LightningModule, state: dict[str, Any]) -> str:
    """In which names and shapes a state is not one of this task, "" if in none."""
    own = task.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = sorted(key for key in own.keys() & state.keys() if own[key].shape != getattr(state[key], "shape", None))
    found = [f"{word} {_some(keys)}" for word, keys in (("lacks", missing), ("also has", extra)) if keys]
    found += [f"has {key} {_size(state[key])} instead of {_size(own[key])}" for key in other[:2]]
    return "; it ".join(found)


def pick_device(owner: str, name: str, kinds: Sequence[str]) -> torch.device:
    """The device of that name; "auto" takes the GPU where there is one of Nvidia's.

    Args:
        owner: who asks, for messages.
        name: "auto", or one of ``kinds``.
        kinds: of devices that the owner can use.

    Raises:
        ValueError: if there is no such device here.
    """
    is_here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present = [kind for kind in kinds if is_here[kind]]
    if name == "auto":
        return torch.device("cuda" if "cuda" in present else "cpu")
    if name not in present:
        raise InvalidValueError(f"`{owner}`: `device` must be one of auto, {', '.join(present)} here. Got {name!r}.")
    return torch.device(name)


def _size(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
