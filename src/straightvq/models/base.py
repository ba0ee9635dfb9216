"""What the networks with a quantizer slot have in common: their results, their interface, their checks."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.hub.pretrained import Pretrained
from straightvq.nn import Quantizer, QuantizerOutput
from straightvq.nn.part import check_choice, check_int, check_part


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


class QuantizedNet(Pretrained, nn.Module, ABC):
    """Base of all networks for images: an encoder, a quantizer, and a head on the quantized embeddings."""

    quantizer: Quantizer | None
    output: ClassVar[Callable[..., Any]]  # the result of a forward pass

    def __init__(self, quantizer: Quantizer | None, *, channel_dim: int, in_channels: int) -> None:
        super().__init__()
        if quantizer is not None and check_part(self, "quantizer", quantizer, Quantizer).channel_dim != channel_dim:
            shape = "(B, C, h, w)" if channel_dim == 1 else "(B, tokens, dim)"
            raise InvalidValueError(
                f"`{type(self).__name__}`: `quantizer` must have channel_dim={channel_dim}, because features are "
                f"{shape}. Got {quantizer.channel_dim}."
            )
        self.in_channels = check_int(self, "in_channels", in_channels, 1)

    def forward(self, x: Tensor) -> Any:
        """Encodes, quantizes and applies the head; see the class for shapes."""
        z = self.encode(x)
        if self.quantizer is None:
            return self.output(self.head(z), z, None)
        out = self.quantizer(z)
        return self.output(self.head(out.quantized), z, out)

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Images -> embeddings before quantization."""

    @abstractmethod
    def head(self, quantized: Tensor) -> Tensor:
        """Quantized embeddings -> images or logits."""

    @abstractmethod
    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of what comes before the quantizer."""

    def check_images(self, x: Tensor) -> None:
        """Raises if ``x`` is not a batch of images with the network's channels."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise InvalidValueError(
                f"`{type(self).__name__}`: `x` must have the shape (B, {self.in_channels}, H, W). Got {tuple(x.shape)}."
            )


class AutoencoderBase(QuantizedNet):
    """Base of all autoencoders: images to a grid of codes and back.

    A subclass calls this constructor, then sets ``encoder``, ``quantizer`` and ``decoder``, in this order.

    Shape:
        x: Float (B, in_channels, H, W) in [0, 1], H and W multiples of ``downsample``.
        z: Float (B, dim, H / downsample, W / downsample), with the ``dim`` of the quantizer.
        reconstruction: as x, but not clamped.
        indices: Int64 (B, H / downsample, W / downsample); composites have a last axis more.

    Raises:
        TypeError, ValueError: for impossible sizes, a quantizer with another ``channel_dim`` than 1, other images.
    """

    output = AutoencoderOutput
    encoder: nn.Module
    quantizer: Quantizer
    decoder: nn.Module

    @abstractmethod
    def __init__(self, quantizer: Quantizer, in_channels: int, downsample: int) -> None:
        super().__init__(check_part(self, "quantizer", quantizer, Quantizer), channel_dim=1, in_channels=in_channels)
        self.downsample = downsample

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> embeddings (B, dim, h, w)."""
        self.check_images(x)
        if x.shape[2] % self.downsample or x.shape[3] % self.downsample:
            raise InvalidValueError(
                f"`{type(self).__name__}`: height and width of `x` must be multiples of downsample={self.downsample}. "
                f"Got {tuple(x.shape)}."
            )
        return self.encoder(x)

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantized embeddings (B, dim, h, w) -> images (B, C, H, W)."""
        return self.decoder(quantized)

    def head(self, quantized: Tensor) -> Tensor:
        return self.decode(quantized)

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()

    def tokenize(self, x: Tensor) -> Tensor:
        """Images -> indices, by the quantizer's evaluation rule; changes no state of the quantizer."""
        return self.quantizer.encode(self.encode(x))

    def detokenize(self, indices: Tensor) -> Tensor:
        """Indices -> images: after ``tokenize``, the evaluation forward's reconstruction."""
        return self.decode(self.quantizer.decode(indices))


class ClassifierBase(QuantizedNet):
    """Base of all classifiers: ``stages`` in a row, with a quantizer, or None, after the stage ``position``.

    All that the later stages know has passed the quantizer. The names of the stages, and so of the parameters, do not
    depend on its position or presence: a state dict fits networks that differ in them, the quantizer's entries aside.

    Shape:
        x: Float (B, in_channels, H, W), usually normalized to mean 0 and standard deviation 1.
        logits: Float (B, num_classes).
        indices: Int64 (B, h, w), or (B, tokens) in a transformer; composites have a last axis more.

    Raises:
        TypeError, ValueError: for impossible sizes, an unknown position, a quantizer with another ``dim`` or
            ``channel_dim``, images that do not fit.
    """

    output = ClassifierOutput

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
        super().__init__(quantizer, channel_dim=channel_dim, in_channels=in_channels)
        if quantizer is not None and quantizer.dim != dim:
            raise InvalidValueError(
                f"`{type(self).__name__}`: `quantizer` must have dim={dim}, the width of the features at {position!r}. "
                f"Got {quantizer.dim}."
            )
        self.quantizer = quantizer
        self.stages = nn.Sequential(OrderedDict(stages))
        self.position = position
        self.min_size = min_size
        self._split = list(stages).index(position) + 1

    def encode(self, x: Tensor) -> Tensor:
        """Images -> embeddings before quantization: the stages up to ``position``."""
        self.check_images(x)
        if min(x.shape[2:]) < self.min_size:
            raise InvalidValueError(
                f"`{type(self).__name__}`: height and width of `x` must be at least {self.min_size}. "
                f"Got {tuple(x.shape)}."
            )
        return self.stages[: self._split](x)

    def head(self, quantized: Tensor) -> Tensor:
        """Quantized embeddings -> logits: the stages after ``position``."""
        return self.stages[self._split :](quantized)

    def encoder_parameters(self) -> Iterator[nn.Parameter]:
        return self.stages[: self._split].parameters()

    def extra_repr(self) -> str:
        return f"position={self.position!r}"


class ConvClassifier(ClassifierBase):
    """Base of the convolutional classifiers, whose stages are multiples of one width."""

    POSITIONS: ClassVar[dict[str, int]]  # channels after each stage that a quantizer may follow, in units of the width
    DEFAULT_POSITION: ClassVar[str]

    @classmethod
    def dim_at(cls, position: str | None = None, width: int = 64) -> int:
        """Channels that the quantizer gets at a position; None is the default one.

        Example:
            >>> from straightvq.models import AlexNet, ResNet18
            >>> AlexNet.dim_at("conv3"), ResNet18.dim_at("layer4", width=16)
            (384, 128)
        """
        position = cls.DEFAULT_POSITION if position is None else position
        multiple = cls.POSITIONS[check_choice(cls.__name__, "position", position, cls.POSITIONS)]
        return multiple * check_int(cls.__name__, "width", width, 1)
