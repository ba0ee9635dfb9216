"""What the measures share: the dtype they are computed in, flattening, means and deviations."""

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator` with 0/0 = 0: where there is nothing to explain, nothing is missed.

    Example:
        >>> ratio(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 4.0]))
        tensor([0.0000,    inf, 0.2500])
    """
    return torch.where(numerator == 0, 0.0, numerator / denominator)


def wide_dtype(x: Tensor) -> torch.dtype:
    # Apple's GPU has no float64.
    return torch.float32 if x.device.type == "mps" else torch.float64


def result_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float32


def flatten(x: Tensor, owner: str) -> Tensor:
    """Flatten `(*batch, dim)` to a wide, detached `(n, dim)` with n >= 1."""
    if x.ndim == 0 or x.numel() == 0:
        raise InvalidValueError(
            f"`{owner}`: vectors must have the shape (*batch, dim) with at least one vector. Got {tuple(x.shape)}."
        )
    return x.detach().reshape(-1, x.shape[-1]).to(wide_dtype(x))


def deviations(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(dim,)` and deviations from it `(n, dim)`."""
    # From the first vector rather than the origin: no digits go to a common offset, and equal vectors give
    # exact 0.
    shifted = flat - flat[:1]
    mean = shifted.mean(0)
    return flat[0] + mean, shifted - mean


def mean_and_variance(flat: Tensor) -> tuple[Tensor, Tensor]:
    mean, centred = deviations(flat)
    return mean, centred.square().mean(0)


def merge_tables(a: Tensor, b: Tensor) -> Tensor:
    """Two tables of moments `(rows, dim)` as if their vectors had been in one; never waits for the device.

    Rows: number of vectors, mean, sum of squared deviations from it, and any others, which add. Equal means, and parts
    without vectors, merge without rounding.

    Source:
        Chan, Golub and LeVeque, 1979.

    Example:
        >>> merge_tables(torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[3.0], [4.0], [0.0]])).flatten()
        tensor([ 4.,  3., 12.])
    """
    total = a[0] + b[0]
    move = b[1] - a[1]
    share = b[0] / total.clamp(min=1)
    moments = torch.stack([total, a[1] + share * move, a[2] + b[2] + share * a[0] * move.square()])
    return torch.cat([moments, a[3:] + b[3:]])
