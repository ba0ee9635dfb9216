"""The convolutional autoencoder of VQ-VAE with a quantizer slot."""

from torch import nn

from straightvq.models.base import AutoencoderBase
from straightvq.models.blocks import Rescale, Residual, conv3, double, halve
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_int


class VQVAENet(AutoencoderBase):
    """Two strided convolutions, narrow residual blocks at a quarter of the resolution, and the way back.

    No normalization and no dropout: training and evaluation differ in the quantizer only. Inside, pixels are in
    [-0.5, 0.5], as in the source; outside in [0, 1]. Shapes and errors are those of `AutoencoderBase`, with a
    ``downsample`` of 4.

    Args:
        quantizer: any quantizer with ``channel_dim=1``. Its ``dim`` is the width of the latent, 64 in the source.
        in_channels: 3 for RGB, 1 for grey.
        hidden: channels of the network, at least 2; half as many at the highest resolution.
        residual: channels inside the residual blocks.
        blocks: residual blocks in the encoder, and again in the decoder.
        rectified_skip: whether the shortcut of a block is rectified too: ``relu(x) + f(relu(x))``. Implementations
            that rectify in place do that, and their weights need it (`straightvq.interop.network_weights`).

    Source: arXiv 1711.00937, section 4.1, in the sizes of its authors' example for CIFAR-10, which later comparisons
    share. Deviation: weights start as torch starts them.

    Example:
        >>> import straightvq as svq, torch
        >>> model = VQVAENet(svq.presets.vq_vae(8, 32, channel_dim=1), hidden=16, residual=4)
        >>> model.tokenize(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 4, 4])
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        in_channels: int = 3,
        hidden: int = 128,
        residual: int = 32,
        blocks: int = 2,
        rectified_skip: bool = False,
    ) -> None:
        super().__init__(quantizer, in_channels, downsample=4)
        check_int(self, "hidden", hidden, 2)
        check_int(self, "residual", residual, 1)
        check_int(self, "blocks", blocks, 0)
        check_bool(self, "rectified_skip", rectified_skip)
        self.hidden, self.residual, self.blocks, self.rectified_skip = hidden, residual, blocks, rectified_skip
        half = hidden // 2
        self.encoder = nn.Sequential(
            Rescale(1.0, -0.5),
            halve(self.in_channels, half),
            nn.ReLU(),
            halve(half, hidden),
            nn.ReLU(),
            conv3(hidden, hidden),
            *_residual_blocks(hidden, residual, blocks, rectified_skip),
            nn.ReLU(),
            nn.Conv2d(hidden, quantizer.dim, 1),
        )
        self.quantizer = quantizer
        self.decoder = nn.Sequential(
            conv3(quantizer.dim, hidden),
            *_residual_blocks(hidden, residual, blocks, rectified_skip),
            nn.ReLU(),
            double(hidden, half),
            nn.ReLU(),
            double(half, self.in_channels),
            Rescale(1.0, 0.5),
        )


def _residual_blocks(width: int, inside: int, number: int, rectified_skip: bool) -> list[nn.Module]:
    """Each is x + [ReLU, 3 x 3, ReLU, 1 x 1](x), narrower inside; relu(x) in place of x if that is said."""
    blocks: list[nn.Module] = []
    for _ in range(number):
        shortcut = nn.ReLU() if rectified_skip else None
        layers = nn.ReLU(), conv3(width, inside), nn.ReLU(), nn.Conv2d(inside, width, 1)
        blocks.append(Residual(*layers, shortcut=shortcut))
    return blocks
