"""Numbers of parameters, counted and by hand."""

import torch
from torch import nn


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def count_of(kind: type[nn.Module], **kwargs) -> int:
    """Of a classifier without quantizer, without making its numbers."""
    with torch.device("meta"):
        return count(kind(None, **kwargs))


def conv(channels: int, out: int, kernel: int) -> int:
    return channels * out * kernel**2 + out
