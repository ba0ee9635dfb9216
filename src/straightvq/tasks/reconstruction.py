"""Training an autoencoder with a quantizer."""

import math
from typing import Any, Literal, cast, get_args

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio

import straightvq as svq
from straightvq.diagnostics import CodebookUsage
from straightvq.models import AutoencoderBase, AutoencoderOutput
from straightvq.nn.part import check_float, check_int, check_part
from straightvq.tasks.alternated import alternated_step, attach_optimizers

__all__ = ["Reconstruction"]

PixelLoss = Literal["mse", "l1"]
Alternate = Literal["no", "codebook", "codebook_and_encoder"]


class Reconstruction(lightning.LightningModule):
    """Trains an autoencoder to give back its input, with AdamW, linear warm-up and a cosine to zero.

    The loss is the reconstruction error plus the quantizer's loss. With ``alternate`` each batch takes the paper's
    two-phase step instead (see `straightvq.tasks.alternated`): first ``inner_steps`` steps on the quantizer's loss
    alone, then one on the reconstruction error alone. Quantizers with ``AlternatedUpdate`` alternate inside the
    layer already and need no ``alternate="codebook"``.

    Batches are ``{"image": Float (B, C, H, W) in [0, 1]}``; other entries are ignored.

    Logged per step: ``train/loss``, ``train/reconstruction`` and each unweighted quantizer term. Per evaluation,
    over the whole set and with reconstructions clamped to [0, 1]: ``val/mse``, ``val/psnr`` in dB, ``val/perplexity``
    in codes, ``val/codes_used`` (the number assigned at least once); the same for ``test/``.

    Args:
        model: the network; any of the autoencoders in `straightvq.models`.
        lr: peak learning rate of AdamW.
        codebook_lr: peak learning rate of the codebook's parameters; None takes ``lr``.
        weight_decay: of AdamW; never applied to the codebook.
        betas: of AdamW.
        warmup_steps: steps of linear warm-up. The cosine then reaches 0 at the last step that the Trainer plans.
        loss: reconstruction error: "mse" or "l1", means over all elements.
        loss_weight: factor of the reconstruction error. With 1, images in [0, 1] have errors so small (their variance
            is about 0.06) that the quantizer's terms, which are of the size of z, decide alone; 1 / variance
            of the data restores the balance, as in the VQ-VAE's own code.
        alternate: "no"; "codebook": the first phase moves the codebook; "codebook_and_encoder": both.
        inner_steps: steps of the first phase per batch.
        inner_lr: peak learning rate of the first phase (AdamW without weight decay); None takes ``lr``.

    Raises:
        TypeError, ValueError: for values out of range, and for settings that contradict each other.

    Source: arXiv 2305.08842, Table 8 (AdamW, betas, weight decay, warm-up and cosine).

    Example:
        >>> from straightvq.models import Autoencoder
        >>> task = Reconstruction(Autoencoder(svq.presets.straight(8, 32, channel_dim=1)), lr=3e-4)
        >>> task.automatic_optimization
        True
    """

    def __init__(
        self,
        model: AutoencoderBase,
        *,
        lr: float = 1e-3,
        codebook_lr: float | None = None,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 100,
        loss: PixelLoss = "mse",
        loss_weight: float = 1.0,
        alternate: Alternate = "no",
        inner_steps: int = 1,
        inner_lr: float | None = None,
    ) -> None:
        super().__init__()
        self.model: AutoencoderBase = check_part(self, "model", model, AutoencoderBase)
        self.lr = check_float(self, "lr", lr, minimum=0, open_minimum=True)
        self.codebook_lr = None if codebook_lr is None else check_float(self, "codebook_lr", codebook_lr, minimum=0)
        self.weight_decay = check_float(self, "weight_decay", weight_decay, minimum=0)
        first, second = (check_float(self, "betas", b, minimum=0, maximum=1, open_maximum=True) for b in betas)
        self.betas = (first, second)
        self.warmup_steps = check_int(self, "warmup_steps", warmup_steps, 0)
        self.loss = _check_choice("loss", loss, get_args(PixelLoss))
        self.loss_weight = check_float(self, "loss_weight", loss_weight, minimum=0, open_minimum=True)
        self.alternate = _check_choice("alternate", alternate, get_args(Alternate))
        self.inner_steps = check_int(self, "inner_steps", inner_steps, 1)
        self.inner_lr = self.lr if inner_lr is None else check_float(self, "inner_lr", inner_lr, minimum=0)
        self.automatic_optimization = alternate == "no"
        self._check_alternate(inner_steps, inner_lr)
        self.val_metrics = _Evaluation(model)
        self.test_metrics = _Evaluation(model)

    def _check_alternate(self, inner_steps: int, inner_lr: float | None) -> None:
        if self.alternate == "no":
            if inner_steps != 1 or inner_lr is not None:
                raise ValueError(
                    "`Reconstruction`: `inner_steps` and `inner_lr` belong to the first phase of `alternate`, which is "
                    '"no". Set alternate to "codebook" or "codebook_and_encoder", or leave them out.'
                )
            return
        books = [m for m in self.model.modules() if isinstance(m, svq.Codebook)]
        if self.alternate == "codebook" and not any(book.update.loss_trains_raw for book in books):
            rules = ", ".join(sorted({type(book.update).__name__ for book in books})) or "no codebook"
            raise ValueError(
                '`Reconstruction`: `alternate` "codebook" needs a codebook that is trained by gradient '
                f"(GradientUpdate). Got {rules}, which moves the codes inside the layer: leave `alternate` at "
                '"no", or take "codebook_and_encoder".'
            )

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Images -> the model's output."""
        return cast(AutoencoderOutput, self.model(x))

    def reconstruction_loss(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        """The unweighted reconstruction error, a scalar."""
        return F.mse_loss(reconstruction, x) if self.loss == "mse" else F.l1_loss(reconstruction, x)

    def latent(self, batch: dict[str, Tensor]) -> Tensor:
        """The embeddings of a batch as the quantizer gets them, (B, dim, h, w)."""
        return self.model.encode(batch["image"])

    def head_loss(self, latent: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The task's part of the loss, a scalar, if ``latent`` were the quantizer's output."""
        return self.loss_weight * self.reconstruction_loss(self.model.decode(latent), batch["image"])

    # --- training -----------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        x = batch["image"]
        if not self.automatic_optimization:
            self._alternated_step(x)
            return None
        out = self(x)
        error = self.reconstruction_loss(out.reconstruction, x)
        loss = self.loss_weight * error + out.quantizer.loss
        self._log_training(loss, error, out.quantizer, len(x))
        return loss

    def _alternated_step(self, x: Tensor) -> None:
        # Lightning counts the steps of the optimizers that it wraps, and `max_steps` means steps of the task: the outer
        # one is wrapped, the inner one is not.
        outer = cast(list[Optimizer], self.optimizers())[0]
        inner = cast(list[Optimizer], self.optimizers(use_pl_optimizer=False))[1]
        seen: dict[str, Any] = {}

        def quantizer_loss() -> Tensor:
            z = self.model.encode(x)
            return self.model.quantizer(z if self.alternate == "codebook_and_encoder" else z.detach()).loss

        def task_loss() -> Tensor:
            out = self(x)
            seen["out"], seen["error"] = out, self.reconstruction_loss(out.reconstruction, x)
            return self.loss_weight * seen["error"]

        alternated_step(
            quantizer_loss, task_loss, inner, outer, inner_steps=self.inner_steps, backward=self.manual_backward
        )
        quantizer = seen["out"].quantizer
        loss = self.loss_weight * seen["error"] + quantizer.loss
        self._log_training(loss, seen["error"], quantizer, len(x))
        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()

    def _log_training(self, loss: Tensor, error: Tensor, quantizer: svq.QuantizerOutput, size: int) -> None:
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        values = {"reconstruction": error, **quantizer.terms}
        self.log_dict({f"train/{name}": value.detach() for name, value in values.items()}, batch_size=size)

    def configure_optimizers(self) -> Any:
        groups = svq.parameter_groups(self.model, self.lr, self.weight_decay, self.codebook_lr)
        outer = AdamW(groups, lr=self.lr, betas=self.betas)
        if self.automatic_optimization:
            svq.attach_optimizer(outer, self.model)
            return {"optimizer": outer, "lr_scheduler": {"scheduler": self._schedule(outer), "interval": "step"}}
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                '`Reconstruction`: `alternate` cannot be combined with precision "16-mixed", whose loss scaling '
                'knows one phase only. Use "bf16-mixed" or "32-true".'
            )
        books = [m for m in self.model.modules() if isinstance(m, svq.Codebook)]
        moved = [p for book in books for p in book.parameters()]
        if self.alternate == "codebook_and_encoder":
            others = [p for p in self.model.quantizer.parameters() if not any(p is q for q in moved)]
            moved += [*self.model.encoder.parameters(), *others]
        inner = AdamW(moved, lr=self.inner_lr, betas=self.betas, weight_decay=0.0)
        attach_optimizers(inner, outer, self.model)
        return [outer, inner], [self._schedule(outer), self._schedule(inner)]

    def _schedule(self, optimizer: Optimizer) -> LambdaLR:
        total = float(self.trainer.estimated_stepping_batches)
        warmup = min(self.warmup_steps, total)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            if math.isinf(total):  # training without an end
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

        return LambdaLR(optimizer, factor)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.val_metrics.update(batch["image"], self(batch["image"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.test_metrics.update(batch["image"], self(batch["image"]))

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test", self.test_metrics)

    def _log_evaluation(self, stage: str, metrics: "_Evaluation") -> None:
        # Already summed over ranks.
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        self.log_dict(values, prog_bar=stage == "val", rank_zero_only=False)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """``{"indices": Int64 (B, h, w), "reconstruction": Float (B, C, H, W) in [0, 1]}``."""
        out = self(batch["image"])
        return {"indices": out.quantizer.indices, "reconstruction": out.reconstruction.clamp(0, 1)}


class _Evaluation(nn.Module):
    """Image errors and codebook usage over a whole set, exact for any batches and ranks."""

    def __init__(self, model: AutoencoderBase) -> None:
        super().__init__()
        self.images = MetricCollection({"mse": MeanSquaredError(), "psnr": PeakSignalNoiseRatio(data_range=1.0)})
        size = getattr(model.quantizer, "codebook_size", None)
        levels = getattr(model.quantizer, "num_quantizers", None)
        self.usage = None if size is None else CodebookUsage(size, levels)

    @torch.no_grad()
    def update(self, x: Tensor, out: AutoencoderOutput) -> None:
        self.images.update(out.reconstruction.detach().float().clamp(0, 1).contiguous(), x.float())
        if self.usage is not None:
            self.usage.update(out.quantizer.indices)

    def compute(self) -> dict[str, Tensor]:
        values = dict(self.images.compute())
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
        self.images.reset()
        if self.usage is not None:
            self.usage.reset()


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        listed = ", ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"`Reconstruction`: `{name}` must be one of {listed}. Got {value!r}.")
    return cast(str, value)
