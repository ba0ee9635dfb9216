"""A convolution of one bit: signs of the input with signs of the weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from straightvq.errors import InvalidValueError
from straightvq.nn import Estimator, LookupFreeQuantizer
from straightvq.nn.part import check_int


class BinaryConv2d(nn.Module):
    """A convolution whose weights and inputs are signs, scaled per output channel.

    ``out = conv(sign(x), scale sign(weight))``; the ``scale`` of an output channel is the mean of its ``|weight|``, and
    gradients pass through it. Both signs are those of a ``LookupFreeQuantizer`` of one bit: the sign of 0 is +1, the
    estimator decides what gradient passes, and under ``straightvq.bypass`` the convolution is that of the continuous
    inputs and of ``scale weight``. No bias; zeros around the image. The same in training and evaluation.

    Args:
        in_channels: of the input, at least 1.
        out_channels: of the output, at least 1.
        kernel_size: side of the window, odd: an image keeps its size.
        stride: step of the window, at least 1.
        estimator: the gradient that passes the signs; default ``StraightThrough()``. One that several convolutions
            share follows a schedule in all of them.

    Attributes:
        weight: the continuous weights, Float (out_channels, in_channels, kernel_size, kernel_size).
        weight_signs, input_signs: the quantizers.

    Shape:
        x: Float (B, in_channels, H, W); returns Float (B, out_channels, H / stride, W / stride), rounded up.

    Raises:
        TypeError, ValueError: for impossible sizes, and for values that are not finite.

    Source: arXiv 1603.05279 (XNOR-Net), scale per output channel; arXiv 2308.06689, gradient through the scale.

    Example:
        >>> import torch
        >>> conv = BinaryConv2d(1, 1, kernel_size=1)
        >>> conv.weight.data.fill_(-0.5)
        tensor([[[[-0.5000]]]])
        >>> conv(torch.tensor([[[[0.3, -2.0, 0.0]]]])).tolist()
        [[[[-0.5, 0.5, -0.5]]]]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_int(self, "in_channels", in_channels, 1)
        self.out_channels = check_int(self, "out_channels", out_channels, 1)
        self.kernel_size = check_int(self, "kernel_size", kernel_size, 1)
        if self.kernel_size % 2 == 0:
            raise InvalidValueError(f"`BinaryConv2d`: `kernel_size` must be odd. Got {kernel_size}.")
        self.stride = check_int(self, "stride", stride, 1)
        # Each number is a vector of one bit.
        self.weight_signs = LookupFreeQuantizer(1, 1, estimator=estimator, losses=[])
        self.input_signs = LookupFreeQuantizer(1, 1, estimator=estimator, losses=[])
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = scale * _signs(self.weight_signs, self.weight)
        return F.conv2d(_signs(self.input_signs, x), weight, stride=self.stride, padding=self.kernel_size // 2)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


def _signs(quantizer: LookupFreeQuantizer, x: Tensor) -> Tensor:
    quantized: Tensor = quantizer(x[..., None]).quantized
    return quantized[..., 0]
