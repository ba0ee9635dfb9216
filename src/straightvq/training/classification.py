"""Training a classifier with a quantizer between two of its stages."""

from collections.abc import Iterator
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta
from torch.optim import SGD, Optimizer
from torchmetrics import MeanMetric

from straightvq.errors import InvalidValueError
from straightvq.models import ClassifierBase, ClassifierOutput
from straightvq.nn import Quantizer
from straightvq.nn.part import can_ask, check_choice, check_float, check_part
from straightvq.training.base import Alternate, Batch, Pass, QuantizedTask, SetMetrics

__all__ = ["Classification"]

OptimizerName = Literal["adamw", "sgd"]


class Classification(QuantizedTask):
    """Trains a classifier, with AdamW or SGD, linear warm-up and a cosine to zero.

    The loss is the cross-entropy plus the quantizer's loss. With ``alternate`` each batch takes the paper's two-phase
    step instead (see `straightvq.training.alternated`), as in `Reconstruction`: first ``inner_steps`` steps on the
    quantizer's loss alone, then one on the cross-entropy alone. Quantizers with ``AlternatedUpdate`` alternate inside
    the layer already and need no ``alternate="codebook"``.

    Batches are ``{"image": Float (B, C, H, W) in [0, 1], "label": Int64 (B)}``; random crops and flips are the data's
    (`straightvq.data.Images`). Mixup and label smoothing act in training; evaluation always measures the plain
    cross-entropy.

    Logged per step: ``train/loss``, ``train/cross_entropy`` and each unweighted quantizer term. Per evaluation, over
    the whole set: ``val/accuracy`` in [0, 1], ``val/cross_entropy`` in nats, ``val/perplexity`` in codes,
    ``val/codes_used`` (the number assigned at least once); the same for ``test/``.

    Args:
        model: the network; any of the classifiers in `straightvq.models`.
        lr: peak learning rate.
        codebook_lr: peak learning rate of the codebook's parameters; None takes ``lr``. With ``alternate`` that of
            the second phase; the first has ``inner_lr``. Under "sgd" a codebook that is trained by gradient needs one
            in the tens: its gradient is a mean over all vectors and channels.
        weight_decay: of the network; never applied to the codebook.
        optimizer: "adamw", or "sgd" with momentum.
        betas: of AdamW.
        momentum: of SGD; None takes 0.9. Refused with "adamw".
        warmup_steps: steps of linear warm-up. The cosine then reaches 0 at the last step that the Trainer plans.
        mixup: parameter of the Beta distribution from which each batch draws the share of a second, permuted copy of
            itself; 0 for no mixup. 0.2 is usual.
        label_smoothing: probability spread over all classes, in [0, 1). 0.1 is usual.
        pixel_mean: subtracted from all pixels.
        pixel_std: what the pixels are divided by afterwards. The defaults are near those of photographs.
        alternate: "no"; "codebook": the first phase moves the codebook; "codebook_and_encoder": both.
        inner_steps: steps of the first phase per batch.
        inner_lr: peak learning rate of the first phase (AdamW without weight decay); None takes ``lr``.
        quantize: False trains and measures the network without its quantizer. Perplexity and codes used are then not
            logged.

    Raises:
        TypeError, ValueError: for values out of range, and for settings that contradict each other; in training and
            evaluation for labels that are missing or beyond the network's classes.

    Source: arXiv 2305.08842, section on classification; mixup: arXiv 1710.09412; label smoothing: arXiv 1512.00567.

    Example:
        >>> import straightvq as svq
        >>> from straightvq.models import AlexNet
        >>> quantizer = svq.presets.straight(AlexNet.dim_at(width=4), 16, channel_dim=1, commitment=0.05)
        >>> model = AlexNet(quantizer, num_classes=10, width=4, small_images=True)
        >>> Classification(model, label_smoothing=0.1).automatic_optimization
        True
    """

    model: ClassifierBase

    def __init__(
        self,
        model: ClassifierBase,
        *,
        lr: float = 1e-3,
        codebook_lr: float | None = None,
        weight_decay: float = 0.03,
        optimizer: OptimizerName = "adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float | None = None,
        warmup_steps: int = 100,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        pixel_mean: float = 0.5,
        pixel_std: float = 0.25,
        alternate: Alternate = "no",
        inner_steps: int = 1,
        inner_lr: float | None = None,
        quantize: bool = True,
    ) -> None:
        super().__init__(
            check_part(self, "model", model, ClassifierBase),
            lr=lr,
            codebook_lr=codebook_lr,
            weight_decay=weight_decay,
            betas=betas,
            warmup_steps=warmup_steps,
            alternate=alternate,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            quantize=quantize,
        )
        # Only the layout in memory: convolutional networks train up to 1.4 times faster on a CPU, in bfloat16 twice.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = check_choice(self, "optimizer", optimizer, get_args(OptimizerName))
        if momentum is not None and optimizer == "adamw":
            raise InvalidValueError(
                f'`Classification`: `momentum` belongs to optimizer "sgd". Got {momentum} with "adamw", whose own '
                "are the `betas`."
            )
        momentum = 0.9 if momentum is None else momentum
        self.momentum = check_float(self, "momentum", momentum, minimum=0, maximum=1, open_maximum=True)
        self.mixup = check_float(self, "mixup", mixup, minimum=0)
        self.label_smoothing = check_float(
            self, "label_smoothing", label_smoothing, minimum=0, maximum=1, open_maximum=True
        )
        self.pixel_mean = check_float(self, "pixel_mean", pixel_mean)
        self.pixel_std = check_float(self, "pixel_std", pixel_std, minimum=0, open_minimum=True)
        counted = model.quantizer if quantize else None
        self.val_metrics, self.test_metrics = _ClassMetrics(counted), _ClassMetrics(counted)

    def normalize(self, image: Tensor) -> Tensor:
        """Pixels in [0, 1] -> what the network gets."""
        return (image - self.pixel_mean) / self.pixel_std

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Images (B, C, H, W) in [0, 1] -> the model's output."""
        return cast(ClassifierOutput, super().forward(self.normalize(x)))

    def prepare(self, batch: Batch) -> Batch:
        """Mixup: each image becomes ``share`` of itself plus ``1 - share`` of another one of the batch."""
        if not self.mixup:
            return batch
        image, label = batch["image"], batch["label"]
        share = Beta(self.mixup, self.mixup).sample().to(image)
        order = torch.randperm(len(image), device=image.device)
        return {
            "image": share * image + (1 - share) * image[order],
            "label": label,
            "other_label": label[order],
            "share": share,
        }

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy with label smoothing, of a mixed batch by the shares of its labels; a scalar."""
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        if "share" not in batch:
            return loss
        other = F.cross_entropy(logits, batch["other_label"], label_smoothing=self.label_smoothing)
        return batch["share"] * loss + (1 - batch["share"]) * other

    def compute(self, batch: Batch) -> Pass:
        out = self(batch["image"])
        self._check_labels(batch["label"], out.logits)
        loss = self.class_loss(out.logits, batch)
        return Pass(loss, {"cross_entropy": loss}, out.quantizer)

    def latent(self, batch: Batch) -> Tensor:
        """The embeddings of a batch as the quantizer gets them, (B, dim, h, w) or (B, tokens, dim)."""
        return self.model.encode(self.normalize(batch["image"]))

    def head_loss(self, latent: Tensor, batch: Batch) -> Tensor:
        """The task's part of the loss, a scalar, if ``latent`` were the quantizer's output."""
        return self.class_loss(self.model.head(latent), batch)

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        stages = dict(self.model.stages.named_children())
        for name, stage in stages.items():
            yield from stage.parameters()
            if name == self.model.position:
                return

    def build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        if self.optimizer == "sgd":
            return SGD(groups, lr=self.lr, momentum=self.momentum)
        return super().build_optimizer(groups)

    def measure(self, metrics: "_ClassMetrics", batch: Batch) -> None:
        out = self(batch["image"])
        self._check_labels(batch["label"], out.logits)
        metrics.update(batch["label"], out)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``{"logits": Float (B, num_classes), "prediction": Int64 (B)}``, with a quantizer also its ``indices``."""
        out = self(batch["image"])
        result = {"logits": out.logits, "prediction": out.logits.argmax(1)}
        return result if out.quantizer is None or not self.quantize else {**result, "indices": out.quantizer.indices}

    def _check_labels(self, label: Tensor, logits: Tensor) -> None:
        # On an accelerator torch's own assertion stops the kernel; asking here would make each step wait.
        if not can_ask(label) or not len(label):
            return
        low, high = (int(value) for value in label.aminmax())
        if low < 0:
            raise InvalidValueError(
                f"`Classification`: all images must have a label. Got {int((label < 0).sum())} without one in this "
                "batch: put the images of each class into a folder of its own, or add a column `label`."
            )
        if high >= logits.shape[1]:
            raise InvalidValueError(
                f"`Classification`: `num_classes` of the model must be at least {high + 1}, since there is a label "
                f"{high}. Got {logits.shape[1]}."
            )


class _ClassMetrics(SetMetrics):
    """Accuracy, cross-entropy and codebook usage."""

    def __init__(self, quantizer: Quantizer | None) -> None:
        super().__init__(quantizer)
        self.accuracy = MeanMetric(nan_strategy="disable")
        self.cross_entropy = MeanMetric(nan_strategy="disable")

    @torch.no_grad()
    def update(self, label: Tensor, out: ClassifierOutput) -> None:
        logits = out.logits.float()
        self.accuracy.update((logits.argmax(1) == label).float())
        self.cross_entropy.update(F.cross_entropy(logits, label, reduction="none"))
        self.count(out.quantizer)

    def errors(self) -> dict[str, Tensor]:
        return {"accuracy": self.accuracy.compute(), "cross_entropy": self.cross_entropy.compute()}
