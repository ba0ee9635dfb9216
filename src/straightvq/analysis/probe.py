"""What a trained task shows on a fixed set of inputs: its quantizer as numbers, and one further step of training."""

import copy
import warnings
from dataclasses import replace
from typing import Any, cast

import lightning
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from straightvq.analysis.subject import MAX_VECTORS, Measurement, Passed, Subject, surrogate_of_signs
from straightvq.diagnostics import functional
from straightvq.diagnostics.following import Followed
from straightvq.diagnostics.task import GAP_NAMES, HasHead, measure_gradient_gaps, undisturbed
from straightvq.errors import InvalidValueError
from straightvq.functional.nearest import Distance
from straightvq.nn import Codebook, Quantizer
from straightvq.runs import Checkpoint, RunFolder, load_weights
from straightvq.training.resume import ExactResume

# Of the Trainer's options in training, those that change what one step computes.
STEP_OPTIONS = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


class Probe:
    """Measures checkpoints of one run on the same ``size`` inputs: the first examples of the test split.

    ``seed`` chooses the vectors that are kept.

    Raises: ValueError if the task has not exactly one quantizer, or not the methods of `HasHead`, or if the data has
        no test examples.
    """

    def __init__(self, folder: RunFolder, device: torch.device, *, num_images: int, seed: int) -> None:
        task, self.data = folder.build()
        if not getattr(task, "quantize", True):
            raise InvalidValueError(
                f"`analyze`: {str(folder.folder)!r} was trained with `quantize: false`: "
                "there is no quantization to look at."
            )
        with Subject(task):
            if not isinstance(task, HasHead):
                raise InvalidValueError(
                    f"`analyze`: {type(task).__name__} must have the methods latent(batch) and "
                    "head_loss(latent, batch), as `straightvq.training.HasHead` describes them."
                )
        self.task, self.seed = task.to(device), seed
        self.trainer = folder.config.get("trainer") or {}
        self.batches = test_batches(self.data, num_images, device)
        self.size = sum(map(count_examples, self.batches))

    def measure(self, checkpoint: Checkpoint) -> dict[str, Measurement]:
        """All numbers of the checkpoint and of the step that follows it, and what the pictures show.

        By the names of `Subject`; that of the whole, which may be the only one, is ``""``.
        """
        load_weights(self.task, checkpoint)
        measured, of_step = self._measure_state(checkpoint.step), self._measure_step(checkpoint)
        return {
            name: replace(each, values={key: float(value) for key, value in (each.values | of_step[name]).items()})
            for name, each in measured.items()
        }

    @torch.no_grad()
    def _measure_state(self, step: int) -> dict[str, Measurement]:
        seen: dict[Followed, Passed] = {}
        with Subject(self.task, lambda each, *passed: seen[each].add(*passed)) as subject, undisturbed(self.task):
            share = -(-MAX_VECTORS // len(self.batches))
            for each in subject.followed.values():
                seen[each] = Passed(each, self.task.device, share=share, seed=self.seed)
            for batch in self.batches:
                subject.whole(cast(HasHead, self.task).latent(batch))
            measured = {name: seen[each].measure(step) for name, each in subject.followed.items()}
        # Gradients are measured on the first batch alone. Parts that are composites have no measurement of their own.
        for name, gap in measure_gradient_gaps(self.task, self.batches[0]).items():
            # A task without a gradient even without the quantizer, such as one with no network, misses none.
            if name in measured and gap.relative.isfinite():
                measured[name].values.update(zip(GAP_NAMES, gap, strict=True))
        return measured

    def _measure_step(self, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
        """Resumes the run for one step, in memory and on a copy, and measures what that step did."""
        before = self._look_at(self.task)
        stepped = copy.deepcopy(self.task)
        watch = resume_for_a_step(stepped, self.data, checkpoint, self.trainer)
        stepped.to(self.task.device)
        after = self._look_at(stepped)
        measured = {}
        for name, (z_before, codes_before, quantizer) in before.items():
            z_after, codes_after, _ = after[name]
            values: dict[str, Any] = {"learning_rate": watch.learning_rate}
            if codes_before is not None and codes_after is not None:
                delay = functional.update_delay(
                    z_before, z_after, codes_before, codes_after, distance=_distance(quantizer)
                )
                values |= {f"delay_{moment}": error for moment, error in delay._asdict().items()}
                values |= {
                    "codebook_gain": delay.before - delay.aimed,
                    "update_delay": delay.delay,
                    "codes_moved": functional.gradient_sparsity(codes_after - codes_before),
                }
            if name in watch.has_gradient:
                values["gradient_sparsity"] = watch.has_gradient[name].float().mean()
            if surrogate_of_signs(quantizer) is not None:
                values["gradient_instability"] = watch.instability
            measured[name] = values
        return measured

    @torch.no_grad()
    def _look_at(self, task: lightning.LightningModule) -> dict[str, tuple[Tensor, Tensor | None, Quantizer]]:
        """The first batch's vectors (n, codebook_dim), the codes (k, codebook_dim) or None, and the quantizer."""
        seen: dict[Followed, list[Tensor]] = {}
        with Subject(task, lambda each, z, *_: seen[each].append(z)) as subject, undisturbed(task):
            seen |= {each: [] for each in subject.followed.values()}
            subject.whole(cast(HasHead, task).latent(self.batches[0]))
            return {
                name: (torch.cat(seen[each]), each.snapshot(), each.quantizer)
                for name, each in subject.followed.items()
            }


def _distance(quantizer: Quantizer) -> Distance:
    """By which it assigns vectors to codes."""
    return getattr(getattr(quantizer, "assigner", None), "distance", "euclidean")


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
    """The gradients of a step, of any optimizer, and its learning rate.

    Attributes:
        has_gradient: by the part's name, which codes receive one.
        instability: `gradient_instability` of all parameters, of the last optimizer.
        learning_rate: the largest.
    """

    def __init__(self) -> None:
        self.has_gradient: dict[str, Tensor] = {}
        self.instability = 0.0
        self.learning_rate = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        with Subject(pl_module) as subject:
            books = {name: each.codebook for name, each in subject.followed.items() if each.codebook is not None}
        self.learning_rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        for optimizer in trainer.optimizers:
            # Behind the step: Lightning computes the gradient inside of it.
            optimizer.register_step_post_hook(lambda own, *_: self._look(own, books))

    def _look(self, optimizer: torch.optim.Optimizer, books: dict[str, Codebook]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad.detach() for parameter in parameters if parameter.grad is not None]
        if gradients:
            self.instability = float(functional.gradient_instability(gradients))
        for name, book in books.items():
            if book.raw.grad is not None:
                rows = (book.raw.grad != 0).any(-1)
                self.has_gradient[name] = self.has_gradient.get(name, rows) | rows


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
