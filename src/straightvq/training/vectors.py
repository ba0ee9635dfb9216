"""Training an autoencoder of vectors, or a quantizer alone."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanSquaredError

from straightvq.errors import InvalidValueError
from straightvq.models import MLPAutoencoder
from straightvq.models.base import AutoencoderOutput
from straightvq.nn.part import check_part
from straightvq.training.base import Batch, OptimizerSettings, Pass, QuantizedTask

_OPTIMIZER = OptimizerSettings()


class VectorReconstruction(QuantizedTask):
    """Trains an `MLPAutoencoder` to give back its vectors: the RQ-VAE of semantic IDs.

    The loss is ``loss_weight`` times the mean squared error plus the quantizer's loss. Without a network and with
    codebooks that move themselves (EMA, alternated updates) there is nothing for the optimizer; a step is then a
    forward of the quantizer.

    Batches are ``{"vector": Float (B, width)}``; other entries are ignored.

    Logged per step: ``train/loss``, ``train/reconstruction`` and each unweighted quantizer term. Per evaluation, over
    the whole set: ``val/mse`` in squared units of the batches (with `Vectors` scaled as a whole and no components it is
    the error relative to the variance), and ``val/perplexity`` and ``val/codes_used``, of a residual quantizer one per
    level, ``val/codes_used_0`` and so on; the same for ``test/``.

    Args:
        model: the network, or the quantizer in an `MLPAutoencoder` without hidden layers.
        optimizer: the optimizer and its rates.
        loss_weight: factor of the reconstruction error.

    Raises:
        TypeError, ValueError: for values out of range.

    Source: TIGER (arXiv 2305.05065, section 3.1).

    Example:
        >>> import straightvq as svq
        >>> model = MLPAutoencoder(svq.presets.straight_residual(8, 16, num_quantizers=3))
        >>> VectorReconstruction(model).loss_weight
        1.0
    """

    model: MLPAutoencoder
    error_name = "reconstruction"

    def __init__(
        self, model: MLPAutoencoder, *, optimizer: OptimizerSettings = _OPTIMIZER, loss_weight: float = 1.0
    ) -> None:
        super().__init__(
            check_part(self, "model", model, MLPAutoencoder),
            {"mse": MeanSquaredError()},
            optimizer=optimizer,
            alternate=None,
            quantize=True,
            loss_weight=loss_weight,
        )
        # Lightning counts the optimizer's steps: where nothing is trained by gradient it gets a number that stays 0.
        self._nothing = torch.zeros((), requires_grad=True)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.world_size > 1 and not self._has_gradient():
            raise InvalidValueError(
                "`VectorReconstruction`: several processes need something that is trained by gradient: pass "
                f"--trainer.devices 1, or give the network layers. Got {self.trainer.world_size} processes."
            )

    def _has_gradient(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def error(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output, batch["vector"])

    def compute(self, batch: Batch) -> Pass:
        out = cast(AutoencoderOutput, self.model(batch["vector"]))
        return self.error(out.reconstruction, batch), out.quantizer

    def latent(self, batch: Batch) -> Tensor:
        return self.model.encode(batch["vector"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        error, out = self.compute(batch)
        assert out is not None
        loss = self.loss_weight * error + out.loss
        size = len(batch["vector"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        values = {self.error_name: error, **out.terms}
        self.log_dict({f"train/{name}": value.detach() for name, value in values.items()}, batch_size=size)
        return loss if loss.requires_grad else loss + 0 * self._nothing

    def configure_optimizers(self) -> Any:
        if self._has_gradient():
            return super().configure_optimizers()
        return torch.optim.SGD([self._nothing], lr=1.0)

    def measure(self, batch: Batch) -> None:
        out = cast(AutoencoderOutput, self.model(batch["vector"]))
        self.metrics.own.update(out.reconstruction.float(), batch["vector"].float())
        self.metrics.count(out.quantizer)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``{"indices": Int64 (B, levels), "reconstruction": Float (B, width)}``, in the scale of the batches."""
        out = cast(AutoencoderOutput, self.model(batch["vector"]))
        return {"indices": out.quantizer.indices, "reconstruction": out.reconstruction}
