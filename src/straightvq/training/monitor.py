"""A callback that follows the codebooks of any LightningModule while it trains."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from straightvq import internals
from straightvq.diagnostics import GradientGap, codebook_scatter, reconstruction_grid, save, usage_histogram
from straightvq.diagnostics.concerns import Concerns
from straightvq.diagnostics.following import Followed, follow, outermost
from straightvq.diagnostics.pictures import pixels
from straightvq.diagnostics.sums import Totals, Window
from straightvq.diagnostics.task import GAP_NAMES, first_images, measure_gradient_gap, reconstruct
from straightvq.nn.part import check_float, check_int
from straightvq.nn.ranks import sum_over_ranks


class CodebookWarning(UserWarning):
    """A codebook collapses, does not move or diverges in training."""


class CodebookMonitor(Callback):
    """Follows every `straightvq.Quantizer` inside a LightningModule: numbers, warnings, pictures, a history.

    Forward hooks follow the quantizers while fitting, composites part by part; the device is read once per window.
    Training computes the same with and without. All numbers come from the summed counts of all ranks, without masked
    positions; embeddings and codes are compared in the codebook's space, behind the transform. ``docs/collapse.md``
    says what is normal.

    Logged per window of training, as ``codebook/...``, and per evaluation over the whole set, as
    ``val/codebook/...`` and ``test/codebook/...``; with several quantizers the path of each comes first:

    - ``usage``: fraction of the codes assigned at least once, 0 to 1;
    - ``perplexity``: effective number of codes, 1 to the size of the codebook;
    - ``dead_codes``: number of codes never assigned;
    - ``error``: quantization error over the variance of the embeddings, 0 perfect, 1 as good as a single code;
    - training only, ``commitment``: mean (z - code)^2 over all elements, in squared units of the embeddings;
    - evaluation only, ``mean_distance``, ``std_distance``, ``wasserstein`` (in standard deviations of the
      embeddings) and ``symmetric_kl`` (nats) between the embeddings' and the codebook's moments;
    - validation only, if the task offers `HasHead` and has one quantizer, which may be a composite:
      ``gradient_gap_norm`` (in the gradient's unit), ``gradient_gap`` (relative to the gradient without quantizer, 0
      exact) and ``gradient_cosine`` (1 exact) on each rank's first batch, of a composite as a whole.

    Where a quantizer has more than 16 million codes they are not counted: the first three are left out.

    Under ``torch.compile`` evaluation forwards break the graph behind the quantizer; training forwards do not.

    Warns once per run and quantizer with `CodebookWarning`: of a collapse; of codes that nothing moves; of a
    commitment term that grows together with the relative error.

    Args:
        every_n_steps: steps per window, at least 1; None takes the Trainer's ``log_every_n_steps``.
        collapse_usage: usage in [0, 1] below which a window counts as collapsed. A window lasts until it has four
            vectors per code.
        patience: number of collapsed windows in a row before the warning, at least 1.
        pictures_every: draws pictures at every so many validations, 0 for never: reconstructions of the first
            validation images (if the task has an autoencoder as ``model``), codes beside embeddings, and the
            codes' frequencies, into ``pictures`` of the Trainer's log folder and onto TensorBoard.

    Attributes:
        history: one dictionary for each window and evaluation of each quantizer, in order: ``stage`` ("train", "val"
            or "test"), ``step``, ``name`` and the logged values under the names above.

    Raises:
        TypeError, ValueError: for values out of range.

    Source: arXiv 2305.08842, section 3: index collapse, divergence of embeddings and codebook, gradient gap.
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
        self._subjects: dict[str, _Subject] = {}  # by their paths in the module
        self._totals: dict[str, Totals] = {}  # of the evaluation that runs
        self._waiting: dict[str, dict[str, Any]] = {}  # loaded, or left by an earlier fit, for the next one
        self._stage: str | None = None  # what the forwards count for at present
        self._batches = 0  # of the open window
        self._validations = 0
        self._images: Tensor | None = None
        self._gap: GradientGap | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(pl_module)

    def on_exception(self, *_: Any) -> None:
        self._remove()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove()

    def _follow(self, pl_module: LightningModule) -> None:
        self._remove()
        found = follow(pl_module, self._seen)
        for each in found:
            concerns = Concerns(each, self.collapse_usage, self.patience)
            self._subjects[each.name] = _Subject(each, concerns, pl_module.device, is_alone=len(found) == 1)

    def _remove(self) -> None:
        self._waiting = self.state_dict()["quantizers"]  # a second fit goes on
        for subject in self._subjects.values():
            subject.followed.remove()
        self._subjects, self._totals, self._stage = {}, {}, None

    def _seen(self, followed: Followed, z: Tensor, code: Tensor, indices: Tensor) -> None:
        if self._stage == "train" and followed.quantizer.training:
            self._subjects[followed.name].window.add(z, code, indices)
        elif self._stage in ("val", "test"):
            self._totals[followed.name].add(z, code, indices, followed.codes())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stage = "train"
        # The open window's sums are the first rank's alone: with several ranks the window starts again.
        with_window = trainer.world_size == 1
        if self._waiting and not with_window:
            self._batches = 0
        for name, state in self._waiting.items():
            if name in self._subjects:
                self._subjects[name].load_state_dict(state, with_window=with_window)
        self._waiting = {}
        if not self._batches:  # else the codes at the start of the window are unknown
            for subject in self._subjects.values():
                subject.concerns.open_window()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._batches += 1
        steps = self.every_n_steps or getattr(trainer, "log_every_n_steps", 0) or 50
        if self._batches < steps * trainer.accumulate_grad_batches:
            return
        self._batches = 0
        for subject in self._subjects.values():
            self._close_window(trainer, pl_module, subject)

    def _close_window(self, trainer: Trainer, pl_module: LightningModule, subject: "_Subject") -> None:
        step = _step(trainer)
        values, counts = subject.window.close()
        messages = subject.concerns.judge(values, counts, trainer.optimizers)
        if values:
            named = self._remember("train", step, subject.name, subject.prefix, values)
            # The loggers get the window when it ends, which need not be when the Trainer logs.
            pl_module.log_dict(named, on_step=True, on_epoch=False, logger=False)
            for logger in trainer.loggers:
                logger.log_metrics(named, step=step - 1)
        if trainer.is_global_zero:
            for message in messages:
                warnings.warn(f"`{subject.followed.name}`, step {step}: {message}", CodebookWarning, stacklevel=2)

    def _remember(self, stage: str, step: int, name: str, prefix: str, values: dict[str, Any]) -> dict[str, Any]:
        """Adds a row to the history, and returns the values under the names that loggers get."""
        self.history.append({"stage": stage, "step": step, "name": name, **values})
        place = "" if stage == "train" else f"{stage}/"
        return {f"{place}{prefix}codebook/{key}": value for key, value in values.items()}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._start_evaluation(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_evaluation(trainer, pl_module, "test")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *numbers: int
    ) -> None:
        if self._stage != "val" or any(numbers):  # of the batch, and of its loader
            return
        if self._images is None:
            self._images = first_images(batch)
        self._stage = None  # the passes below count for nothing
        self._gap = measure_gradient_gap(pl_module, batch)
        self._stage = "val"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stage != "val":
            return
        self._finish_evaluation(trainer, pl_module, "val")
        is_due = self.pictures_every and not self._validations % self.pictures_every
        if is_due and not getattr(trainer, "fast_dev_run", 0):
            self._draw(trainer, pl_module)
        self._validations += 1

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_evaluation(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._totals = {}
        self._stage = "train" if trainer.state.fn == "fit" and not trainer.sanity_checking else None

    def _start_evaluation(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self._subjects:
            self._follow(pl_module)
        self._stage, self._gap = stage, None
        self._totals = {name: Totals(subject.followed, pl_module.device) for name, subject in self._subjects.items()}

    def _finish_evaluation(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = None
        for path, totals in self._totals.items():
            values = totals.compute()
            if not values:
                continue
            if len(self._totals) == 1:
                values |= self._gap_values()
            subject = self._subjects[path]
            self._log(trainer, pl_module, stage, subject.name, subject.prefix, values)
        if len(self._totals) > 1 and self._gap is not None:  # of the composite whose parts were followed
            (name,) = outermost(pl_module)
            self._log(trainer, pl_module, stage, name.rpartition(".")[2], "", self._gap_values())

    def _gap_values(self) -> dict[str, Tensor]:
        return {} if self._gap is None else dict(zip(GAP_NAMES, self._gap, strict=True))

    def _log(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        stage: str,
        name: str,
        prefix: str,
        values: dict[str, Tensor],
    ) -> None:
        plain = {key: value.item() for key, value in values.items()}
        named = self._remember(stage, _step(trainer), name, prefix, plain)
        # The totals are the same on all ranks; the gap is averaged over their first batches.
        pl_module.log_dict({key: float(value) for key, value in named.items()}, sync_dist=True)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # All ranks come as far as the drawing: the folder's name, the counts and a sharded model need them.
        folder, step, images = trainer.log_dir, _step(trainer), self._images
        reconstructed = None if images is None else reconstruct(pl_module, images)
        counts = {path: sum_over_ranks(totals.counts, None) for path, totals in self._totals.items()}
        if not trainer.is_global_zero or folder is None:
            return
        figures, when = {}, f"at step {step:,}"
        if images is not None and reconstructed is not None:
            pair = images.float(), ("reconstruction", reconstructed.float())
            figures["reconstructions"] = reconstruction_grid(*pair, title=f"Reconstructions {when}")
        for path, total in counts.items():
            if not total.any():
                continue
            subject, z = self._subjects[path], self._totals[path].vectors()
            name, codes = subject.name, subject.followed.codes()
            if codes is not None and len(z):
                figures[f"codebook-{name}"] = codebook_scatter(None, z, codes, total, title=f"{name} {when}")
            figures[f"usage-{name}"] = usage_histogram(None, total, title=f"{name} {when}")
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for name, figure in figures.items():
            save(figure, Path(folder) / "pictures" / f"{name}-{step:08d}.png")
            for board in boards:
                # A picture, not a figure: TensorBoard's own conversion of figures imports pyplot.
                board.experiment.add_image(f"pictures/{name}", pixels(figure), step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        followed = {name: subject.state_dict() for name, subject in self._subjects.items()}
        return {
            "history": [dict(row) for row in self.history],
            "batches": self._batches,
            "validations": self._validations,
            "quantizers": followed | self._waiting,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The quantizers' part is applied when training starts."""
        self.history = [dict(row) for row in state_dict["history"]]
        self._batches = state_dict["batches"]
        self._validations = state_dict["validations"]
        self._waiting = state_dict["quantizers"]


class _Subject:
    """One followed quantizer, its window and its concerns; if it ``is_alone``, short names will do."""

    def __init__(self, followed: Followed, concerns: Concerns, device: torch.device, *, is_alone: bool) -> None:
        self.followed = followed
        self.concerns = concerns
        self.window = Window(followed, device)
        self.name = followed.name.rpartition(".")[2] if is_alone else followed.name
        self.prefix = "" if is_alone else f"{followed.name}/"

    def state_dict(self) -> dict[str, Any]:
        sums = {"window_counts": self.window.counts.cpu().clone(), "window_table": self.window.table.cpu().clone()}
        return sums | self.concerns.state_dict()

    def load_state_dict(self, state: dict[str, Any], *, with_window: bool) -> None:
        if state["window_table"].shape != self.window.table.shape:  # of another network
            return
        self.concerns.load_state_dict(state)
        if with_window:
            self.window.counts.copy_(state["window_counts"])
            self.window.table.copy_(state["window_table"])


def _step(trainer: Trainer) -> int:
    """Training steps done, by the loggers' count: one per batch that stepped, whatever the number of optimizers."""
    # Inside `fit` the hooks run before Lightning counts the step that they belong to.
    return internals.logged_step(trainer) + int(trainer.state.fn == "fit")
