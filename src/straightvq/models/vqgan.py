"""The autoencoder of VQGAN with a quantizer slot."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.models.base import AutoencoderBase
from straightvq.models.blocks import Rescale, Residual, conv3
from straightvq.nn import Quantizer
from straightvq.nn.part import check_int

_GROUPS = 32  # of every normalization


class VQGANNet(AutoencoderBase):
    """Residual blocks at every resolution, attention at the lowest one, and the way back.

    Each level but the last halves the resolution. Normalization is over 32 groups of channels of one image, and there
    is no dropout: training and evaluation differ in the quantizer only. Inside, pixels are in [-1, 1], as in the
    source; outside in [0, 1]. Shapes and errors are those of `AutoencoderBase`.

    The defaults are the source's network for 256 x 256 pixels, with 16 x 16 tokens; for 64 x 64 pixels and as many
    tokens start with ``hidden=64, multipliers=(1, 2, 4), blocks=1``. The attention's time grows with the square of the
    number of tokens.

    Args:
        quantizer: any quantizer with ``channel_dim=1``. Its ``dim`` is the width of the latent, 256 in the source.
        in_channels: 3 for RGB, 1 for grey.
        hidden: channels at the highest resolution, a multiple of 32.
        multipliers: channels of each level, in units of ``hidden``; their number minus 1 is the number of halvings.
        blocks: residual blocks per level of the encoder, at least 1; the decoder has one more per level.

    Source: arXiv 2012.09841 and its code: 71,879,555 parameters without codebook at the default sizes and a latent of
    256 channels. Deviations: attention follows the residual blocks of the lowest resolution, whichever that is; the
    network only, without its perceptual and adversarial losses.

    Example:
        >>> import straightvq as svq, torch
        >>> quantizer = svq.presets.vq_vae(8, 32, channel_dim=1)
        >>> model = VQGANNet(quantizer, hidden=32, multipliers=(1, 1, 2), blocks=1)
        >>> model.downsample, model(torch.rand(1, 3, 16, 16)).reconstruction.shape
        (4, torch.Size([1, 3, 16, 16]))
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        in_channels: int = 3,
        hidden: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
    ) -> None:
        if not isinstance(multipliers, Sequence) or isinstance(multipliers, str) or not multipliers:
            raise InvalidValueError(
                f"`VQGANNet`: `multipliers` must be a sequence of integers >= 1. Got {multipliers!r}."
            )
        if check_int(self, "hidden", hidden, _GROUPS) % _GROUPS:
            raise InvalidValueError(f"`VQGANNet`: `hidden` must be a multiple of {_GROUPS}. Got {hidden}.")
        widths = [hidden * check_int(self, "multipliers", multiplier, 1) for multiplier in multipliers]
        super().__init__(quantizer, in_channels, downsample=2 ** (len(widths) - 1))
        self.hidden, self.multipliers, self.blocks = hidden, multipliers, check_int(self, "blocks", blocks, 1)
        self.encoder = _encoder(in_channels, hidden, widths, quantizer.dim, blocks)
        self.quantizer = quantizer
        self.decoder = _decoder(in_channels, widths, quantizer.dim, blocks + 1)


def _encoder(in_channels: int, hidden: int, widths: list[int], dim: int, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = [Rescale(2.0, -1.0), conv3(in_channels, hidden)]
    width = hidden
    for out in widths[:-1]:
        layers += _blocks(width, out, blocks)
        # The source pads below and on the right only.
        layers.append(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(out, out, 3, stride=2)))
        width = out
    lowest = widths[-1]
    layers += [*_blocks(width, lowest, blocks, attend=True), *_middle(lowest), _norm(lowest), nn.SiLU()]
    return nn.Sequential(*layers, conv3(lowest, dim), nn.Conv2d(dim, dim, 1))


def _decoder(in_channels: int, widths: list[int], dim: int, blocks: int) -> nn.Sequential:
    width = widths[-1]
    layers: list[nn.Module] = [nn.Conv2d(dim, dim, 1), conv3(dim, width), *_middle(width)]
    layers += _blocks(width, width, blocks, attend=True)
    for out in widths[-2::-1]:
        double = nn.Sequential(nn.Upsample(scale_factor=2), conv3(width, width))
        layers += [double, *_blocks(width, out, blocks)]
        width = out
    return nn.Sequential(*layers, _norm(width), nn.SiLU(), conv3(width, in_channels), Rescale(0.5, 0.5))


def _blocks(width: int, out: int, number: int, *, attend: bool = False) -> list[nn.Module]:
    """Each is shortcut(x) + [norm, swish, 3 x 3, norm, swish, 3 x 3](x), followed by attention if wanted."""
    blocks: list[nn.Module] = []
    for before in [width, *[out] * (number - 1)]:
        layers = [_norm(before), nn.SiLU(), conv3(before, out), _norm(out), nn.SiLU(), conv3(out, out)]
        blocks.append(Residual(*layers, shortcut=None if before == out else nn.Conv2d(before, out, 1)))
        if attend:
            blocks.append(_Attention(out))
    return blocks


def _middle(width: int) -> list[nn.Module]:
    return [*_blocks(width, width, 1, attend=True), *_blocks(width, width, 1)]


class _Attention(nn.Module):
    """x + attention(norm(x)) over all positions, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.to_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, 3 * width, h, w) -> three of (B, h * w, width)
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, width, eps=1e-6)
