"""A small autoencoder for vectors, around any quantizer."""

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.models.base import AutoencoderOutput, QuantizedNet
from straightvq.models.blocks import Residual
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_int, check_part


class MLPAutoencoder(QuantizedNet):
    """Fully connected layers, a quantizer, and the layers in reverse; or the quantizer alone.

    With a residual quantizer this is the RQ-VAE of semantic IDs. Training and evaluation differ in the quantizer only.

    Args:
        quantizer: any quantizer with ``channel_dim=-1``; its ``dim`` is the width of the latent.
        width: numbers of a vector; None for the quantizer's ``dim``.
        hidden: widths of the encoder's layers between the two, each followed by a ReLU; the decoder has them in
            reverse. ``[]`` or None: no network at all, and the width must be the quantizer's ``dim``.
        skip: whether encoder and decoder add to their input instead of replacing it. Both then start as the identity,
            so that the network begins where the quantizer alone would be. Needs a width that is the quantizer's
            ``dim``.

    Shape:
        x: Float (*batch, width); indices: Int64 (*batch), composites have a last axis more.

    Returns:
        An `AutoencoderOutput`: reconstruction (*batch, width), z (*batch, dim), and the quantizer's own output.

    Raises:
        TypeError, ValueError: for impossible sizes, a quantizer with another ``channel_dim``, vectors of another width.

    Source: TIGER (arXiv 2305.05065, section 3.1), whose layers are ``hidden=[512, 256, 128]`` with a latent of 32.

    Example:
        >>> import straightvq as svq, torch
        >>> model = MLPAutoencoder(svq.presets.straight_residual(4, 8, num_quantizers=3), width=16, hidden=[12, 8])
        >>> out = model(torch.randn(5, 16))
        >>> out.reconstruction.shape, out.z.shape, out.quantizer.indices.shape
        (torch.Size([5, 16]), torch.Size([5, 4]), torch.Size([5, 3]))
    """

    output = AutoencoderOutput
    quantizer: Quantizer

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        width: int | None = None,
        hidden: list[int] | None = None,
        skip: bool = False,
    ) -> None:
        if check_part(self, "quantizer", quantizer, Quantizer).channel_dim != -1:
            raise InvalidValueError(
                "`MLPAutoencoder`: `quantizer` must have channel_dim=-1, because vectors are (*batch, dim). "
                f"Got {quantizer.channel_dim}."
            )
        width = quantizer.dim if width is None else check_int(self, "width", width, 1)
        if not isinstance(hidden or [], Sequence) or isinstance(hidden, str):
            raise InvalidTypeError(f"`MLPAutoencoder`: `hidden` must be a list of widths. Got {hidden!r}.")
        hidden = [check_int(self, "hidden", each, 1) for each in hidden or []]
        check_bool(self, "skip", skip)
        if width != quantizer.dim and (skip or not hidden):
            without = "`skip`" if skip else "no `hidden` layers"
            raise InvalidValueError(
                f"`MLPAutoencoder`: `width` must be the quantizer's dim {quantizer.dim} with {without}. Got {width}."
            )
        super().__init__(quantizer, channel_dim=-1, in_channels=width)
        self.width, self.hidden, self.skip = width, hidden, skip
        sizes = [width, *hidden, quantizer.dim]
        self.encoder = _layers(sizes, skip) if hidden else nn.Identity()
        self.quantizer = quantizer
        self.decoder = _layers(sizes[::-1], skip) if hidden else nn.Identity()

    def encode(self, x: Tensor) -> Tensor:
        """Vectors (*batch, width) -> embeddings (*batch, dim)."""
        if x.ndim < 1 or x.shape[-1] != self.width:
            hint = (
                "" if self.width != self.quantizer.dim else "; without a network the quantizer's `dim` must be theirs"
            )
            raise InvalidValueError(
                f"`MLPAutoencoder`: `x` must have the shape (*batch, {self.width}). Got {tuple(x.shape)}{hint}."
            )
        return self.encoder(x)

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantized embeddings (*batch, dim) -> vectors (*batch, width)."""
        return self.decoder(quantized)

    def head(self, quantized: Tensor) -> Tensor:
        return self.decode(quantized)

    def tokenize(self, x: Tensor) -> Tensor:
        """Vectors -> indices, by the quantizer's evaluation rule; changes no state of the quantizer."""
        return self.quantizer.encode(self.encode(x))

    def detokenize(self, indices: Tensor) -> Tensor:
        """Indices, of a residual quantizer also their first entries alone -> vectors."""
        return self.decode(self.quantizer.decode(indices))

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()

    def extra_repr(self) -> str:
        return f"width={self.width}, skip={self.skip}"


def _layers(sizes: list[int], skip: bool) -> nn.Module:
    """Linear maps with a ReLU between two of them."""
    layers: list[nn.Module] = []
    for size, out in itertools.pairwise(sizes):
        layers += [nn.Linear(size, out), nn.ReLU()]
    layers.pop()
    if not skip:
        return nn.Sequential(*layers)
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return Residual(*layers)
