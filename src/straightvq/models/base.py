"""What the networks with a quantizer slot have in common: their results, their interface, their checks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.nn import Quantizer, QuantizerOutput
from straightvq.nn.part import check_int, check_part


class AutoencoderOutput(NamedTuple):
    """What an autoencoder returns.

    Attributes:
        reconstruction: Float (B, C, H, W), in the range of the data but not clamped to it.
        z: Float (B, dim, h, w), the embeddings before quantization.
        quantizer: the quantizer's own output, loss included.
    """

    reconstruction: Tensor
    z: Tensor
    quantizer: QuantizerOutput


class AutoencoderBase(nn.Module, ABC):
    """Base of all autoencoders: images to a grid of codes and back.

    A subclass checks its sizes, calls this constructor, and sets ``encoder``, ``quantizer`` and ``decoder``, in this
    order: it is the order of the parameters.

    Attributes:
        encoder: Float (B, in_channels, H, W) -> (B, dim, H / downsample, W / downsample).
        quantizer: any quantizer with ``channel_dim=1``.
        decoder: the way back.
        in_channels: of the images.
        downsample: factor between image and latent.
    """

    encoder: nn.Module
    quantizer: Quantizer
    decoder: nn.Module

    @abstractmethod
    def __init__(self, quantizer: Quantizer, in_channels: int, downsample: int) -> None:
        super().__init__()
        check_part(self, "quantizer", quantizer, Quantizer)
        check_channel_dim(self, quantizer, 1, "images are (B, C, H, W)")
        self.in_channels = check_int(self, "in_channels", in_channels, 1)
        self.downsample = downsample

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Encodes, quantizes and decodes; see the class for shapes."""
        z = self.encode(x)
        out = self.quantizer(z)
        return AutoencoderOutput(self.decode(out.quantized), z, out)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> embeddings (B, dim, h, w)."""
        check_images(self, x, self.in_channels)
        if x.shape[2] % self.downsample or x.shape[3] % self.downsample:
            raise InvalidValueError(
                f"`{type(self).__name__}`: height and width of `x` must be multiples of downsample={self.downsample}. "
                f"Got {tuple(x.shape)}."
            )
        return self.encoder(x)

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantized embeddings (B, dim, h, w) -> images (B, C, H, W)."""
        return self.decoder(quantized)

    def tokenize(self, x: Tensor) -> Tensor:
        """Images -> indices, by the quantizer's evaluation rule; changes no state of the quantizer."""
        return self.quantizer.encode(self.encode(x))

    def detokenize(self, indices: Tensor) -> Tensor:
        """Indices -> images; together with ``tokenize`` the evaluation forward's reconstruction."""
        return self.decode(self.quantizer.decode(indices))


class ClassifierOutput(NamedTuple):
    """What a classifier returns.

    Attributes:
        logits: Float (B, num_classes).
        z: the embeddings before quantization, Float (B, dim, h, w), or (B, tokens, dim) in a transformer.
        quantizer: the quantizer's own output, loss included; None in a network without one.
    """

    logits: Tensor
    z: Tensor
    quantizer: QuantizerOutput | None


class ClassifierBase(nn.Module, ABC):
    """Base of all classifiers: stages in a row, with a quantizer between two of them.

    Whatever the later stages know has passed the quantizer. The names of the stages, and so of the parameters, do
    not depend on its position or presence: a state dict moves between networks that differ in them, the quantizer's
    own entries aside.

    Attributes:
        quantizer: what stands after the stage ``position``, or None.
        stages: by name; the last one gives the logits.
        position: name of the last stage before the quantizer.
    """

    @abstractmethod
    def __init__(
        self,
        quantizer: Quantizer | None,
        stages: Mapping[str, nn.Module],
        *,
        position: str,
        dim: int,
        channel_dim: int,
        in_channels: int,
        min_size: int = 1,
    ) -> None:
        super().__init__()
        if quantizer is not None:
            check_part(self, "quantizer", quantizer, Quantizer)
            layout = "features are (B, C, h, w)" if channel_dim == 1 else "features are (B, tokens, dim)"
            check_channel_dim(self, quantizer, channel_dim, layout)
            if quantizer.dim != dim:
                raise InvalidValueError(
                    f"`{type(self).__name__}`: `quantizer` must have dim={dim}, the width of the features at "
                    f"{position!r}. Got {quantizer.dim}."
                )
        self.quantizer = quantizer
        self.stages = nn.Sequential()
        for name, stage in stages.items():
            self.stages.add_module(name, stage)
        self.position = position
        self.in_channels = in_channels
        self.min_size = min_size
        self._split = list(stages).index(position) + 1

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Encodes, quantizes and classifies; see the class for shapes."""
        z = self.encode(x)
        if self.quantizer is None:
            return ClassifierOutput(self.head(z), z, None)
        out = self.quantizer(z)
        return ClassifierOutput(self.head(out.quantized), z, out)

    def encode(self, x: Tensor) -> Tensor:
        """Images -> embeddings before quantization: the stages up to ``position``."""
        check_images(self, x, self.in_channels)
        if min(x.shape[2:]) < self.min_size:
            raise InvalidValueError(
                f"`{type(self).__name__}`: height and width of `x` must be at least {self.min_size}. "
                f"Got {tuple(x.shape)}."
            )
        for stage in list(self.stages)[: self._split]:
            x = stage(x)
        return x

    def head(self, quantized: Tensor) -> Tensor:
        """Quantized embeddings -> logits: the stages after ``position``."""
        for stage in list(self.stages)[self._split :]:
            quantized = stage(quantized)
        return quantized

    def extra_repr(self) -> str:
        return f"position={self.position!r}"


class Rescale(nn.Module):
    """x -> scale * x + shift, for networks that were designed for another range of pixels than [0, 1]."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale = scale
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, shift={self.shift:g}"


def check_channel_dim(owner: nn.Module, quantizer: Quantizer, channel_dim: int, because: str) -> None:
    if quantizer.channel_dim != channel_dim:
        raise InvalidValueError(
            f"`{type(owner).__name__}`: `quantizer` must have channel_dim={channel_dim}, because {because}. "
            f"Got {quantizer.channel_dim}."
        )


def check_images(owner: nn.Module, x: Tensor, in_channels: int) -> None:
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise InvalidValueError(
            f"`{type(owner).__name__}`: `x` must have the shape (B, {in_channels}, H, W). Got {tuple(x.shape)}."
        )
