"""The residual autoencoder of SQ-VAE with a quantizer slot."""

from torch import nn

from straightvq.errors import InvalidValueError
from straightvq.models.base import AutoencoderBase
from straightvq.models.blocks import Residual, conv3, double, halve
from straightvq.nn import Quantizer
from straightvq.nn.part import check_choice, check_int

# Residual blocks in the encoder.
_BLOCKS = {"net_32": 2, "net_64": 6}


class SQVAENet(AutoencoderBase):
    """Two strided convolutions, residual blocks at a quarter of the resolution, and the way back, all with ReLU.

    The network is as wide as the codes, with half as many channels at the highest resolution. Batch normalization makes
    an image's embeddings depend on its batch in training, where every forward moves the running averages, ``encode``
    and ``tokenize`` included; in evaluation nothing does. Shapes and errors are those of `AutoencoderBase`, with a
    ``downsample`` of 4 and reconstructions in (0, 1) by a sigmoid.

    Args:
        quantizer: any quantizer with ``channel_dim=1``; its ``dim``, at least 2 and 64 in the source, is the network's
            width.
        variant: "net_32", used for 32 x 32 pixels, or "net_64", used for 64 x 64 and 128 x 128; both take any size.
            "net_64" has no normalization and ReLU before the encoder's residual blocks, and one block less in the
            decoder than in the encoder.
        in_channels: 3 for RGB, 1 for grey.
        blocks: residual blocks in the encoder, at least 1; None takes the source's: 2 in "net_32", 6 in "net_64".

    Source: arXiv 2205.07547 and its code (``EncoderVqResnet32``, ``EncoderVqResnet64`` and their decoders, as set
    for CIFAR-10 and CelebA); arXiv 2305.08842 uses them "with 64 channels" for CIFAR-10 at 32 x 32 and CelebA at
    128 x 128. No deviations; the convolutions before a normalization keep their idle biases.

    Example:
        >>> import straightvq as svq, torch
        >>> model = SQVAENet(svq.presets.vq_vae(8, 32, channel_dim=1))
        >>> model.tokenize(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 4, 4])
    """

    def __init__(
        self, quantizer: Quantizer, *, variant: str = "net_32", in_channels: int = 3, blocks: int | None = None
    ) -> None:
        super().__init__(quantizer, in_channels, downsample=4)
        is_small = check_choice(self, "variant", variant, _BLOCKS) == "net_32"
        blocks = check_int(self, "blocks", _BLOCKS[variant] if blocks is None else blocks, 1)
        dim = quantizer.dim
        if dim < 2:
            raise InvalidValueError(f"`SQVAENet`: `quantizer` must have a dim of at least 2. Got {dim}.")
        self.variant, self.blocks = variant, blocks
        half = dim // 2
        self.encoder = nn.Sequential(
            *_norm_relu(halve(self.in_channels, half)),
            *_norm_relu(halve(half, dim)),
            *_norm_relu(conv3(dim, dim))[: None if is_small else 1],
            *_residual_blocks(dim, blocks),
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            *_residual_blocks(dim, blocks if is_small else blocks - 1),
            *_norm_relu(nn.ConvTranspose2d(dim, dim, 3, padding=1)),
            *_norm_relu(double(dim, half)),
            double(half, self.in_channels),
            nn.Sigmoid(),
        )


def _residual_blocks(width: int, number: int) -> list[nn.Module]:
    """Each is x + [ReLU, 3 x 3, norm, ReLU, 1 x 1, norm](x)."""
    return [
        Residual(nn.ReLU(), *_norm_relu(conv3(width, width)), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        for _ in range(number)
    ]


def _norm_relu(conv: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]
