"""What the tasks share: optimizer and schedule, the two-phase step, evaluation over whole sets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Self, cast, get_args

import lightning
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import straightvq as svq
from straightvq.diagnostics import CodebookUsage
from straightvq.errors import InvalidValueError
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_choice, check_float, check_int, keeping_float32
from straightvq.training.alternated import alternated_step
from straightvq.training.schedule import warm_up_and_decay

Alternate = Literal["no", "codebook", "codebook_and_encoder"]
Batch = dict[str, Tensor]


class Pass(NamedTuple):
    """One forward pass of the network.

    Attributes:
        loss: the task's part of the loss with its weight, a scalar.
        values: the task's part unweighted, by the names under which it is logged.
        quantizer: the quantizer's output; None in a network without one.
    """

    loss: Tensor
    values: dict[str, Tensor]
    quantizer: svq.QuantizerOutput | None

    def total(self) -> Tensor:
        """The task's loss plus the quantizer's."""
        return self.loss if self.quantizer is None else self.loss + self.quantizer.loss


class SetMetrics(nn.Module, ABC):
    """Values over a whole set, exact for any batches: codebook usage, and what a task adds.

    Sums are over all ranks, and stay in 32 bits at least where the network is cast to fewer: a sum in half precision
    stops growing after a few hundred images.

    Args:
        quantizer: whose indices are counted; None for none.
    """

    def __init__(self, quantizer: Quantizer | None) -> None:
        super().__init__()
        self.usage = None
        if quantizer is not None:
            levels = quantizer.num_quantizers if quantizer.is_composite else None
            self.usage = CodebookUsage(quantizer.codebook_size, levels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_float32(fn), recurse)

    @abstractmethod
    def errors(self) -> dict[str, Tensor]:
        """The task's own values."""

    def count(self, out: svq.QuantizerOutput | None) -> None:
        if self.usage is not None and out is not None:
            self.usage.update(out.indices)

    def compute(self) -> dict[str, Tensor]:
        values = self.errors()
        if self.usage is not None:
            usage = self.usage.compute()
            used = self.usage.codebook_size - usage["dead_codes"].float()
            for name, value in (("perplexity", usage["perplexity"]), ("codes_used", used)):
                if value.ndim == 0:
                    values[name] = value
                else:
                    values |= {f"{name}_{level}": one for level, one in enumerate(value)}
        return values

    def reset(self) -> None:
        for child in self.children():
            cast(Any, child).reset()


