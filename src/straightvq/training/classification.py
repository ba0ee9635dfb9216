"""Training a classifier with a quantizer between two of its stages."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta
from torchmetrics import MeanMetric

from straightvq.errors import InvalidValueError
from straightvq.models import ClassifierBase, ClassifierOutput
from straightvq.nn.part import can_ask, check_float, check_part
from straightvq.training.base import SHARE, Alternation, Batch, OptimizerSettings, QuantizedTask

_OPTIMIZER = OptimizerSettings(weight_decay=0.03)


class Classification(QuantizedTask):
    """Trains a classifier.

    The loss is the cross-entropy plus the quantizer's loss. With ``alternate`` each batch takes the paper's two-phase
    step instead, as in `Reconstruction`: first on the quantizer's loss alone, then on the cross-entropy alone.

    Batches are ``{"image": Float (B, C, H, W) in [0, 1], "label": Int64 (B)}``. Mixup and label smoothing act in
    training; evaluation measures the plain cross-entropy.

    Logged per step: ``train/loss``, ``train/cross_entropy`` and each unweighted quantizer term. Per evaluation, over
    the whole set: ``val/accuracy`` in [0, 1], ``val/cross_entropy`` in nats, ``val/perplexity`` in codes,
    ``val/codes_used`` (assigned at least once); the same for ``test/``.

    Args:
        model: the network; any of the classifiers in `straightvq.models`.
        optimizer: the optimizer and its rates; the default has a ``weight_decay`` of 0.03.
        mixup: parameter of the Beta distribution from which each batch draws the share of a second, permuted copy of
            itself; 0 for no mixup. 0.2 is usual.
        label_smoothing: probability spread over all classes, in [0, 1). 0.1 is usual.
        pixel_mean: subtracted from all pixels.
        pixel_std: divides the pixels afterwards. The defaults are near those of photographs.
        alternate: the first phase of the two-phase step; None trains on the sum of both losses in one phase.
        quantize: False trains and measures the network without its quantizer, whose values are then not logged.

    Raises:
        TypeError, ValueError: for values out of range or settings that contradict each other; in training and
            evaluation for labels that are missing or beyond the network's classes.

    Source: arXiv 2305.08842, section on classification; mixup: arXiv 1710.09412; label smoothing: arXiv 1512.00567.

    Example:
        >>> import straightvq as svq
        >>> from straightvq.models import AlexNet
        >>> quantizer = svq.presets.straight(AlexNet.dim_at(width=4), 16, channel_dim=1, commitment=0.05)
        >>> model = AlexNet(quantizer, num_classes=10, width=4, small_images=True)
        >>> Classification(model, label_smoothing=0.1).optimizer.weight_decay
        0.03
    """

    model: ClassifierBase
    error_name = "cross_entropy"

    def __init__(
        self,
        model: ClassifierBase,
        *,
        optimizer: OptimizerSettings = _OPTIMIZER,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        pixel_mean: float = 0.5,
        pixel_std: float = 0.25,
        alternate: Alternation | None = None,
        quantize: bool = True,
    ) -> None:
        super().__init__(
            check_part(self, "model", model, ClassifierBase),
            {name: MeanMetric(nan_strategy="disable") for name in ("accuracy", "cross_entropy")},
            optimizer=optimizer,
            alternate=alternate,
            quantize=quantize,
        )
        # Convolutional networks train up to 1.4 times faster on a CPU, in bfloat16 twice.
        cast(Any, self.model).to(memory_format=torch.channels_last)
        self.mixup = check_float(self, "mixup", mixup, minimum=0)
        self.label_smoothing = check_float(self, "label_smoothing", label_smoothing, **SHARE)
        self.pixel_mean = check_float(self, "pixel_mean", pixel_mean)
        self.pixel_std = check_float(self, "pixel_std", pixel_std, minimum=0, open_minimum=True)

    def normalize(self, image: Tensor) -> Tensor:
        return (image - self.pixel_mean) / self.pixel_std

    def prepare(self, batch: Batch) -> Batch:
        """Mixup: each image becomes ``share`` of itself plus ``1 - share`` of another one of the batch."""
        if not self.mixup:
            return batch
        image, label = batch["image"], batch["label"]
        share = Beta(self.mixup, self.mixup).sample().to(image)
        order = torch.randperm(len(image), device=image.device)
        mixed = share * image + (1 - share) * image[order]
        return {"image": mixed, "label": label, "other_label": label[order], "share": share}

    def error(self, output: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy with label smoothing, weighted by the shares of the labels in a mixed batch; a scalar."""
        _check_labels(batch["label"], output.shape[1])
        loss = F.cross_entropy(output, batch["label"], label_smoothing=self.label_smoothing)
        if "share" not in batch:
            return loss
        other = F.cross_entropy(output, batch["other_label"], label_smoothing=self.label_smoothing)
        return batch["share"] * loss + (1 - batch["share"]) * other

    def measure(self, batch: Batch) -> None:
        out = cast(ClassifierOutput, self(batch["image"]))
        logits, label = out.logits.float(), batch["label"]
        _check_labels(label, logits.shape[1])
        self.metrics.own["accuracy"].update((logits.argmax(1) == label).float())
        self.metrics.own["cross_entropy"].update(F.cross_entropy(logits, label, reduction="none"))
        self.metrics.count(out.quantizer)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``{"logits": Float (B, num_classes), "prediction": Int64 (B)}``, with a quantizer also its ``indices``."""
        out = cast(ClassifierOutput, self(batch["image"]))
        result = {"logits": out.logits, "prediction": out.logits.argmax(1)}
        return result if out.quantizer is None or not self.quantize else {**result, "indices": out.quantizer.indices}


def _check_labels(label: Tensor, num_classes: int) -> None:
    # On an accelerator asking would make each step wait; there torch's own assertion stops the kernel.
    if not can_ask(label) or not len(label):
        return
    if missing := int((label < 0).sum()):
        raise InvalidValueError(
            f"`Classification`: all images must have a label. Got {missing} without one in this batch: put the images "
            "of each class into a folder of its own, or add a column `label`."
        )
    if (high := int(label.max())) >= num_classes:
        raise InvalidValueError(
            f"`Classification`: `num_classes` of the model must be at least {high + 1}, since there is a label "
            f"{high}. Got {num_classes}."
        )
