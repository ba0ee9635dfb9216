"""What the measures share: checks, the dtype they are computed in, means, deviations and tables of moments."""

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
    """Float64, or float32 on Apple's GPU, which has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def result_dtype(x: Tensor) -> torch.dtype:
    """Of what is measured on ``x``: its own, but at least float32."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float32


def shape_error(owner: str, rule: str, *got: Tensor) -> InvalidValueError:
    """The house's sentence for tensors of other shapes than the rule says."""
    *others, last = (str(tuple(x.shape)) for x in got)
    shapes = f"{', '.join(others)} and {last}" if others else last
    return InvalidValueError(f"`{owner}`: {rule}. Got {shapes}.")


def check_shape(owner: str, name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """Refuse ``x`` unless it has the shape of ``like``."""
    if x.shape != like.shape:
        raise shape_error(owner, f"`{name}` must have the shape of `{like_name}`, {tuple(like.shape)}", x)


def check_codes(owner: str, z: Tensor, codes: Tensor) -> None:
    """Refuse ``codes`` unless they are a table as wide as ``z``."""
    if z.ndim == 0 or codes.ndim != 2 or z.shape[-1] != codes.shape[-1]:
        rule = f"the codes must have the shape (k, dim) with the last axis of the embeddings, {tuple(z.shape)}"
        raise shape_error(owner, rule, codes)


def flatten(x: Tensor, owner: str) -> Tensor:
    """Flatten `(*batch, dim)` to a wide, detached `(n, dim)` with n >= 1."""
    if x.ndim == 0 or x.numel() == 0:
        raise shape_error(owner, "vectors must have the shape (*batch, dim) with at least one vector", x)
    return x.detach().reshape(-1, x.shape[-1]).to(wide_dtype(x))


def deviations(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(dim,)` and deviations from it `(n, dim)`."""
    # From the first vector, not the origin: no digits go to a common offset, and equal vectors give exact 0.
    shifted = flat - flat[:1]
    mean = shifted.mean(0)
    return flat[0] + mean, shifted - mean


def mean_and_variance(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `(n, dim)`, both `(dim,)`."""
    mean, centred = deviations(flat)
    return mean, centred.square().mean(0)


def moment_table(flat: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of `(n, dim)`: `(3, dim)`, zeros for n = 0."""
    if not len(flat):
        return flat.new_zeros(3, flat.shape[1])
    mean, centred = deviations(flat)
    return torch.stack([torch.full_like(mean, len(flat)), mean, centred.square().sum(0)])


def merge_tables(tables: Tensor) -> Tensor:
    """Tables of moments `(parts, rows, dim)` as if all vectors had been in one; never waits for the device.

    Rows: number of vectors, mean, sum of squared deviations from it, and any others, which add. Equal means, and parts
    without vectors, merge without rounding.

    Source: Chan, Golub and LeVeque, 1979.

    Example:
        >>> merge_tables(torch.tensor([[[1.0], [0.0], [0.0]], [[3.0], [4.0], [0.0]]])).flatten()
        tensor([ 4.,  3., 12.])
    """
    merged, *others = tables.unbind()
    for part in others:
        total = merged[0] + part[0]
        move = part[1] - merged[1]
        share = part[0] / total.clamp(min=1)
        mean = merged[1] + share * move
        squares = merged[2] + part[2] + share * merged[0] * move.square()
        merged = torch.cat([torch.stack([total, mean, squares]), merged[3:] + part[3:]])
    return merged