class QuantizedTask(lightning.LightningModule, ABC):
    """Base of the tasks that train one network with a quantizer inside.

    A task says how a batch becomes a loss (`compute`, `latent`, `head_loss`), what its encoder is, and what is
    measured on a set. It sets ``val_metrics`` and ``test_metrics``.

    Args:
        model: the network, with an attribute ``quantizer``.
        lr, codebook_lr, weight_decay, betas, warmup_steps: of the optimizer; see the tasks.
        alternate, inner_steps, inner_lr: of the two-phase step; see the tasks.
        quantize: whether the quantizer takes part.
    """

    val_metrics: SetMetrics
    test_metrics: SetMetrics

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        codebook_lr: float | None,
        weight_decay: float,
        betas: tuple[float, float],
        warmup_steps: int,
        alternate: Alternate,
        inner_steps: int,
        inner_lr: float | None,
        quantize: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.lr = check_float(self, "lr", lr, minimum=0, open_minimum=True)
        self.codebook_lr = None if codebook_lr is None else check_float(self, "codebook_lr", codebook_lr, minimum=0)
        self.weight_decay = check_float(self, "weight_decay", weight_decay, minimum=0)
        first, second = (check_float(self, "betas", b, minimum=0, maximum=1, open_maximum=True) for b in betas)
        self.betas = (first, second)
        self.warmup_steps = check_int(self, "warmup_steps", warmup_steps, 0)
        self.alternate = check_choice(self, "alternate", alternate, get_args(Alternate))
        self.inner_steps = check_int(self, "inner_steps", inner_steps, 1)
        self.inner_lr = self.lr if inner_lr is None else check_float(self, "inner_lr", inner_lr, minimum=0)
        self.quantize = check_bool(self, "quantize", quantize)
        self.automatic_optimization = alternate == "no"
        self._check_alternate(inner_steps, inner_lr)

    def _check_alternate(self, inner_steps: int, inner_lr: float | None) -> None:
        owner = type(self).__name__
        if self.alternate == "no":
            if inner_steps != 1 or inner_lr is not None:
                raise InvalidValueError(
                    f"`{owner}`: `inner_steps` and `inner_lr` belong to the first phase of `alternate`, which is "
                    '"no". Set alternate to "codebook" or "codebook_and_encoder", or leave them out.'
                )
            return
        if self.model.quantizer is None or not self.quantize:
            raise InvalidValueError(f'`{owner}`: `alternate` must be "no" without a quantizer. Got {self.alternate!r}.')
        books = self._codebooks()
        if self.alternate == "codebook" and not any(book.update.loss.raw for book in books):
            rules = ", ".join(sorted({type(book.update).__name__ for book in books})) or "no codebook"
            raise InvalidValueError(
                f'`{owner}`: `alternate` "codebook" needs a codebook that is trained by gradient '
                f"(GradientUpdate). Got {rules}, which moves the codes inside the layer: leave `alternate` at "
                '"no", or take "codebook_and_encoder".'
            )

    def _codebooks(self) -> list[svq.Codebook]:
        return [m for m in self.model.modules() if isinstance(m, svq.Codebook)]

    # --- what a task says ---------------------------------------------------------------------------------------

    @abstractmethod
    def compute(self, batch: Batch) -> Pass:
        """One forward pass over a prepared training batch."""

    @abstractmethod
    def latent(self, batch: Batch) -> Tensor:
        """The embeddings of a batch as the quantizer gets them."""

    @abstractmethod
    def head_loss(self, latent: Tensor, batch: Batch) -> Tensor:
        """The task's part of the loss, a scalar, if ``latent`` were the quantizer's output."""

    @abstractmethod
    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of what comes before the quantizer."""

    @abstractmethod
    def measure(self, metrics: Any, batch: Batch) -> None:
        """Updates the metrics of an evaluation with one batch."""

    def prepare(self, batch: Batch) -> Batch:
        """What happens to a training batch before the network sees it."""
        return batch

    def forward(self, x: Tensor) -> Any:
        """Images -> the model's output."""
        if self.quantize:
            return self.model(x)
        with svq.bypass(self.model):
            return self.model(x)

    # --- training -----------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        batch = self.prepare(batch)
        if not self.automatic_optimization:
            self._alternated_step(batch)
            return None
        done = self.compute(batch)
        loss = done.total()
        self._log_training(loss, done, len(batch["image"]))
        return loss

    def _alternated_step(self, batch: Batch) -> None:
        # Lightning counts the steps of the optimizers that it wraps, and `max_steps` means steps of the task: the outer
        # one is wrapped, the inner one is not.
        outer = cast(list[Optimizer], self.optimizers())[0]
        inner = cast(list[Optimizer], self.optimizers(use_pl_optimizer=False))[1]
        quantizer = cast(Callable[[Tensor], svq.QuantizerOutput], self.model.quantizer)
        seen: dict[str, Pass] = {}

        def quantizer_loss() -> Tensor:
            z = self.latent(batch)
            loss = quantizer(z if self.alternate == "codebook_and_encoder" else z.detach()).loss
            if not loss.requires_grad:
                raise InvalidValueError(
                    f'`{type(self).__name__}`: `alternate` "codebook" has nothing to train in its first phase: the '
                    "quantizer's loss depends on no code that takes a gradient. Give it a CodebookLoss, unfreeze its "
                    'codebook, or set `alternate` to "no".'
                )
            return loss

        def task_loss() -> Tensor:
            seen["done"] = self.compute(batch)
            return seen["done"].loss

        alternated_step(
            quantizer_loss, task_loss, inner, outer, inner_steps=self.inner_steps, backward=self.manual_backward
        )
        done = seen["done"]
        self._log_training(done.total(), done, len(batch["image"]))
        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()

    def _log_training(self, loss: Tensor, done: Pass, size: int) -> None:
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        values = {**done.values, **({} if done.quantizer is None else done.quantizer.terms)}
        self.log_dict({f"train/{name}": value.detach() for name, value in values.items()}, batch_size=size)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The main optimizer over groups that have their own rate and decay."""
        return AdamW(groups, lr=self.lr, betas=self.betas)

    def configure_optimizers(self) -> Any:
        groups = svq.parameter_groups(self.model, self.lr, self.weight_decay, self.codebook_lr)
        outer = self.build_optimizer(groups)
        if self.automatic_optimization:
            svq.attach_optimizer(outer, self.model)
            return {"optimizer": outer, "lr_scheduler": {"scheduler": self._schedule(outer), "interval": "step"}}
        if self.trainer.precision == "16-mixed":
            raise InvalidValueError(
                f'`{type(self).__name__}`: `alternate` cannot be combined with precision "16-mixed", whose loss '
                'scaling knows one phase only. Use "bf16-mixed" or "32-true".'
            )
        moved = [p for book in self._codebooks() for p in book.parameters()]
        if self.alternate == "codebook_and_encoder":
            quantizer = cast(nn.Module, self.model.quantizer)
            others = [p for p in quantizer.parameters() if not any(p is q for q in moved)]
            moved += [*self.encoder_parameters(), *others]
        inner = AdamW(moved, lr=self.inner_lr, betas=self.betas, weight_decay=0.0)
        svq.attach_optimizer(inner, self.model)
        svq.attach_optimizer(outer, self.model)
        return [outer, inner], [self._schedule(outer), self._schedule(inner)]

    def _schedule(self, optimizer: Optimizer) -> LambdaLR:
        return warm_up_and_decay(optimizer, float(self.trainer.estimated_stepping_batches), self.warmup_steps)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(self.val_metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.measure(self.test_metrics, batch)

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test", self.test_metrics)

    def _log_evaluation(self, stage: str, metrics: SetMetrics) -> None:
        # Already summed over ranks.
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        self.log_dict(values, prog_bar=stage == "val", rank_zero_only=False)
