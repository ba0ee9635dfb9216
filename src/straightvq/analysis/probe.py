"""What a trained task shows on a fixed set of inputs: its quantizer as numbers, and one further step of training."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, cast

import lightning
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from straightvq.diagnostics import Snapshot, functional
from straightvq.diagnostics.following import Followed, Seen, follow
from straightvq.diagnostics.sums import Totals
from straightvq.diagnostics.task import HasHead, measure_gradient_gap, undisturbed
from straightvq.errors import InvalidValueError
from straightvq.runs import Checkpoint, RunFolder, load_weights
from straightvq.training.resume import ExactResume

# Embeddings that pictures and full covariances are made of; counts, errors and moments take all.
MAX_VECTORS = 20_000
# Of the Trainer's options in training, those that change what one step computes.
STEP_OPTIONS = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


@contextlib.contextmanager
def _the_quantizer(task: lightning.LightningModule, seen: Seen = lambda *_: None) -> Iterator[Followed]:
    """The only quantizer of the task; its forwards are reported while this lasts."""
    found = follow(task, seen)
    try:
        if len(found) != 1 or found[0].codebook is None:
            names = ", ".join(each.name for each in found) or "none"
            owner = type(task).__name__
            raise InvalidValueError(f"`analyze`: {owner} must have exactly one quantizer with a codebook. Got {names}.")
        yield found[0]
    finally:
        for each in found:
            each.remove()


class Probe:
    """Measures checkpoints of one run on the same ``size`` inputs: the first examples of the test split.

    ``seed`` chooses the vectors that are kept.

    Raises: ValueError if the task has not exactly one quantizer with a codebook, or not the methods of `HasHead`, or
        if the data has no test examples.
    """

    def __init__(self, folder: RunFolder, device: torch.device, *, num_images: int, seed: int) -> None:
        task, self.data = folder.build()
        if not getattr(task, "quantize", True):
            raise InvalidValueError(
                f"`analyze`: {str(folder.folder)!r} was trained with `quantize: false`: "
                "there is no quantization to look at."
            )
        with _the_quantizer(task):
            if not isinstance(task, HasHead):
                raise InvalidValueError(
                    f"`analyze`: {type(task).__name__} must have the methods latent(batch) and "
                    "head_loss(latent, batch), as `straightvq.training.HasHead` describes them."
                )
        self.task, self.seed = task.to(device), seed
        self.trainer = folder.config.get("trainer") or {}
        self.batches = test_batches(self.data, num_images, device)
        self.size = sum(map(count_examples, self.batches))

    def measure(self, checkpoint: Checkpoint) -> tuple[dict[str, float], Snapshot]:
        """All numbers of the checkpoint and of the step that follows it, and what the pictures show."""
        load_weights(self.task, checkpoint)
        values, snapshot = self._measure_state(checkpoint.step)
        values |= self._measure_step(checkpoint)
        return {name: float(value) for name, value in values.items()}, snapshot

    @torch.no_grad()
    def _measure_state(self, step: int) -> tuple[dict[str, Any], Snapshot]:
        kept: list[Tensor] = []

        def take(followed: Followed, z: Tensor, code: Tensor, indices: Tensor) -> None:
            totals.add(z, code, indices, followed.codes())
            kept.append(self._choose(z[indices >= 0], len(kept)))

        with _the_quantizer(self.task, take) as followed, undisturbed(self.task):
            totals = Totals(followed, self.task.device)
            for batch in self.batches:
                followed.quantizer(cast(HasHead, self.task).latent(batch))
        z, codes = torch.cat(kept), cast(Tensor, followed.snapshot())
        counts = totals.usage.counts
        mean, cov = functional.covariance(z)
        distance = functional.gaussian_w2(mean, cov, *functional.covariance(codes))
        values: dict[str, Any] = totals.compute() | {
            "codes_used": (counts > 0).sum(),
            "wasserstein_full": functional.ratio(distance, cov.diagonal().sum().sqrt()),
            "effective_dimension": functional.effective_dimension(z),
        }
        # Gradients are measured on the first batch alone.
        gap = measure_gradient_gap(self.task, self.batches[0])
        if gap is not None:
            values |= dict(zip(("gradient_gap_norm", "gradient_gap", "gradient_cosine"), gap, strict=True))
        return values, Snapshot(step, z.cpu(), codes.cpu(), counts.cpu())

    def _choose(self, z: Tensor, batch: int) -> Tensor:
        """At most this batch's share of the vectors, the same ones for every state."""
        share = -(-MAX_VECTORS // len(self.batches))
        if len(z) <= share:
            return z.float()
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + batch))
        return z[order[:share].sort().values.to(z.device)].float()

    def _measure_step(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Resumes the run for one step, in memory and on a copy, and measures what that step did."""
        z_before, codes_before, distance = self._look_at(self.task)
        stepped = copy.deepcopy(self.task)
        watch = resume_for_a_step(stepped, self.data, checkpoint, self.trainer)
        stepped.to(self.task.device)
        z_after, codes_after, _ = self._look_at(stepped)
        delay = functional.update_delay(z_before, z_after, codes_before, codes_after, distance=distance)
        values = {f"delay_{moment}": error for moment, error in delay._asdict().items()}
        values |= {
            "codebook_gain": delay.before - delay.aimed,
            "update_delay": delay.delay,
            "codes_moved": functional.gradient_sparsity(codes_after - codes_before),
            "learning_rate": watch.learning_rate,
        }
        if watch.has_gradient is not None:
            values["gradient_sparsity"] = watch.has_gradient.float().mean()
        return values

    @torch.no_grad()
    def _look_at(self, task: lightning.LightningModule) -> tuple[Tensor, Tensor, Any]:
        """The first batch's embeddings (n, codebook_dim), the codes (k, codebook_dim), the distance between them."""
        seen: list[Tensor] = []
        with _the_quantizer(task, lambda _, z, code, indices: seen.append(z)) as followed, undisturbed(task):
            followed.quantizer(cast(HasHead, task).latent(self.batches[0]))
            distance = getattr(getattr(followed.quantizer, "assigner", None), "distance", "euclidean")
            return seen[0], cast(Tensor, followed.snapshot()), distance


def test_batches(data: lightning.LightningDataModule, most: int, device: torch.device) -> list[Any]:
    """The first ``most`` examples of the test split, in batches on the device, as the task takes them."""
    data.prepare_data()
    data.setup("test")
    batches: list[Any] = []
    for batch in data.test_dataloader():
        taken = data.on_before_batch_transfer(_first(batch, most), 0)
        batches.append(data.on_after_batch_transfer(data.transfer_batch_to_device(taken, device, 0), 0))
        most -= count_examples(batch)
        if most <= 0:
            break
    if not batches:
        raise InvalidValueError(f"`analyze`: {type(data).__name__} has no test examples.")
    return batches


def _first(batch: Any, most: int) -> Any:
    """The first examples of a batch; what is not one value for each example stays whole."""
    size = count_examples(batch)
    return apply_to_collection(batch, Tensor, lambda t: t[:most] if t.ndim and len(t) == size else t)


def count_examples(batch: Any) -> int:
    """Number of examples: the length of the first tensor inside."""
    sizes: list[int] = []
    apply_to_collection(batch, Tensor, lambda t: sizes.append(len(t)) if t.ndim else None)
    return sizes[0] if sizes else 0


class _Watch(lightning.Callback):
    """Which codes receive a gradient, in any optimizer's step, and at which learning rate."""

    def __init__(self) -> None:
        self.has_gradient: Tensor | None = None
        self.learning_rate = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        with _the_quantizer(pl_module) as followed:
            raw = cast(Any, followed.codebook).raw
        self.learning_rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        for optimizer in trainer.optimizers:
            # Behind the step: Lightning computes the gradient inside of it.
            optimizer.register_step_post_hook(lambda *_: self._look(raw))

    def _look(self, raw: Tensor) -> None:
        if raw.grad is not None:
            rows = (raw.grad != 0).any(-1)
            self.has_gradient = rows if self.has_gradient is None else self.has_gradient | rows


def resume_for_a_step(
    task: lightning.LightningModule,
    data: lightning.LightningDataModule,
    checkpoint: Checkpoint,
    trainer_options: dict[str, Any],
) -> _Watch:
    """Trains the task, on its device, for the step after the checkpoint, as the run's Trainer did; writes nothing."""
    options = {name: trainer_options[name] for name in STEP_OPTIONS if trainer_options.get(name) is not None}
    if task.device.type != "cuda" and str(options.get("precision", "")).startswith("16"):
        del options["precision"]  # half precision is for GPUs
    watch = _Watch()
    options |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options |= {"accelerator": task.device.type, "devices": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    options |= {"max_steps": checkpoint.step + 1, "max_epochs": -1, "callbacks": [ExactResume(), watch]}
    trainer = lightning.Trainer(**options)
    with warnings.catch_warnings():
        # The monitor and the checkpoints of the run have nothing to do here.
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided")
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint.path, weights_only=True)
    return watch
