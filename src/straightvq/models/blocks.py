"""Blocks that several networks are built of."""

from torch import Tensor, nn


class Residual(nn.Module):
    """shortcut(x) + layers(x); without a shortcut x + layers(x)."""

    def __init__(self, *layers: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


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


def conv3(width: int, out: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the resolution."""
    return nn.Conv2d(width, out, 3, padding=1)


def halve(width: int, out: int) -> nn.Conv2d:
    """A convolution to half the resolution."""
    return nn.Conv2d(width, out, 4, stride=2, padding=1)


def double(width: int, out: int) -> nn.ConvTranspose2d:
    """A transposed convolution to twice the resolution; on a CPU twice as fast as upsampling and a convolution."""
    return nn.ConvTranspose2d(width, out, 4, stride=2, padding=1)
