"""The two indicators of an estimator for signs: how far it is from the sign, and how uneven its gradients are."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from straightvq.diagnostics.functional.vectors import result_dtype, wide_dtype
from straightvq.errors import InvalidValueError


def estimating_error(z: Tensor, surrogate: Callable[[Tensor], Tensor] | Tensor) -> Tensor:
    """Mean square of ``sign(z) - f(z)``: how far the function whose gradient is used is from the sign.

    The paper's indicator is the norm, the root of the number of elements times this one, which grows with the size of
    the layer. The sign of 0 is +1, as in the quantizers.

    Args:
        z: values before the sign, in units of its half-width.
        surrogate: ``f``, or its values at ``z``: ``ReSTE.surrogate``, ``torch.tanh``, or ``lambda z: z`` for the
            straight-through estimator.

    Shape:
        z: Float (*shape).

    Returns:
        Float ().

    Raises:
        ValueError: for no values, or a surrogate of another shape.

    Source: arXiv 2308.06689, estimating error.

    Example:
        >>> estimating_error(torch.tensor([0.5, -1.0, 0.0]), lambda z: z)
        tensor(0.4167)
    """
    if z.numel() == 0:
        raise InvalidValueError(f"`estimating_error`: `z` must hold at least one value. Got shape {tuple(z.shape)}.")
    x = z.detach().to(wide_dtype(z))
    f = (surrogate(x) if callable(surrogate) else surrogate).detach().to(x.dtype)
    if f.shape != x.shape:
        raise InvalidValueError(
            f"`estimating_error`: `surrogate` must give the shape of `z`, {tuple(x.shape)}. Got {tuple(f.shape)}."
        )
    return (torch.where(x >= 0, 1.0, -1.0) - f).square().mean().to(result_dtype(z))


def gradient_instability(gradients: Tensor | Iterable[Tensor]) -> Tensor:
    """Variance of the absolute gradients, over the elements of all tensors together; smaller is more stable.

    Args:
        gradients: of one update: a tensor, or those of several parameters.

    Returns:
        Float (), the biased variance, in units of a squared gradient.

    Raises:
        ValueError: for no elements.

    Source: arXiv 2308.06689, gradient stability.

    Example:
        >>> gradient_instability([torch.tensor([1.0, -3.0]), torch.tensor([[2.0]])])
        tensor(0.6667)
    """
    parts = [gradients] if isinstance(gradients, Tensor) else list(gradients)
    if not sum(part.numel() for part in parts):
        raise InvalidValueError("`gradient_instability`: `gradients` must hold at least one element. Got none.")
    wide = [part.detach().reshape(-1).to(wide_dtype(part)).abs() for part in parts]
    return torch.cat(wide).var(correction=0).to(result_dtype(parts[0]))
