"""A quantizer for people who want a tensor."""

from typing import Any

from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.nn import Quantizer, QuantizerOutput
from straightvq.nn.part import check_part


class Bare(nn.Module):
    """A quantizer that returns ``quantized`` alone, for ``nn.Sequential``.

    The rest of the last forward is kept: add ``loss`` to the loss of the task.

    Args:
        quantizer: any.

    Attributes:
        last: the `QuantizerOutput` of the last forward; None before.

    Raises:
        TypeError: for anything else than a quantizer.

    Example:
        >>> import straightvq as svq, torch
        >>> layer = Bare(svq.presets.ema(4, 16, channel_dim=1))
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 3, 1))
        >>> net(torch.randn(1, 3, 8, 8)).shape, layer.last.indices.shape
        (torch.Size([1, 3, 8, 8]), torch.Size([1, 8, 8]))
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer: Quantizer = check_part(self, "quantizer", quantizer, Quantizer)
        self.last: QuantizerOutput | None = None

    @property
    def loss(self) -> Tensor:
        """The quantizer's loss in the last forward; a ValueError says that there was none."""
        if self.last is None:
            raise InvalidValueError("`Bare`: `loss` must be asked for after a forward. Got none.")
        return self.last.loss

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: not the last forward, whose graph cannot be copied."""
        return {**self.__dict__, "last": None}

    def forward(self, z: Tensor) -> Tensor:
        self.last = self.quantizer(z)
        return self.last.quantized
