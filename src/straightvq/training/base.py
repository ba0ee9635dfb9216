"""What the tasks share: their optimizer, the two-phase step, evaluation over whole sets."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

import lightning
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection

import straightvq as svq
from straightvq.diagnostics import CodebookUsage
from straightvq.diagnostics.following import MOST_COUNTED
from straightvq.errors import InvalidValueError
from straightvq.hub.pretrained import Pretrained
from straightvq.models.base import QuantizedNet
from straightvq.nn import Quantizer
from straightvq.nn.part import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_optional_float,
    check_part,
    keeping_float32,
)
from straightvq.training.alternated import alternated_step

Batch = dict[str, Tensor]
SHARE: dict[str, Any] = {"minimum": 0, "maximum": 1, "open_maximum": True}  # limits of a value in [0, 1)
Pass = tuple[Tensor, svq.QuantizerOutput | None]  # the task's error, and the quantizer's output


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of a task and its learning rates.

    Files and options change single fields of the task's default; an object made in Python has the defaults below.

    Args:
        name: "adamw", or "sgd" with momentum.
        lr: peak learning rate.
        codebook_lr: peak learning rate of the codebook's parameters; None takes ``lr``. Under "sgd" a codebook that is
            trained by gradient needs one in the tens: its gradient is a mean over all vectors and channels.
        weight_decay: of the network; never applied to the codebook.
        betas: of AdamW.
        momentum: of SGD; None takes 0.9. Refused with "adamw".
        warmup_steps: optimizer steps of linear warm-up.
        schedule: after the warm-up: "cosine" to 0 at the Trainer's last step, or "constant".

    Raises:
        TypeError, ValueError: for values out of range or settings that contradict each other.

    Source: defaults from arXiv 2305.08842, Table 8, except ``lr`` and ``warmup_steps``.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    codebook_lr: float | None = None
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float | None = None
    warmup_steps: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        check_choice(self, "name", self.name, ("adamw", "sgd"))
        check_float(self, "lr", self.lr, minimum=0, open_minimum=True)
        check_optional_float(self, "codebook_lr", self.codebook_lr, minimum=0)
        check_float(self, "weight_decay", self.weight_decay, minimum=0)
        if len(self.betas) != 2:
            raise InvalidValueError(f"`OptimizerSettings`: `betas` must be two numbers. Got {self.betas}.")
        for beta in self.betas:
            check_float(self, "betas", beta, **SHARE)
        check_optional_float(self, "momentum", self.momentum, **SHARE)
        if self.momentum is not None and self.name == "adamw":
            sentence = f'`momentum` must be None with "adamw", which has `betas`. Got {self.momentum}.'
            raise InvalidValueError(f"`OptimizerSettings`: {sentence}")
        check_int(self, "warmup_steps", self.warmup_steps, 0)
        check_choice(self, "schedule", self.schedule, ("cosine", "constant"))

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer of these parameter groups; each brings its weight decay, and its rate if it differs."""
        if self.name == "sgd":
            return SGD(groups, lr=self.lr, momentum=0.9 if self.momentum is None else self.momentum)
        return AdamW(groups, lr=self.lr, betas=self.betas)

    def scheduler(self, optimizer: Optimizer, total_steps: float) -> LambdaLR:
        """The schedule over ``total_steps``; constant after the warm-up if they are infinite."""
        warmup = min(self.warmup_steps, total_steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            if self.schedule == "constant" or math.isinf(total_steps):
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total_steps - warmup))))

        return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class Alternation:
    """The first phase of the paper's two-phase step, on the quantizer's loss alone.

    Its optimizer is AdamW without weight decay, on the task's schedule.

    Args:
        phase: what it trains: "codebook" or "codebook_and_encoder".
        steps: optimizer steps per batch.
        lr: peak learning rate; None takes the task's.
    """

    phase: Literal["codebook", "codebook_and_encoder"]
    steps: int = 1
    lr: float | None = None

    def __post_init__(self) -> None:
        check_choice(self, "phase", self.phase, ("codebook", "codebook_and_encoder"))
        check_int(self, "steps", self.steps, 1)
        check_optional_float(self, "lr", self.lr, minimum=0)


