"""ResNet-18 with a quantizer slot."""

import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.models.base import ClassifierBase
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_choice, check_int

# Channels after each stage, in units of the stem's.
_MULTIPLES = {"stem": 1, "layer1": 1, "layer2": 2, "layer3": 4, "layer4": 8}


class ResNet18(ClassifierBase):
    """A stem, four stages of two residual blocks, global average pooling, and a quantizer between two of them.

    Batch normalization makes training differ from evaluation: in training the features of an image depend on its
    batch, in evaluation they do not. Where the last stage has a single position (at 8 pixels with ``small_images``,
    at 32 without) a training batch needs two images.

    Args:
        quantizer: any quantizer with ``channel_dim=1`` and ``dim=ResNet18.dim_at(position, width)``; None for the
            network without quantization.
        num_classes: number of logits.
        in_channels: 3 for RGB, 1 for grey.
        width: channels of the stem; the four stages have 1, 2, 4 and 8 times as many. 64 is the published network,
            16 a quarter of it.
        small_images: the stem for images of about 32 x 32 pixels: a 3 x 3 convolution with stride 1 and no
            max-pooling, instead of 7 x 7 with stride 2 and max-pooling.
        position: "stem", "layer1", "layer2", "layer3" or "layer4": the quantizer gets the output of this stage, after
            its last ReLU. Where arXiv 2305.08842 put its quantizer is not known; "layer2" is the middle of the four
            stages, with 28 x 28 vectors of 128 channels at 224 pixels, 16 x 16 of a 32 x 32 image with
            ``small_images``.

    Shape:
        x: Float (B, in_channels, H, W), any H and W; usually normalized to mean 0 and standard deviation 1.
        logits: Float (B, num_classes).
        indices: Int64 (B, h, w).

    Raises:
        TypeError, ValueError: for impossible sizes, an unknown position, a quantizer with another ``dim`` or
            ``channel_dim``, images of a wrong shape.

    Source: arXiv 1512.03385, table 1: 11,689,512 parameters for 1,000 classes, with projections where the shape
    changes (its option B). ``small_images`` is the customary stem for CIFAR.

    Example:
        >>> import straightvq as svq, torch
        >>> quantizer = svq.presets.vq_vae(ResNet18.dim_at("layer2", width=4), 16, channel_dim=1)
        >>> model = ResNet18(quantizer, num_classes=10, width=4, small_images=True)
        >>> out = model(torch.randn(2, 3, 16, 16))
        >>> out.logits.shape, out.z.shape
        (torch.Size([2, 10]), torch.Size([2, 8, 8, 8]))
    """

    POSITIONS = tuple(_MULTIPLES)

    def __init__(
        self,
        quantizer: Quantizer | None,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        small_images: bool = False,
        position: str = "layer2",
    ) -> None:
        dim = self.dim_at(position, width)
        num_classes = check_int(self, "num_classes", num_classes, 1)
        in_channels = check_int(self, "in_channels", in_channels, 1)
        check_bool(self, "small_images", small_images)
        stages: dict[str, nn.Module] = {"stem": _stem(in_channels, width, small_images)}
        channels = width
        for name in ("layer1", "layer2", "layer3", "layer4"):
            out = _MULTIPLES[name] * width
            stride = 1 if name == "layer1" else 2
            stages[name] = nn.Sequential(_ResidualBlock(channels, out, stride), _ResidualBlock(out, out, 1))
            channels = out
        stages["classifier"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        super().__init__(quantizer, stages, position=position, dim=dim, channel_dim=1, in_channels=in_channels)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def dim_at(cls, position: str = "layer2", width: int = 64) -> int:
        """Channels that the quantizer gets at a position.

        Example:
            >>> ResNet18.dim_at("layer2"), ResNet18.dim_at("layer4", width=16)
            (128, 128)
        """
        multiple = _MULTIPLES[check_choice("ResNet18", "position", position, cls.POSITIONS)]
        return multiple * check_int("ResNet18", "width", width, 1)


class _ResidualBlock(nn.Module):
    """ReLU(shortcut(x) + [3 x 3, norm, ReLU, 3 x 3, norm](x))."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != out:
            self.shortcut.append(nn.Conv2d(channels, out, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


def _stem(in_channels: int, width: int, small_images: bool) -> nn.Sequential:
    if small_images:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
    else:
        layers = [nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    if not small_images:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*layers)
