"""A callback that follows the codebooks of any LightningModule while it trains."""

import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from straightvq import internals
from straightvq.diagnostics import GradientGap
from straightvq.nn.part import check_float, check_int
from straightvq.nn.ranks import sum_over_ranks
from straightvq.training.concerns import CodebookWarning, Concerns, no_update
from straightvq.training.evaluation import HasHead, Totals, measure_gradient_gap
from straightvq.training.pictures import Album, images_of, reconstruct
from straightvq.training.window import Followed, Reading, Window, follow

__all__ = ["CodebookMonitor", "CodebookWarning", "HasHead"]


class CodebookMonitor(lightning.Callback):
    """Follows every `straightvq.Quantizer` inside a LightningModule: numbers, warnings, pictures, a history.

    The quantizers are found when fitting starts and followed by forward hooks until it ends; composites are
    followed part by part. Forwards cost a few sums on the device, which is read once per window only. Nothing that
    training computes changes, and no random number is drawn. All numbers are those of the summed counts of all
    ranks, and masked positions take part in none.

    Logged per window of training, as ``codebook/...``, and per evaluation over the whole set, as
    ``val/codebook/...`` and ``test/codebook/...``; with several quantizers each name is preceded by that of the
    quantizer, its path in the module:

    - ``usage``: fraction of the codes assigned at least once, 0 to 1;
    - ``perplexity``: effective number of codes, 1 to the size of the codebook;
    - ``dead_codes``: number of codes never assigned;
    - ``error``: quantization error over the variance of the embeddings, 0 perfect, 1 as good as a single code;
    - training only, ``commitment``: mean (z - code)^2 over all elements, in squared units of the embeddings;
    - evaluation only, ``mean_distance``, ``std_distance``, ``wasserstein`` (in standard deviations of the
      embeddings) and ``symmetric_kl`` (nats) between the embeddings' and the codebook's moments;
    - validation only, if the task offers `HasHead` and has one quantizer: ``gradient_gap_norm`` (in the gradient's
      unit), ``gradient_gap`` (relative to the gradient without quantizer, 0 exact) and ``gradient_cosine`` (1 exact)
      on each rank's first batch.

    Under ``torch.compile`` training forwards stay in the graph and evaluation forwards break it behind the quantizer.
    Embeddings and codes are compared in the codebook's space, behind the quantizer's transform. The page
    ``docs/collapse.md`` says what is normal.

    Warns once per run and quantizer with `CodebookWarning`: of a collapse; of codes that nothing moves; of a
    commitment term that grows together with the relative error.

    Args:
        every_n_steps: steps per window, at least 1; None takes the Trainer's ``log_every_n_steps``.
        collapse_usage: usage in [0, 1] below which a window counts as collapsed. Windows with fewer than four
            vectors per code are widened until they have as many.
        patience: number of collapsed windows in a row before the warning, at least 1.
        pictures_every: draws pictures at every so many validations, 0 for never: reconstructions of the first
            validation images (if the task has an autoencoder as ``model``), codes beside embeddings, and the
            codes' frequencies, into ``pictures`` of the Trainer's log folder and onto TensorBoard.

    Attributes:
        history: one dictionary for each window and evaluation of each quantizer, in order: ``stage`` ("train",
            "val" or "test"), ``step``, ``name`` and the logged values under the names above.

    Raises:
        TypeError, ValueError: for values out of range.

    Source: arXiv 2305.08842, section 3: index collapse, divergence of embeddings and codebook, gradient gap.

    Example:
        >>> CodebookMonitor(every_n_steps=100).history
        []
    """

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        collapse_usage: float = 0.1,
        patience: int = 3,
        pictures_every: int = 1,
    ) -> None:
        self.every_n_steps = None if every_n_steps is None else check_int(self, "every_n_steps", every_n_steps, 1)
        self.collapse_usage = check_float(self, "collapse_usage", collapse_usage, minimum=0, maximum=1)
        self.patience = check_int(self, "patience", patience, 1)
        self.pictures_every = check_int(self, "pictures_every", pictures_every, 0)
        self.history: list[dict[str, Any]] = []
        self._followed: list[_Subject] = []
        self._stage: str | None = None
        self._batches = 0  # of the open window
        self._validations = 0
        self._loaded: dict[str, Any] = {}
        self._images: Tensor | None = None
        self._gap: GradientGap | None = None

    # --- following ----------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._follow(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._remove()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._remove()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._remove()

    def _follow(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._remove()
        self._followed = [
            _Subject(followed, Concerns(followed.size, self.collapse_usage, self.patience), pl_module.device)
            for followed in follow(pl_module, self._seen)
        ]
        self._take_over(trainer)

    def _take_over(self, trainer: lightning.Trainer) -> None:
        """Applies what was loaded, or what an earlier fit left behind."""
        if not self._loaded:
            return
        # The open window's sums are the first rank's alone: with several ranks the window starts again.
        with_window = trainer.world_size == 1
        self._batches = self._loaded["batches"] if with_window else 0
        for subject in self._followed:
            saved = self._loaded["quantizers"].get(subject.followed.name)
            if saved is not None and saved["window_table"].shape == subject.window.table.shape:
                subject.load(saved, with_window=with_window)
        self._loaded = {}

    def _remove(self) -> None:
        if self._followed:
            self._loaded = self.state_dict()  # a second fit goes on
        for subject in self._followed:
            subject.followed.remove()
        self._followed = []
        self._stage = None

    def _seen(self, followed: Followed, z: Tensor, code: Tensor, indices: Tensor) -> None:
        subject = next(s for s in self._followed if s.followed is followed)
        if self._stage == "train" and followed.quantizer.training:
            subject.window.add(z, code, indices)
        elif self._stage in ("val", "test") and subject.totals is not None:
            subject.totals.add(z, code, indices, followed.codes())

    # --- training -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stage = "train"
        self._take_over(trainer)  # some strategies load a checkpoint after the fit has started
        if not self._batches:  # else the codes at the start of the window are unknown
            for subject in self._followed:
                subject.snapshot = subject.followed.snapshot()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batches += 1
        steps = self.every_n_steps or getattr(trainer, "log_every_n_steps", 0) or 50
        if self._batches < steps * trainer.accumulate_grad_batches:
            return
        self._batches = 0
        for subject in self._followed:
            self._close_window(trainer, pl_module, subject)

    def _close_window(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, subject: "_Subject"
    ) -> None:
        reading, counts = subject.window.read()
        before, subject.snapshot = subject.snapshot, subject.followed.snapshot()
        subject.window = Window(subject.followed.size, subject.followed.dim, pl_module.device)
        if reading is None:
            return
        values = {name: value for name, value in reading._asdict().items() if name != "vectors"}
        step = _step(trainer)
        self._remember("train", step, subject, values)
        named = {self._key(subject, name): value for name, value in values.items()}
        # The loggers get the window when it ends, which need not be when the Trainer logs.
        pl_module.log_dict(named, on_step=True, on_epoch=False, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(named, step=step - 1)
        unchanged = before is not None and subject.snapshot is not None and torch.equal(before, subject.snapshot)
        self._warn(trainer, subject, reading, counts, unchanged)

    def _warn(
        self, trainer: lightning.Trainer, subject: "_Subject", reading: Reading, counts: Tensor, unchanged: bool
    ) -> None:
        followed, concerns = subject.followed, subject.concerns
        messages = [
            *concerns.once("collapse", concerns.collapse(counts, followed.quantizer)),
            *concerns.once("no update", no_update(followed, unchanged, trainer.optimizers)),
            *concerns.once("divergence", concerns.divergence(reading)),
        ]
        if trainer.is_global_zero:
            for message in messages:
                warnings.warn(f"`{followed.name}`, step {_step(trainer)}: {message}", CodebookWarning, stacklevel=2)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._start_evaluation(trainer, pl_module, "val")

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start_evaluation(trainer, pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._stage != "val" or batch_idx or dataloader_idx:
            return
        if self._images is None:
            self._images = images_of(batch)
        self._stage = None
        self._gap = measure_gradient_gap(pl_module, batch)
        self._stage = "val"

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._stage != "val":
            return
        self._finish_evaluation(trainer, pl_module)
        self._validations += 1
        if (
            self.pictures_every
            and not (self._validations - 1) % self.pictures_every
            and not getattr(trainer, "fast_dev_run", 0)
        ):
            self._draw(trainer, pl_module)

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._finish_evaluation(trainer, pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for subject in self._followed:
            subject.totals = None
        self._stage = "train" if trainer.state.fn == "fit" and not trainer.sanity_checking else None

    def _start_evaluation(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if not self._followed:
            self._follow(trainer, pl_module)
        self._stage = stage
        self._gap = None
        for subject in self._followed:
            subject.totals = Totals(subject.followed, pl_module.device)

    def _finish_evaluation(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        stage, self._stage = self._stage, None
        assert stage is not None
        for subject in self._followed:
            values = subject.totals.compute() if subject.totals is not None else {}
            if len(self._followed) == 1 and self._gap is not None:
                norm, relative, cosine = self._gap
                values |= {"gradient_gap_norm": norm, "gradient_gap": relative, "gradient_cosine": cosine}
            # The totals are equal on all ranks, so their mean is they; the gap's is the mean of the first batches.
            named = {f"{stage}/{self._key(subject, name)}": value.float() for name, value in values.items()}
            pl_module.log_dict(named, sync_dist=True)
            if values:
                self._remember(stage, _step(trainer), subject, {k: _number(v) for k, v in values.items()})

    def _draw(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # On all ranks up to the drawing: the folder's name, the counts and a sharded model need all of them.
        folder = trainer.log_dir
        reconstructed = None if self._images is None else reconstruct(pl_module, self._images)
        counts = [sum_over_ranks(s.totals.usage.counts, None) for s in self._followed if s.totals is not None]
        if not trainer.is_global_zero or folder is None:
            return
        album = Album(trainer, Path(folder) / "pictures", _step(trainer))
        if self._images is not None and reconstructed is not None:
            album.reconstructions(self._images, reconstructed)
        for subject, totals in zip(self._followed, counts, strict=True):
            z = subject.totals.vectors() if subject.totals is not None else None
            if z is not None and totals.any():
                album.codebook(self._short(subject), z, subject.followed.codes(), totals)

    # --- names, history, state ----------------------------------------------------------------------------------

    def _short(self, subject: "_Subject") -> str:
        name = subject.followed.name
        return name.rpartition(".")[2] if len(self._followed) == 1 else name

    def _key(self, subject: "_Subject", name: str) -> str:
        return f"codebook/{name}" if len(self._followed) == 1 else f"{subject.followed.name}/codebook/{name}"

    def _remember(self, stage: str, step: int, subject: "_Subject", values: dict[str, float]) -> None:
        self.history.append({"stage": stage, "step": step, "name": self._short(subject), **values})

    def state_dict(self) -> dict[str, Any]:
        """History, warnings given and the open window, as plain values and tensors."""
        if not self._followed and self._loaded:
            return self._loaded
        return {
            "history": [dict(row) for row in self.history],
            "batches": self._batches,
            "validations": self._validations,
            "quantizers": {subject.followed.name: subject.state() for subject in self._followed},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state over; the quantizers' part is applied when they are found."""
        self.history = [dict(row) for row in state_dict["history"]]
        self._validations = state_dict["validations"]
        self._loaded = state_dict


class _Subject:
    """All that belongs to one followed quantizer."""

    def __init__(self, followed: Followed, concerns: Concerns, device: torch.device) -> None:
        self.followed = followed
        self.concerns = concerns
        self.window = Window(followed.size, followed.dim, device)
        self.snapshot: Tensor | None = None  # the codes when the window was opened
        self.totals: Totals | None = None

    def state(self) -> dict[str, Any]:
        concerns = self.concerns
        return {
            "window_counts": self.window.counts.cpu().clone(),
            "window_table": self.window.table.cpu().clone(),
            "counts": concerns.counts.cpu().clone(),
            "low": concerns.low,
            "reference": concerns.reference,
            "warned": list(concerns.warned),
        }

    def load(self, state: dict[str, Any], *, with_window: bool) -> None:
        concerns = self.concerns
        if with_window:
            self.window.counts.copy_(state["window_counts"])
            self.window.table.copy_(state["window_table"])
        concerns.counts = state["counts"].clone()
        concerns.low = state["low"]
        concerns.reference = state["reference"]
        concerns.warned = list(state["warned"])


def _step(trainer: lightning.Trainer) -> int:
    """Steps of training done, by the loggers' count: one per batch that stepped, whatever the number of optimizers."""
    # Inside `fit` the hooks run before Lightning counts the step that they belong to.
    return internals.logged_step(trainer) + int(trainer.state.fn == "fit")


def _number(value: Tensor) -> float:
    return int(value) if value.dtype == torch.int64 else float(value)
