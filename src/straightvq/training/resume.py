"""Exact resume: the random states that Lightning's checkpoints lack."""

import random
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from straightvq import internals


class ExactResume(Callback):
    """Saves the random states of torch (CPU and CUDA), numpy and Python with every checkpoint, and restores them.

    Each training batch begins with the random state that the one before it left, whatever draws numbers in between
    (validation, loaders that start). A run that is stopped and resumed therefore gives the same numbers as one that
    never stopped. Checkpoints still load with ``weights_only=True``.

    Several processes save the states of the first: draw what must differ between ranks from (seed, step, rank), as the
    quantizers do.

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
        if trainer.ckpt_path is not None:
            internals.restore_loader(trainer)
        else:  # a second `fit` starts from whatever the caller has seeded
            self._state = None

    def on_train_batch_start(self, *_: Any) -> None:
        if self._state is not None:
            _restore(self._state)

    def on_train_batch_end(self, *_: Any) -> None:
        self._state = _capture()

    def state_dict(self) -> dict[str, Any]:
        return {} if self._state is None else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _capture() -> dict[str, Any]:
    kind, keys, *others = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *others],
        "python": [version, torch.tensor(internal), gauss_next],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore(state: dict[str, Any]) -> None:
    # A checkpoint may have been loaded onto another device.
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, *others = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *others))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.cpu().tolist()), gauss_next))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
