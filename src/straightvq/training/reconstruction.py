"""Training an autoencoder with a quantizer."""

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanSquaredError
from torchmetrics.image import PeakSignalNoiseRatio

from straightvq.diagnostics.fid import FrechetDistances, load_features
from straightvq.models import AutoencoderBase, AutoencoderOutput
from straightvq.nn.part import check_choice, check_part
from straightvq.training.base import Alternation, Batch, OptimizerSettings, QuantizedTask

_OPTIMIZER = OptimizerSettings()


class Reconstruction(QuantizedTask):
    """Trains an autoencoder to reconstruct its input.

    The loss is the reconstruction error plus the quantizer's loss. With ``alternate`` each batch takes the paper's
    two-phase step instead (`alternated_step`): first on the quantizer's loss alone, then on the reconstruction error
    alone. Quantizers with ``AlternatedUpdate`` already alternate inside the layer and do not need it.

    Batches are ``{"image": Float (B, C, H, W) in [0, 1]}``; other entries are ignored.

    Logged per step: ``train/loss``, ``train/reconstruction`` and each unweighted quantizer term. Per evaluation, over
    the whole set and with reconstructions clamped to [0, 1]: ``val/mse``, ``val/psnr`` in dB, ``val/perplexity`` in
    codes, ``val/codes_used`` (assigned at least once); the same for ``test/``, with ``features`` also ``test/rfid``,
    the Fréchet distance of the reconstructions from the images.

    Args:
        model: the network; any of the autoencoders in `straightvq.models`.
        optimizer: the optimizer and its rates.
        loss: reconstruction error: "mse" or "l1", means over all elements.
        loss_weight: factor of the reconstruction error. For images in [0, 1] that error is tiny beside the quantizer's
            terms; 1 / variance of the data balances them, as in the VQ-VAE's own code.
        alternate: the first phase of the two-phase step; None trains on the sum of both losses in one phase.
        quantize: False trains and measures the network without its quantizer, whose values are then not logged: the
            error that the best codebook could reach.
        features: for ``test/rfid``: folder of a classifier's run, or "inception"; None to leave it out.

    Raises:
        TypeError, ValueError: for values out of range or settings that contradict each other.

    Example:
        >>> import straightvq as svq
        >>> from straightvq.models import Autoencoder
        >>> model = Autoencoder(svq.presets.straight(8, 32, channel_dim=1))
        >>> Reconstruction(model, optimizer=OptimizerSettings(lr=3e-4)).optimizer.weight_decay
        0.0001
    """

    model: AutoencoderBase
    error_name = "reconstruction"

    def __init__(
        self,
        model: AutoencoderBase,
        *,
        optimizer: OptimizerSettings = _OPTIMIZER,
        loss: Literal["mse", "l1"] = "mse",
        loss_weight: float = 1.0,
        alternate: Alternation | None = None,
        quantize: bool = True,
        features: str | None = None,
    ) -> None:
        super().__init__(
            check_part(self, "model", model, AutoencoderBase),
            {"mse": MeanSquaredError(), "psnr": PeakSignalNoiseRatio(data_range=1.0)},
            optimizer=optimizer,
            alternate=alternate,
            quantize=quantize,
            loss_weight=loss_weight,
        )
        self.loss = check_choice(self, "loss", loss, ("mse", "l1"))
        self.features = features
        self._distances: FrechetDistances | None = None

    def error(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output, batch["image"]) if self.loss == "mse" else F.l1_loss(output, batch["image"])

    def measure(self, batch: Batch) -> None:
        x = batch["image"].float()
        out = cast(AutoencoderOutput, self(batch["image"]))
        reconstruction = out.reconstruction.float().clamp(0, 1)
        self.metrics.own.update(reconstruction.contiguous(), x)
        self.metrics.count(out.quantizer)
        if self._distances is not None:
            self._distances.add_reference(x)
            self._distances.add("rfid", reconstruction)

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
        """``{"indices": Int64 (B, h, w), "reconstruction": Float (B, C, H, W) in [0, 1]}``; indices if ``quantize``."""
        out = cast(AutoencoderOutput, self(batch["image"]))
        result = {"reconstruction": out.reconstruction.clamp(0, 1)}
        return {"indices": out.quantizer.indices, **result} if self.quantize else result
