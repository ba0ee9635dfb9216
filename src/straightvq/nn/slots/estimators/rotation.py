"""The rotation trick."""

import torch
from torch import Tensor

from straightvq.functional.straight_through import directions
from straightvq.nn.part import check_optional_float, largest_value, setting
from straightvq.nn.slots.estimators.base import Estimator


class RotationTrick(Estimator):
    """The gradient passes through the rotation and scaling that carries the vector to its code.

    The value is the code to the bit. With ``R`` the rotation from the direction of ``z`` to that of ``code`` in their
    plane, held constant, the gradient ``g`` reaches the encoder as ``gain * R^T g``, ``gain = |code| / |z|``, and the
    codes not at all. ``R`` is applied as two reflections, never built: O(n d). The same in training and evaluation.

    Where vector or code is zero there is no rotation, and ``g`` passes as it is. Where they are opposite, the plane is
    undetermined, and the gradient is reflected along their line.

    Not for codes that are drawn (`Stochastic`): training with both diverges.

    Args:
        max_gain: largest gain, positive. Without a limit (None, the paper's form) a vector much shorter than its code
            gets a gradient that is longer in the same ratio.

    Source: arXiv 2410.06424. Deviation: ``max_gain``.

    Example:
        >>> z = torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> RotationTrick()(z, torch.tensor([[0.0, 1.0]])).backward(torch.tensor([[1.0, 0.0]]))
        >>> [round(x, 4) for x in z.grad[0].tolist()]
        [0.0, -0.5]
    """

    takes_draws = False

    max_gain: float | None = setting(check_optional_float, minimum=0, open_minimum=True)

    def __init__(self, max_gain: float | None = 2.0) -> None:
        super().__init__()
        self.max_gain = max_gain

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        with torch.no_grad():
            (start, from_length), (end, to_length) = directions(z), directions(code)
            is_turned = (from_length > 0) & (to_length > 0)
            limit = largest_value(z.dtype) if self.max_gain is None else self.max_gain  # beyond, gradients overflow
            gain = torch.where(is_turned, (to_length / from_length).clamp(max=limit), 1)
            between, end = (torch.where(is_turned, v, 0) for v in (directions(start + end)[0], end))
        turned = gain * _reflected(_reflected(z - z.detach(), between), end)
        return code.detach() + turned

    def extra_repr(self) -> str:
        return f"max_gain={self.max_gain}"


def _reflected(x: Tensor, axis: Tensor) -> Tensor:
    """``(I - 2 a a^T) x`` for a unit vector a; x itself for zeros."""
    return x - 2 * axis * (axis * x).sum(1, keepdim=True)
