"""A small residual network of binary convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from straightvq.models.base import ClassifierBase
from straightvq.models.binary.conv import BinaryConv2d
from straightvq.nn import Estimator, StraightThrough
from straightvq.nn.part import check_int, check_part, default


class BinaryNet(ClassifierBase):
    """A residual network of one-bit weights and activations; its first and last layers alone are in full precision.

    A stem, three stages of ``width``, ``2 width`` and ``4 width`` channels, the second and third at half the resolution
    of the one before, global average pooling and a linear classifier. Every binary convolution has a shortcut of its
    own and a batch normalization behind it: ``x <- hardtanh(shortcut(x) + norm(conv(x)))``, where the shortcut averages
    pixels and repeats channels if shapes differ. ``straightvq.bypass`` makes it the network without signs.

    Shapes and errors are those of `ClassifierBase`; there is no quantizer between stages, and ``quantizer`` is None.
    Batch normalization makes an image's features depend on its batch in training, not in evaluation.

    Args:
        num_classes: number of logits.
        in_channels: 3 for RGB, 1 for grey.
        width: channels of the stem and the first stage; 16 in the published ResNet-20.
        blocks: binary convolutions in each stage; 6 in the published ResNet-20.
        estimator: the gradient that passes all signs, shared by them, so that ``net.estimator`` is the one place that a
            schedule sets; default ``StraightThrough()``.

    Source: arXiv 1512.03385, section 4.2 (the widths); arXiv 1808.00278 (a shortcut around every binary convolution).
        Deviation: shortcuts without weights.

    Example:
        >>> import straightvq as svq, torch
        >>> net = BinaryNet(10, in_channels=1, estimator=svq.ReSTE())
        >>> net(torch.rand(2, 1, 16, 16)).logits.shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 10]), 31282)
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: int = 8,
        blocks: int = 3,
        estimator: Estimator | None = None,
    ) -> None:
        check_int(self, "num_classes", num_classes, 1)
        check_int(self, "in_channels", in_channels, 1)
        check_int(self, "width", width, 1)
        check_int(self, "blocks", blocks, 1)
        estimator = check_part(self, "estimator", default(estimator, StraightThrough), Estimator)
        stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        stages: dict[str, nn.Module] = {"stem": stem}
        channels = width
        for number, out in enumerate((width, 2 * width, 4 * width), 1):
            first = _BinaryBlock(channels, out, 1 if number == 1 else 2, estimator)
            stages[f"stage{number}"] = nn.Sequential(
                first, *(_BinaryBlock(out, out, 1, estimator) for _ in range(blocks - 1))
            )
            channels = out
        stages["classifier"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        super().__init__(None, stages, position="stage3", dim=channels, channel_dim=1, in_channels=in_channels)
        self.num_classes, self.width, self.blocks, self.estimator = num_classes, width, blocks, estimator

    def convolutions(self) -> list[BinaryConv2d]:
        """Those of one bit, in the order of the forward pass."""
        return [module for module in self.modules() if isinstance(module, BinaryConv2d)]


class _BinaryBlock(nn.Module):
    """hardtanh(shortcut(x) + norm(conv(x)))."""

    def __init__(self, channels: int, out: int, stride: int, estimator: Estimator) -> None:
        super().__init__()
        self.conv = BinaryConv2d(channels, out, stride=stride, estimator=estimator)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.conv.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True)
        repeats = self.conv.out_channels // self.conv.in_channels
        short = short if repeats == 1 else torch.cat([short] * repeats, 1)
        return F.hardtanh(short + self.norm(self.conv(x)))
