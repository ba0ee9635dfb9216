"""Training an autoencoder with a quantizer."""

from collections.abc import Iterator
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio

from straightvq.diagnostics.fid import FrechetDistances, load_features
from straightvq.models import AutoencoderBase, AutoencoderOutput
from straightvq.nn import Quantizer
from straightvq.nn.part import check_choice, check_float, check_part
from straightvq.training.base import Alternate, Batch, Pass, QuantizedTask, SetMetrics

__all__ = ["Reconstruction"]

PixelLoss = Literal["mse", "l1"]


class Reconstruction(QuantizedTask):
    """Trains an autoencoder to give back its input, with AdamW, linear warm-up and a cosine to zero.

    The loss is the reconstruction error plus the quantizer's loss. With ``alternate`` each batch takes the paper's
    two-phase step instead (see `straightvq.training.alternated`): first ``inner_steps`` steps on the quantizer's loss
    alone, then one on the reconstruction error alone. Quantizers with ``AlternatedUpdate`` alternate inside the
    layer already and need no ``alternate="codebook"``.

    Batches are ``{"image": Float (B, C, H, W) in [0, 1]}``; other entries are ignored.

    Logged per step: ``train/loss``, ``train/reconstruction`` and each unweighted quantizer term. Per evaluation,
    over the whole set and with reconstructions clamped to [0, 1]: ``val/mse``, ``val/psnr`` in dB, ``val/perplexity``
    in codes, ``val/codes_used`` (the number assigned at least once); the same for ``test/``, and with ``features`` also
    ``test/rfid``, the Fréchet distance of the reconstructions from the images.

    Args:
        model: the network; any of the autoencoders in `straightvq.models`.
        lr: peak learning rate of AdamW.
        codebook_lr: peak learning rate of the codebook's parameters; None takes ``lr``. With ``alternate`` that of
            the second phase; the first has ``inner_lr``.
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
        quantize: False trains and measures the network without its quantizer: the error that the best codebook could
            reach. Perplexity and codes used are then not logged.
        features: for ``test/rfid``: folder of the run of a classifier, or "inception"; None for no such value.

    Raises:
        TypeError, ValueError: for values out of range, and for settings that contradict each other.

    Source: arXiv 2305.08842, Table 8 (AdamW, betas, weight decay, warm-up and cosine).

    Example:
        >>> import straightvq as svq
        >>> from straightvq.models import Autoencoder
        >>> task = Reconstruction(Autoencoder(svq.presets.straight(8, 32, channel_dim=1)), lr=3e-4)
        >>> task.automatic_optimization
        True
    """

    model: AutoencoderBase

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
        quantize: bool = True,
        features: str | None = None,
    ) -> None:
        super().__init__(
            check_part(self, "model", model, AutoencoderBase),
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
        self.loss = check_choice(self, "loss", loss, get_args(PixelLoss))
        self.loss_weight = check_float(self, "loss_weight", loss_weight, minimum=0, open_minimum=True)
        counted = model.quantizer if quantize else None
        self.val_metrics, self.test_metrics = _ImageMetrics(counted), _ImageMetrics(counted)
        self.features = features
        self._distances: FrechetDistances | None = None

    def reconstruction_loss(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        """The unweighted reconstruction error, a scalar."""
        return F.mse_loss(reconstruction, x) if self.loss == "mse" else F.l1_loss(reconstruction, x)

    def compute(self, batch: Batch) -> Pass:
        out = cast(AutoencoderOutput, self(batch["image"]))
        error = self.reconstruction_loss(out.reconstruction, batch["image"])
        return Pass(self.loss_weight * error, {"reconstruction": error}, out.quantizer)

    def latent(self, batch: Batch) -> Tensor:
        """The embeddings of a batch as the quantizer gets them, (B, dim, h, w)."""
        return self.model.encode(batch["image"])

    def head_loss(self, latent: Tensor, batch: Batch) -> Tensor:
        """The task's part of the loss, a scalar, if ``latent`` were the quantizer's output."""
        return self.loss_weight * self.reconstruction_loss(self.model.decode(latent), batch["image"])

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        return self.model.encoder.parameters()

    def measure(self, metrics: "_ImageMetrics", batch: Batch) -> None:
        x, out = batch["image"], cast(AutoencoderOutput, self(batch["image"]))
        metrics.update(x, out)
        if self._distances is not None:
            self._distances.add_reference(x.float())
            self._distances.add("rfid", out.reconstruction.float().clamp(0, 1))

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        if self.features is not None:
            self._distances = FrechetDistances(load_features(self.features), ["rfid"], self.device)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self._distances is not None:
            self.log("test/rfid", self._distances.compute()["rfid"].float(), rank_zero_only=False)
            self.print(f"rFID in the features of {self._distances.features.name}")
            self._distances = None

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``{"indices": Int64 (B, h, w), "reconstruction": Float (B, C, H, W) in [0, 1]}``.

        Without ``quantize`` there are no indices.
        """
        out = cast(AutoencoderOutput, self(batch["image"]))
        result = {"reconstruction": out.reconstruction.clamp(0, 1)}
        return {"indices": out.quantizer.indices, **result} if self.quantize else result


class _ImageMetrics(SetMetrics):
    """Image errors and codebook usage."""

    def __init__(self, quantizer: Quantizer | None) -> None:
        super().__init__(quantizer)
        self.images = MetricCollection({"mse": MeanSquaredError(), "psnr": PeakSignalNoiseRatio(data_range=1.0)})

    @torch.no_grad()
    def update(self, x: Tensor, out: AutoencoderOutput) -> None:
        self.images.update(out.reconstruction.detach().float().clamp(0, 1).contiguous(), x.float())
        self.count(out.quantizer)

    def errors(self) -> dict[str, Tensor]:
        return dict(self.images.compute())
