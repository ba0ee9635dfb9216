"""ResNet-18 with a quantizer slot."""

import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.models.base import ConvClassifier
from straightvq.models.blocks import Residual
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_int


class ResNet18(ConvClassifier):
    """A stem, four stages of two residual blocks, global average pooling, and a quantizer between two of them.

    Batch normalization makes an image's features depend on its batch in training, not in evaluation. Where the last
    stage has a single position (at 8 pixels with ``small_images``, at 32 without) a training batch needs two images.
    Shapes and errors are those of `ClassifierBase`.

    Args:
        quantizer: any quantizer with ``channel_dim=1`` and ``dim=ResNet18.dim_at(position, width)``, or None.
        num_classes: number of logits.
        in_channels: 3 for RGB, 1 for grey.
        width: channels of the stem, 64 in the published network; the four stages have 1, 2, 4 and 8 times as many.
        small_images: the customary stem for about 32 x 32 pixels: a 3 x 3 convolution with stride 1 and no max-pooling,
            instead of 7 x 7 with stride 2 and max-pooling.
        position: "stem", or "layer1" to "layer4": the quantizer gets the output of this stage, after its last ReLU.
            "layer2" is the middle of the four, with 28 x 28 vectors of 128 channels at 224 pixels; where arXiv
            2305.08842 put its quantizer is not known.

    Source: arXiv 1512.03385, table 1: 11,689,512 parameters for 1,000 classes, with projections where the shape
    changes (its option B).

    Example:
        >>> import straightvq as svq, torch
        >>> quantizer = svq.presets.vq_vae(ResNet18.dim_at("layer2", width=4), 16, channel_dim=1)
        >>> model = ResNet18(quantizer, num_classes=10, width=4, small_images=True)
        >>> model(torch.randn(2, 3, 16, 16)).quantizer.indices.shape
        torch.Size([2, 8, 8])
    """

    POSITIONS = {"stem": 1, "layer1": 1, "layer2": 2, "layer3": 4, "layer4": 8}  # noqa: RUF012
    DEFAULT_POSITION = "layer2"

    def __init__(
        self,
        quantizer: Quantizer | None,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        small_images: bool = False,
        position: str = DEFAULT_POSITION,
    ) -> None:
        dim = self.dim_at(position, width)
        check_int(self, "num_classes", num_classes, 1)
        check_int(self, "in_channels", in_channels, 1)
        check_bool(self, "small_images", small_images)
        kernel, stride = (3, 1) if small_images else (7, 2)
        stem = nn.Sequential(*_conv_norm(in_channels, width, kernel, stride), nn.ReLU())
        if not small_images:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        stages: dict[str, nn.Module] = {"stem": stem}
        channels = width
        for name, multiple in list(self.POSITIONS.items())[1:]:
            out = multiple * width
            first = _ResidualBlock(channels, out, stride=1 if name == "layer1" else 2)
            stages[name] = nn.Sequential(first, _ResidualBlock(out, out, stride=1))
            channels = out
        stages["classifier"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        super().__init__(quantizer, stages, position=position, dim=dim, channel_dim=1, in_channels=in_channels)
        self.num_classes, self.width, self.small_images = num_classes, width, small_images
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _ResidualBlock(Residual):
    """ReLU(shortcut(x) + [3 x 3, norm, ReLU, 3 x 3, norm](x)), with a projection where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        layers = [*_conv_norm(channels, out, 3, stride), nn.ReLU(), *_conv_norm(out, out, 3, 1)]
        same_shape = stride == 1 and channels == out
        super().__init__(*layers, shortcut=None if same_shape else nn.Sequential(*_conv_norm(channels, out, 1, stride)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def _conv_norm(channels: int, out: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out)]
