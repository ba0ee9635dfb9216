"""Stopping and going on: the newest state on disk, and the random states that Lightning's checkpoints lack."""

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from torch import Tensor

from straightvq.nn.part import check_int

__all__ = ["ExactResume", "KeptCheckpoints", "LastCheckpoint", "StepCheckpoint", "WholeFiles", "write_aside"]


class ExactResume(Callback):
    """Saves and restores the random states of torch (CPU and CUDA), numpy and Python with every checkpoint.

    Each training batch begins with the random state that the one before it left, in an uninterrupted run as in a
    resumed one. What draws numbers in between (loaders that are started, validation) therefore does not change the
    training, and a run that is stopped and resumed gives the same numbers as one that never stopped.

    The state consists of tensors, lists and numbers, so that checkpoints load with ``weights_only=True``. In a run
    of several processes the states of the first one are saved: draw what must differ between ranks from (seed, step,
    rank), as the quantizers do.

    Example:
        >>> callback = ExactResume()
        >>> callback.on_train_batch_end()
        >>> first = torch.rand(())
        >>> callback.on_train_batch_start()
        >>> bool(torch.rand(()) == first)
        True
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A second ``fit`` that resumes nothing starts from whatever the caller has seeded."""
        if trainer.ckpt_path is None:
            self._state = None
        else:
            _find_place(trainer.fit_loop)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._state is not None:
            _restore(self._state)

    def on_train_batch_end(self, *_: Any) -> None:
        self._state = _capture()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._state is None else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


class StepCheckpoint(Checkpoint, ABC):
    """Writes the state of every so many optimizer steps, together with all that belongs to the step.

    A checkpoint says that a step is done, and a resumed run logs nothing of it again. Therefore the step's values are
    in the logs before the checkpoint is written, and where a validation follows on the step, it comes first.

    Args:
        every_n_steps: optimizer steps between two writes, at least 1.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = check_int(self, "every_n_steps", every_n_steps, 1)
        self._saved = 0
        self._waits = False  # for the end of the validation

    @abstractmethod
    def file(self, step: int) -> Path:
        """Where the state after ``step`` optimizer steps is written."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Between two micro-batches of a step that was resumed there is nothing to save: their gradients would be lost.
        self._saved, self._waits = trainer.global_step, False

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        # With gradient accumulation a step has several batches.
        if step % self.every_n_steps or step == self._saved:
            return
        self._waits = _validation_follows(trainer)
        if not self._waits:
            _log_step(trainer)
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._waits:
            self._waits = False
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step != self._saved and not getattr(trainer, "fast_dev_run", False):
            self._saved = trainer.global_step
            trainer.save_checkpoint(self.file(self._saved))


class LastCheckpoint(StepCheckpoint):
    """Keeps the newest state in one file: every so many steps, and when training ends.

    Lightning's own "last" is written when the best one is, so never without validation.

    Whoever goes on from it repeats nothing of its step. It belongs behind the other checkpoints in the list of
    callbacks: one that is still to be written when the training is killed would be missing for good.

    Args:
        path: the file, overwritten each time.
        every_n_steps: optimizer steps between two writes, at least 1.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.path = path

    def file(self, step: int) -> Path:
        return self.path

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._save(trainer)


class KeptCheckpoints(StepCheckpoint):
    """Keeps the state of every so many steps in a file of its own, for what looks back at the training.

    Args:
        folder: where ``step-00000500.ckpt`` and the like are written.
        every_n_steps: optimizer steps between two files, at least 1.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.folder = folder

    def file(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints aside and renames them when they are complete and on the disk.

    Whoever is killed while writing leaves the previous file untouched, and ``.<name>.tmp`` beside it, which the next
    write replaces. (Lightning writes into the folder for temporary files first; where that is another file system, its
    "move" is a copy that can be cut.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_aside(Path(path), lambda file: torch.save(checkpoint, file))


def write_aside(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls ``write`` with an open file, which takes the place of ``path`` only when it is complete.

    Raises:
        OSError: with the name of the file, if the disk refuses it; also where ``write`` makes another error of that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise OSError(refusal.errno, refusal.strerror, str(path)) from error


def _refusal(error: BaseException) -> OSError | None:
    """What the disk said without the name of a file: `torch.save` turns it into an error of its own archive."""
    found = error.__context__ if isinstance(error, RuntimeError) else error
    return found if isinstance(found, OSError) and found.errno is not None and found.filename is None else None


def _validation_follows(trainer: lightning.Trainer) -> bool:
    """Whether the Trainer validates between this batch and the next."""
    loop: Any = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher) and sum(trainer.num_val_batches) > 0


def _log_step(trainer: lightning.Trainer) -> None:
    """Logs the step's values now and puts them on the disk; Lightning would do it after the callbacks."""
    connector: Any = trainer._logger_connector
    connector.update_train_step_metrics()
    for logger in trainer.loggers:
        logger.save()


def _find_place(loop: Any) -> None:
    """Gives the training loader its state if Lightning has not.

    A schedule over ``max_epochs`` asks for the number of batches (``Trainer.estimated_stepping_batches``). The loader
    is then made before the checkpoint is read, and Lightning 2.6 loads the states of new loaders only.
    """
    states, loader = loop._combined_loader_states_to_load, loop._combined_loader
    if states and loader is not None:
        loader._load_state_dicts(states)
        loop._combined_loader_states_to_load = []


def _capture() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(internal), gauss_next],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore(state: dict[str, Any]) -> None:
    # A checkpoint may have been loaded onto another device.
    torch.set_rng_state(_on_cpu(state["torch"]))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, _on_cpu(keys).numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(_on_cpu(internal).tolist()), gauss_next))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_on_cpu(state["cuda"]))


def _on_cpu(value: Tensor) -> Tensor:
    return value.cpu()
