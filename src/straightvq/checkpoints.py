"""Checkpoints of a run: their names, the callbacks that write them, and how they are read."""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import nn

from straightvq import internals
from straightvq.errors import InvalidValueError
from straightvq.hub.states import differences
from straightvq.io import remove_unfinished, replacing
from straightvq.nn.part import check_int

BEST, LAST = "best", "last"
"""Names of a run's checkpoints, as ``--ckpt_path`` takes them."""
KEPT, STEP = "checkpoints", "step-{step}"
"""Subfolder and names of the checkpoints that ``--keep_every`` writes."""


def checkpoint_file(folder: Path, name: str) -> Path:
    """Where a run's folder holds the checkpoint of that name."""
    return folder / f"{name}.ckpt"


def checkpoint_files(folder: Path) -> list[Path]:
    """All checkpoints in a run's folder, the kept ones included."""
    return sorted([*folder.glob("*.ckpt"), *folder.glob(f"{KEPT}/*.ckpt")])


class StepCheckpoint(CheckpointCallback):
    """Writes the state of every so many optimizer steps.

    A resumed run repeats nothing of the checkpoint's step. Therefore the step's values are in the logs before the
    checkpoint is written, and a validation that follows on the step comes first.

    Args:
        path: the file; ``{step}`` in its name becomes the number of steps, so that all files are kept.
        every_n_steps: optimizer steps between two writes, at least 1.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = path, check_int(self, "every_n_steps", every_n_steps, 1)
        self._saved = 0
        self._waits = False  # for the end of the validation

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Nothing is saved between two micro-batches of a step: their gradients would be lost.
        self._saved, self._waits = trainer.global_step, False

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        # With gradient accumulation a step has several batches.
        if trainer.global_step % self.every_n_steps or trainer.global_step == self._saved:
            return
        self._waits = internals.validation_follows(trainer)
        if not self._waits:
            internals.log_step(trainer)
            for logger in trainer.loggers:
                logger.save()
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._waits:
            self._waits = False
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Writes the state of this step, unless it has been written."""
        if trainer.global_step != self._saved and not getattr(trainer, "fast_dev_run", False):
            self._saved = trainer.global_step
            name = self.path.name.replace("{step}", f"{self._saved:08d}")
            trainer.save_checkpoint(self.path.with_name(name))


class LastCheckpoint(StepCheckpoint):
    """Keeps the newest state in one file: every so many steps, and when training ends.

    Lightning's own "last" needs a validation. Put this callback behind all others: a resumed run repeats nothing of
    the step, so what other checkpoints had not yet written when the training was killed would be missing for good.

    Args:
        path: the file, overwritten each time.
        every_n_steps: optimizer steps between two writes, at least 1.
    """

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.save(trainer)


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints as `straightvq.io.replacing` does, and removes what a killed process left unfinished.

    Lightning's own writer moves a file from the folder for temporary files: a copy, if that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # not on a disk
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        remove_unfinished(Path(path))
        with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)


@dataclass(frozen=True)
class Checkpoint:
    """One state of the training: its file, the names of all files with this step, and the optimizer steps done."""

    path: Path
    names: tuple[str, ...]
    step: int

    @classmethod
    def at(cls, path: Path, owner: str = "analyze") -> "Checkpoint":
        """The checkpoint in that file; raises as `read_checkpoint` does."""
        return cls(path, (path.stem,), read_checkpoint(path, owner)["global_step"])


def read_checkpoint(file: Path, owner: str = "analyze") -> dict[str, Any]:
    """Reads a checkpoint of Lightning's and runs no code of the file. Tensors stay on the disk until they are used.

    A ValueError refuses damaged files, objects other than tensors and plain values, and files of another kind.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what torch.load raises for damaged files is not documented
        raise InvalidValueError(
            f"`{owner}`: {str(file)!r} cannot be read as a checkpoint: it is damaged, or holds other objects than "
            "tensors and plain values, which are not loaded."
        ) from error
    is_sound = isinstance(content, dict) and isinstance(content.get("state_dict"), dict)
    if not is_sound or not isinstance(content.get("global_step"), int):
        raise InvalidValueError(f"`{owner}`: {str(file)!r} is not a checkpoint of a training run.")
    return content


def find_sound(folder: Path, *, other_than: Path) -> Checkpoint | None:
    """The newest readable checkpoint of a run's folder, leaving one out."""
    sound = []
    for file in checkpoint_files(folder):
        with contextlib.suppress(InvalidValueError):
            sound += [Checkpoint.at(file)] if file != other_than else []
    return max(sound, key=lambda checkpoint: checkpoint.step, default=None)


def load_weights(task: lightning.LightningModule, checkpoint: Checkpoint, owner: str = "analyze") -> None:
    """Loads the network's weights strictly; a ValueError refuses those of another network than the configuration's."""
    state = read_checkpoint(checkpoint.path, owner)["state_dict"]
    if found := differences(task, state):
        raise InvalidValueError(
            f"`{owner}`: {str(checkpoint.path)!r} is of another network, or another version of it, than config.yaml "
            f"describes: it {found}. Use the version that trained it; config.yaml names it."
        )
    task.load_state_dict(state)


def fingerprint(network: nn.Module) -> str:
    """A hash of the class and all weights, bit by bit."""
    key = hashlib.sha256(type(network).__qualname__.encode())
    for name, value in sorted(network.state_dict().items()):
        key.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        key.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return key.hexdigest()
