"""A small residual codec for sound: a strided encoder, a quantizer, the mirrored decoder."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from straightvq.errors import InvalidValueError
from straightvq.models.base import AutoencoderOutput, QuantizedNet
from straightvq.nn import Quantizer
from straightvq.nn.part import check_choice, check_int, check_part

Activation = Literal["snake", "elu"]


class Snake(nn.Module):
    """x + sin^2(a x) / a with one a per channel, 1 at the start: a line that can be periodic.

    Shape: x: Float (B, channels, T).

    Source: Ziyin et al. (arXiv 2006.08195), eq. 3, with a trained a as in DAC (arXiv 2306.06546, section 3.1).

    Example:
        >>> bool(torch.isclose(Snake(1)(torch.full((1, 1, 1), 2.0)), torch.tensor(2 + math.sin(2) ** 2)))
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.frequency * x).sin().square() * (self.frequency + 1e-9).reciprocal()


class AudioCodec(QuantizedNet):
    """Clips of one channel to a sequence of codes and back.

    The encoder halves and quarters the rate as ``strides`` say and doubles its channels with each; the decoder is its
    mirror image. Each rate has residual units with dilated convolutions. Nothing is normalized over time or clips, so
    that training and evaluation differ in the quantizer only. What lies behind the end of a clip is zero at every rate,
    as it is around a clip alone: neither padding nor the other clips of a batch change a code or a sample.

    Args:
        quantizer: any quantizer with ``channel_dim=1``. Its ``dim`` is the width of the latent.
        hidden: channels at the full rate, at least 1.
        strides: factors of the rate, from the full rate down, each at least 2; their product is the ``hop``.
        dilations: of the residual units at each rate, each at least 1.
        activation: "snake" as in DAC, or "elu" as in SoundStream and EnCodec.

    Attributes:
        hop: samples per frame of codes.

    Shape:
        x: Float (B, 1, T), T >= 1, full scale at 1; length: Int (B,), samples of each clip, None for T.
        reconstruction: Float (B, 1, T) in [-1, 1], zeros behind the end of a clip.
        z: Float (B, dim, frames), frames = ceil(T / hop); indices: Int64 (B, frames), -1 behind the end; composites
        have a last axis more.

    Returns:
        An `AutoencoderOutput`.

    Raises:
        TypeError, ValueError: for impossible sizes, a quantizer with another ``channel_dim``, clips of a wrong shape.

    Source: SoundStream (arXiv 2107.03312, section III.A and B): residual units with dilations 1, 3, 9 in front of a
    strided convolution of twice the stride's width that doubles the channels. DAC (arXiv 2306.06546, section 3.1 and
    its code): Snake, weight norm, convolutions that look both ways, tanh at the end. Deviations: fewer channels and
    rates, kernels of the units of width 7 as in both, no discriminators.

    Example:
        >>> import straightvq as svq
        >>> codec = AudioCodec(svq.presets.straight_residual(8, 16, num_quantizers=2, channel_dim=1), hidden=4)
        >>> out = codec(torch.randn(2, 1, 200), torch.tensor([200, 90]))
        >>> out.reconstruction.shape, out.quantizer.indices.shape, out.quantizer.indices[1, :, 0].ge(0).tolist()
        (torch.Size([2, 1, 200]), torch.Size([2, 3, 2]), [True, True, False])
    """

    output = AutoencoderOutput
    quantizer: Quantizer

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        hidden: int = 16,
        strides: Sequence[int] = (4, 4, 5),
        dilations: Sequence[int] = (1, 3, 9),
        activation: Activation = "snake",
    ) -> None:
        super().__init__(check_part(self, "quantizer", quantizer, Quantizer), channel_dim=1, in_channels=1)
        check_int(self, "hidden", hidden, 1)
        if not strides:
            raise InvalidValueError("`AudioCodec`: `strides` must be at least one number. Got none.")
        for stride in strides:
            check_int(self, "strides", stride, 2)
        for dilation in dilations:
            check_int(self, "dilations", dilation, 1)
        check_choice(self, "activation", activation, ("snake", "elu"))
        self.hidden, self.strides, self.dilations, self.activation = hidden, strides, dilations, activation
        self.hop = math.prod(strides)
        widths = [hidden * 2**number for number in range(len(strides) + 1)]
        down: list[nn.Module] = [_Conv(1, hidden, 7)]
        up: list[nn.Module] = [_Conv(quantizer.dim, widths[-1], 7)]
        for width, stride in zip(widths, strides, strict=False):
            down += [*(_Unit(width, dilation, activation) for dilation in dilations), _activation(activation, width)]
            down.append(_Conv(width, 2 * width, 2 * stride, stride=stride))
        for width, stride in zip(widths[-2::-1], reversed(strides), strict=True):
            up += [_activation(activation, 2 * width), _Raise(2 * width, width, stride)]
            up += [_Unit(width, dilation, activation) for dilation in dilations]
        down += [_activation(activation, widths[-1]), _Conv(widths[-1], quantizer.dim, 3)]
        up += [_activation(activation, hidden), _Conv(hidden, 1, 7)]
        self.encoder = _Chain(down)
        self.quantizer = quantizer
        self.decoder = _Chain(up)

    def forward(self, x: Tensor, length: Tensor | None = None) -> AutoencoderOutput:
        """Encodes, quantizes and decodes; see the class for shapes."""
        z = self.encode(x, length)
        valid = self.valid(x, length)
        out = self.quantizer(z, None if length is None else valid)
        return AutoencoderOutput(self.within(self.head(out.quantized, valid), x, length), z, out)

    def encode(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Clips -> embeddings (B, dim, frames), zeros behind the end of a clip."""
        self.check_clips(x, length)
        samples = x.shape[-1]
        x = self.within(x, x, length)
        return self.encoder(F.pad(x, (0, -samples % self.hop)), self.valid(x, length))

    def head(self, quantized: Tensor, valid: Tensor | None = None) -> Tensor:
        """Quantized embeddings (B, dim, frames), valid Bool (B, frames) -> clips (B, 1, frames * hop) in [-1, 1]."""
        if valid is None:
            valid = quantized.new_ones(len(quantized), quantized.shape[-1], dtype=torch.bool)
        return self.decoder(_keep(quantized, valid), valid).tanh()

    def tokenize(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Clips -> indices, by the quantizer's evaluation rule; changes no state of the quantizer."""
        return self.quantizer.encode(self.encode(x, length), self.valid(x, length))

    def detokenize(self, indices: Tensor) -> Tensor:
        """Indices, of a composite also the first ones alone -> clips (B, 1, frames * hop).

        Together with ``tokenize`` the evaluation forward's reconstruction, but for what lies behind the last sample.
        """
        valid = (indices[..., 0] if self.quantizer.is_composite else indices) >= 0
        quantized = self.quantizer.decode(indices)  # in the dtype of the codes
        return self.head(quantized.to(next(self.decoder.parameters()).dtype), valid)

    def valid(self, x: Tensor, length: Tensor | None) -> Tensor:
        """Which frames have a sample of the clip, Bool (B, frames)."""
        samples = x.shape[-1]
        frames = torch.arange(-(-samples // self.hop), device=x.device)
        if length is None:
            return torch.ones(len(x), len(frames), dtype=torch.bool, device=x.device)
        return frames * self.hop < length[:, None]

    @staticmethod
    def within(clips: Tensor, x: Tensor, length: Tensor | None) -> Tensor:
        """Clips cut to the samples of ``x``, zeros behind the end of each."""
        clips = clips[..., : x.shape[-1]]
        if length is None:
            return clips
        inside = torch.arange(x.shape[-1], device=x.device) < length[:, None]
        return torch.where(inside[:, None], clips, 0)

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()

    def check_clips(self, x: Tensor, length: Tensor | None) -> None:
        """Raises if ``x`` is no batch of clips, or ``length`` does not say where they end."""
        if x.ndim != 3 or x.shape[1] != 1 or not x.shape[2]:
            raise InvalidValueError(f"`AudioCodec`: `x` must have the shape (B, 1, T), T >= 1. Got {tuple(x.shape)}.")
        if length is not None and (length.shape != x.shape[:1] or length.is_floating_point()):
            raise InvalidValueError(
                f"`AudioCodec`: `length` must hold {len(x)} integers, one for each clip. "
                f"Got {length.dtype} of shape {tuple(length.shape)}."
            )


def _keep(x: Tensor, valid: Tensor) -> Tensor:
    """Zeros behind the end of each clip: x (B, C, T), valid (B, frames) with T a multiple of frames."""
    return torch.where(valid.repeat_interleave(x.shape[-1] // valid.shape[-1], 1)[:, None], x, 0)


class _Chain(nn.ModuleList):
    """Layers in a row; those with weights are told which frames are valid."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, valid) if isinstance(layer, _Conv | _Raise | _Unit) else layer(x)
        return x


class _Conv(nn.Module):
    """A convolution that looks both ways and divides the length by its stride."""

    def __init__(self, width: int, out: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = (stride + 1) // 2 if stride > 1 else dilation * (kernel - 1) // 2
        conv = nn.Conv1d(width, out, kernel, stride=stride, padding=padding, dilation=dilation)
        self.conv = weight_norm(conv)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return _keep(self.conv(x), valid)


class _Raise(nn.Module):
    """A transposed convolution that multiplies the length by its stride."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        padding = (stride + 1) // 2
        conv = nn.ConvTranspose1d(width, out, 2 * stride, stride, padding, output_padding=stride % 2)
        self.conv = weight_norm(conv)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return _keep(self.conv(x), valid)


class _Unit(nn.Module):
    """x + [activation, dilated convolution of width 7, activation, 1 x 1](x)."""

    def __init__(self, width: int, dilation: int, activation: Activation) -> None:
        super().__init__()
        self.first, self.second = (_activation(activation, width) for _ in range(2))
        self.dilated, self.mix = _Conv(width, width, 7, dilation=dilation), _Conv(width, width, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return x + self.mix(self.second(self.dilated(self.first(x), valid)), valid)


def _activation(name: Activation, width: int) -> nn.Module:
    """Both map 0 to 0, so that what is behind the end of a clip stays zero."""
    return Snake(width) if name == "snake" else nn.ELU()
