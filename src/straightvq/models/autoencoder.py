"""A small convolutional autoencoder with a quantizer slot."""

import math
from typing import cast

from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.models.base import AutoencoderBase
from straightvq.models.blocks import Residual, conv3, double, halve
from straightvq.nn import Quantizer
from straightvq.nn.part import check_int


class Autoencoder(AutoencoderBase):
    """A small convolutional autoencoder.

    The encoder halves the resolution with strided convolutions and has its residual blocks at the lowest one; the
    decoder is its mirror image. Normalization is over groups of channels of one image: nothing depends on the batch,
    and training and evaluation differ in the quantizer only. Embeddings start with a standard deviation of about 1,
    images at mid grey; no sigmoid saturates at black and white. Shapes and errors are those of `AutoencoderBase`.

    Args:
        quantizer: any quantizer with ``channel_dim=1``. Its ``dim`` is the width of the latent.
        in_channels: 3 for RGB, 1 for grey.
        hidden: channels inside the network, at least 2.
        downsample: factor between image and latent, a power of two. 4 turns 32 x 32 pixels into 8 x 8 tokens.
        blocks: residual blocks in the encoder, and again in the decoder.

    Source: the layout of the networks used for reconstruction in arXiv 2305.08842 (those of SQ-VAE, arXiv
    2205.07547). Deviations: normalization over groups instead of the batch, one width, no sigmoid.

    Example:
        >>> import straightvq as svq, torch
        >>> model = Autoencoder(svq.presets.vq_vae(8, 32, channel_dim=1), hidden=16)
        >>> model.tokenize(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 4, 4])
    """

    def __init__(
        self, quantizer: Quantizer, *, in_channels: int = 3, hidden: int = 64, downsample: int = 4, blocks: int = 2
    ) -> None:
        super().__init__(quantizer, in_channels, check_int(self, "downsample", downsample, 1))
        check_int(self, "hidden", hidden, 2)
        check_int(self, "blocks", blocks, 0)
        if downsample & (downsample - 1):
            raise InvalidValueError(f"`Autoencoder`: `downsample` must be a power of two. Got {downsample}.")
        self.hidden, self.blocks = hidden, blocks
        halvings = int(math.log2(downsample))
        self.encoder = _encoder(in_channels, hidden, quantizer.dim, halvings, blocks)
        self.quantizer = quantizer
        self.decoder = _decoder(in_channels, hidden, quantizer.dim, halvings, blocks)


def _encoder(in_channels: int, hidden: int, dim: int, halvings: int, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = in_channels
    for _ in range(halvings):
        layers += [halve(width, hidden), _norm(hidden), nn.ReLU()]
        width = hidden
    layers += [conv3(width, hidden), *_residual_blocks(hidden, blocks), _norm(hidden)]
    to_latent = nn.Conv2d(hidden, dim, 1)
    # The normalized input has variance 1, so this gives every channel of z a variance of about 1.
    nn.init.normal_(to_latent.weight, std=hidden**-0.5)
    nn.init.zeros_(cast(Tensor, to_latent.bias))
    return nn.Sequential(*layers, to_latent)


def _decoder(in_channels: int, hidden: int, dim: int, halvings: int, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = [conv3(dim, hidden), *_residual_blocks(hidden, blocks), _norm(hidden), nn.ReLU()]
    for _ in range(halvings - 1):
        layers += [double(hidden, hidden), _norm(hidden), nn.ReLU()]
    to_image = double(hidden, in_channels) if halvings else conv3(hidden, in_channels)
    nn.init.constant_(cast(Tensor, to_image.bias), 0.5)  # mid grey
    return nn.Sequential(*layers, to_image)


def _residual_blocks(width: int, number: int) -> list[Residual]:
    """Each is x + [norm, ReLU, 3 x 3, norm, ReLU, 1 x 1](x)."""
    blocks = []
    for _ in range(number):
        wide, narrow = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.Conv2d(width, width, 1)
        blocks.append(Residual(_norm(width), nn.ReLU(), wide, _norm(width), nn.ReLU(), narrow))
    return blocks


def _norm(width: int) -> nn.GroupNorm:
    """GroupNorm with groups of about 16 channels: of so many, a dead one does not decide the group's moments."""
    groups = max(1, width // 16)
    while width % groups:
        groups -= 1
    return nn.GroupNorm(groups, width)