class SetMetrics(nn.Module):
    """The task's ``metrics``, and the usage of the quantizer, over a whole set and all ranks, exact for any batches.

    Codes are counted if a codebook has at most 16 million.
    """

    def __init__(self, quantizer: Quantizer | None, **metrics: Metric) -> None:
        super().__init__()
        self.own = MetricCollection(dict(metrics), compute_groups=False)
        self.usage = None
        if quantizer is not None:
            sizes = quantizer.codebook_sizes
            if max(sizes) <= MOST_COUNTED:
                self.usage = CodebookUsage(sizes if quantizer.is_composite else sizes[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A sum in half precision stops growing after a few hundred images.
        return super()._apply(keeping_float32(fn), recurse)

    def count(self, out: svq.QuantizerOutput | None) -> None:
        if self.usage is not None and out is not None:
            self.usage.update(out.indices)

    def compute(self) -> dict[str, Tensor]:
        """The task's values, ``perplexity`` and ``codes_used``; with several levels ``perplexity_0`` and so on."""
        values = dict(self.own.compute())
        if self.usage is None:
            return values
        usage = self.usage.compute()
        sizes = usage["dead_codes"].new_tensor(self.usage.sizes).view_as(usage["dead_codes"])
        used = (sizes - usage["dead_codes"]).float()
        for name, value in (("perplexity", usage["perplexity"]), ("codes_used", used)):
            values |= {f"{name}_{level}": one for level, one in enumerate(value)} if value.ndim else {name: value}
        return values

    def reset(self) -> None:
        for child in self.children():
            cast(Any, child).reset()


class MeasuredTask(lightning.LightningModule):
    """A task that logs its ``metrics`` over each validation and test set."""

    metrics: SetMetrics

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self.log_set("val", self.metrics.compute())

    def on_test_epoch_end(self) -> None:
        self.log_set("test", self.metrics.compute())

    def log_set(self, stage: str, values: Mapping[str, Tensor]) -> None:
        """Logs values that are already summed over ranks."""
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict(named, prog_bar=stage == "val", rank_zero_only=False)


class QuantizedTask(Pretrained, MeasuredTask, ABC):
    """Base of the tasks that train one network with a quantizer inside; `Reconstruction` explains the arguments."""

    model: QuantizedNet
    error_name: ClassVar[str]  # under which the task's error is logged
    input_name: ClassVar[str] = "image"  # of what the network gets, in a batch

    def __init__(
        self,
        model: QuantizedNet,
        metrics: Mapping[str, Metric],
        *,
        optimizer: OptimizerSettings,
        alternate: Alternation | None,
        quantize: bool,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer: OptimizerSettings = check_part(self, "optimizer", optimizer, OptimizerSettings)
        self.quantize = check_bool(self, "quantize", quantize)
        self.loss_weight = check_float(self, "loss_weight", loss_weight, minimum=0, open_minimum=True)
        self.metrics = SetMetrics(model.quantizer if quantize else None, **metrics)
        self.alternate = alternate
        self.automatic_optimization = alternate is None
        if alternate is not None:
            self._check_alternate(check_part(self, "alternate", alternate, Alternation), type(self).__name__)

    def _check_alternate(self, alternate: Alternation, owner: str) -> None:
        if self.model.quantizer is None or not self.quantize:
            raise InvalidValueError(f"`{owner}`: `alternate` must be None without a quantizer. Got {alternate}.")
        books = self._codebooks()
        if alternate.phase == "codebook" and not any(book.update.loss.raw for book in books):
            rules = ", ".join(sorted({type(book.update).__name__ for book in books})) or "no codebook"
            raise InvalidValueError(
                f'`{owner}`: `alternate` with the phase "codebook" needs a codebook that is trained by gradient '
                f"(GradientUpdate). Got {rules}, which moves the codes inside the layer: leave `alternate` out, or "
                'take "codebook_and_encoder".'
            )

    def _codebooks(self) -> list[svq.Codebook]:
        return [m for m in self.model.modules() if isinstance(m, svq.Codebook)]

    @abstractmethod
    def error(self, output: Tensor, batch: Batch) -> Tensor:
        """The task's own loss without its weight, a scalar, for the output of the network's head."""

    @abstractmethod
    def measure(self, batch: Batch) -> None:
        """Updates ``metrics`` with one batch of an evaluation."""

    def prepare(self, batch: Batch) -> Batch:
        """Changes a training batch before the network sees it, as augmentation does."""
        return batch

    def normalize(self, image: Tensor) -> Tensor:
        """Pixels in [0, 1] -> the network's input."""
        return image

    def forward(self, x: Tensor) -> Any:
        """Images (B, C, H, W) in [0, 1] -> the model's output."""
        x = self.normalize(x)
        if self.quantize:
            return self.model(x)
        with svq.bypass(self.model):
            return self.model(x)

    def compute(self, batch: Batch) -> Pass:
        """The task's error for a prepared batch, and the quantizer's output."""
        out = self(batch[self.input_name])
        return self.error(out[0], batch), out.quantizer

    def latent(self, batch: Batch) -> Tensor:
        """The embeddings of a batch as the quantizer gets them, (B, dim, h, w) or (B, tokens, dim)."""
        return self.model.encode(self.normalize(batch[self.input_name]))

    def head_loss(self, latent: Tensor, batch: Batch) -> Tensor:
        """The task's part of the loss, a scalar, if ``latent`` were the quantizer's output."""
        return self.loss_weight * self.error(self.model.head(latent), batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        batch, size = self.prepare(batch), len(batch[self.input_name])
        error, out = self.compute(batch) if self.alternate is None else self._alternated_step(batch, self.alternate)
        loss, values = self.loss_weight * error, {self.error_name: error}
        if out is not None:
            loss, values = loss + out.loss, values | out.terms
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value.detach() for name, value in values.items()}, batch_size=size)
        if self.automatic_optimization:
            return loss
        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()
        return None

    def _alternated_step(self, batch: Batch, alternate: Alternation) -> Pass:
        # Lightning counts the steps of the optimizers that it wraps; `max_steps` means those of the outer one.
        outer = cast(list[Optimizer], self.optimizers())[0]
        inner = cast(list[Optimizer], self.optimizers(use_pl_optimizer=False))[1]
        computed: list[Pass] = []

        def quantizer_loss() -> Tensor:
            z = self.latent(batch)
            assert self.model.quantizer is not None
            if alternate.phase == "codebook" and not self._losses_train_codes():
                raise InvalidValueError(
                    f"`{type(self).__name__}`: `alternate` has nothing to train in its first phase: the quantizer's "
                    "loss depends on no code that takes a gradient. Give it a CodebookLoss, unfreeze its codebook, or "
                    "leave `alternate` out."
                )
            return self.model.quantizer(z.detach() if alternate.phase == "codebook" else z).loss

        def task_loss() -> Tensor:
            computed.append(self.compute(batch))
            return self.loss_weight * computed[0][0]

        steps, backward = alternate.steps, self.manual_backward
        alternated_step(quantizer_loss, task_loss, inner, outer, inner_steps=steps, backward=backward)
        return computed[0]

    def _losses_train_codes(self) -> bool:
        if not any(loss.trains_codes for loss in self.model.modules() if isinstance(loss, svq.Loss)):
            return False
        routes = [(book.update.loss, book.parametrization) for book in self._codebooks() if not book.is_still]
        return any(loss.raw or (loss.parametrization and part.is_learned) for loss, part in routes)

    def configure_optimizers(self) -> Any:
        settings = self.optimizer
        groups = svq.parameter_groups(self.model, settings.lr, settings.weight_decay, settings.codebook_lr)
        optimizers = [settings.build(groups)]
        if self.alternate is not None:
            optimizers.append(self._first_optimizer(self.alternate))
        for optimizer in optimizers:
            svq.attach_optimizer(optimizer, self.model)
        total = float(self.trainer.estimated_stepping_batches)
        schedules = [{"scheduler": settings.scheduler(each, total), "interval": "step"} for each in optimizers]
        return optimizers, schedules

    def _first_optimizer(self, alternate: Alternation) -> Optimizer:
        if self.trainer.precision == "16-mixed":
            raise InvalidValueError(
                f'`{type(self).__name__}`: `alternate` cannot be combined with precision "16-mixed", whose loss '
                'scaling knows one phase only. Use "bf16-mixed" or "32-true".'
            )
        moved = [p for book in self._codebooks() for p in book.parameters()]
        if alternate.phase == "codebook_and_encoder":
            moved += [*self.model.encoder_parameters(), *cast(nn.Module, self.model.quantizer).parameters()]
        lr = self.optimizer.lr if alternate.lr is None else alternate.lr
        return AdamW(dict.fromkeys(moved), lr=lr, betas=self.optimizer.betas, weight_decay=0.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(batch)

    test_step = validation_step
