"""Stopping a training whose values are no longer finite, while the last checkpoint is still good."""

from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from straightvq.checkpoints import LastCheckpoint
from straightvq.errors import NonFiniteError as NonFiniteError
from straightvq.hub.states import listed
from straightvq.nn import Quantizer
from straightvq.nn.part import check_int
from straightvq.nn.ranks import sum_over_ranks

_NEVER = 1 << 62


class _StoppedError(NonFiniteError):
    """Raised here, with a message that already says when it was and where to go on from."""


class StopOnNonFinite(Callback):
    """Stops the training at the first loss or gradient that is NaN or infinite, before any of it is saved.

    One CPU process checks each step before the optimizer takes it. Accelerators and several ranks would wait for each
    other: they remember the first bad step on the device and read it every ``every_n_steps`` steps and before every
    checkpoint, all at once. No checkpoint holds a parameter or a codebook that is not finite.

    A quantizer refuses such embeddings by itself; its error then gets a note with the step and the last good
    checkpoint. Gradients under 16-bit loss scaling are left to the scaler, which skips steps that overflow.

    Args:
        every_n_steps: steps between two checks where checking costs time, at least 1.

    Raises:
        NonFiniteError: while fitting.

    Example:
        >>> StopOnNonFinite().every_n_steps
        50
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = check_int(self, "every_n_steps", every_n_steps, 1)
        self._first: Tensor | None = None  # steps of the first bad loss and of the first bad gradient

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = torch.full((2,), _NEVER, device=pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach()).all()
        if not _can_look(trainer, pl_module):
            self._remember(0, trainer, finite)
        elif not finite:
            raise _error(trainer, f"the loss of step {trainer.global_step + 1} is {loss.item():g}{_terms(trainer)}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        # The largest size, not the usual norm: a sum of squares may overflow where all values are finite.
        largest = torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters], float("inf"))
        finite = torch.isfinite(_whole(largest))
        if not _can_look(trainer, pl_module):
            self._remember(1, trainer, finite)
        elif not finite:
            bad = {id(p) for p in parameters if not torch.isfinite(cast(Tensor, p.grad)).all()}
            names = listed([name for name, p in pl_module.named_parameters() if id(p) in bad])
            raise _error(trainer, f"the gradient of step {trainer.global_step + 1} is not finite, of {names}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._look_back(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        self._look_back(trainer)
        if names := _spoiled(pl_module):
            raise _error(trainer, f"after step {trainer.global_step} the state is not finite: {listed(names)}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError) and not isinstance(exception, _StoppedError):
            is_first = self._first is None or self._first.min() >= _NEVER
            before = "" if is_first else f"; {self._earliest()} was not finite"
            exception.add_note(f"This was step {trainer.global_step + 1} of the training{before}. {_way_out(trainer)}")

    def _remember(self, place: int, trainer: Trainer, finite: Tensor) -> None:
        if self._first is not None:
            step = torch.where(finite, _NEVER, trainer.global_step + 1)
            self._first[place] = torch.minimum(self._first[place], step)

    def _look_back(self, trainer: Trainer) -> None:
        if self._first is None or _can_look(trainer, trainer.lightning_module):
            return
        # Every rank comes here at the same steps, whatever it has seen.
        bad = sum_over_ranks((self._first < _NEVER).long(), None)
        if bad.any():
            what = self._earliest() if self._first.min() < _NEVER else "a value on another rank"
            raise _error(trainer, f"{what} was not finite (seen after step {trainer.global_step})")

    def _earliest(self) -> str:
        assert self._first is not None
        loss, gradient = self._first.tolist()
        return f"the loss of step {loss}" if loss <= gradient else f"the gradient of step {gradient}"


def _can_look(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether a value can be read without waiting, and without keeping another rank waiting."""
    return trainer.world_size == 1 and pl_module.device.type == "cpu"


def _whole(value: Tensor) -> Tensor:
    """Gathers a value that is sharded over ranks."""
    return cast(Any, value).full_tensor() if hasattr(value, "full_tensor") else value


def _terms(trainer: Trainer) -> str:
    """The logged values of this step that are not finite, for the message."""
    values = {name: v for name, v in trainer.callback_metrics.items() if not name.startswith(("val/", "test/"))}
    bad = [f"{name} {float(v):g}" for name, v in values.items() if not torch.isfinite(v).all()]
    return f" ({', '.join(bad)})" if bad else ""


def _spoiled(module: nn.Module) -> list[str]:
    """Names of the state that is not finite; a buffer outside of quantizers may be infinite, as a mask is."""
    strict = {id(t) for m in module.modules() if isinstance(m, Quantizer) for t in m.buffers()}
    strict |= {id(p) for p in module.parameters()}
    names = []
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        bad = ~torch.isfinite(_whole(value)) if id(value) in strict else torch.isnan(_whole(value))
        if bad.any():
            names.append(name)
    return names


def _error(trainer: Trainer, what: str) -> _StoppedError:
    reason = "Values that are not finite never recover, so the training stops."
    return _StoppedError(f"`StopOnNonFinite`: {what}. {reason}\n{_way_out(trainer)}")


def _way_out(trainer: Trainer) -> str:
    written = trainer.checkpoint_callbacks
    files = [Path(each.path) for each in written if isinstance(each, LastCheckpoint)]
    files += [Path(each.best_model_path) for each in written if isinstance(each, ModelCheckpoint)]
    good = next((file for file in files if file.is_file()), None)
    where = f"The last good checkpoint is {good}." if good else "No checkpoint had been written."
    return f"{where} Usual cures: a lower learning rate, a longer warm-up, Trainer(gradient_clip_val=1.0)."
