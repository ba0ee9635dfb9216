"""The rectified straight-through estimator, for quantizers whose codes are signs."""

import math
from typing import Any, Literal, get_args

from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.nn.part import check_choice, check_float, setting
from straightvq.nn.slots.estimators.signs import SignEstimator

Secant = Literal["continuous", "authors"]


def _check_ends(owner: SignEstimator, name: str, value: Any, **limits: Any) -> float:
    """``clip`` and ``limit``: where the constant gradient ends, and where all gradient does."""
    value = check_float(owner, name, value, **limits)
    ends = {end: vars(owner).get("_" + end, value) for end in ("clip", "limit")} | {name: value}
    if ends["clip"] > ends["limit"]:
        raise InvalidValueError(
            f"`ReSTE`: `clip` must be at most `limit`, or no gradient would be that of the power. "
            f"Got {ends['clip']} and {ends['limit']}."
        )
    return value


class ReSTE(SignEstimator):
    """The value is the sign; the gradient is that of a power function, which approaches the sign as the power grows.

    With ``x = z / |code|``, the vector in units of the half-width, the gradient ``g`` reaches the encoder as::

        g f'(x),  f(x) = sign(x) |x|^(1/power),  f'(x) = |x|^((1-power)/power) / power   for clip < |x| <= limit
        0                                                                                 for |x| > limit

    and within ``clip`` of 0, where ``f'`` has no bound, as a constant: ``f'(clip)`` if ``secant`` is
    ``"continuous"``, the slope ``f(clip) / clip`` of the secant if it is ``"authors"``, which is ``power`` times as
    large. Power 1 is the clipped straight-through estimator, to the bit. The same in training and evaluation.

    Args:
        power: the paper's o, at least 1. A setting that a schedule changes, see ``reste_power``: large powers from the
            start are unstable, since near 0 the gradient is large and elsewhere small.
        limit: beyond it no gradient passes, in half-widths; at least ``clip``.
        clip: within it the gradient is constant, in half-widths.
        secant: ``"continuous"`` or ``"authors"``.

    Raises:
        ValueError: from a quantizer that rounds to more than two neighbours.

    Source: arXiv 2308.06689; limit, clip and schedule from the authors' code.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.25, 1.0, -0.05, 1.6]], requires_grad=True)
        >>> ReSTE(power=2.0)(z, torch.tensor([[1.0, 1.0, -1.0, 1.0]])).sum().backward()
        >>> [round(g, 4) for g in z.grad[0].tolist()]
        [1.0, 0.5, 1.5811, 0.0]
    """

    power: float = setting(check_float, minimum=1)
    limit: float = setting(_check_ends, minimum=0, open_minimum=True)
    clip: float = setting(_check_ends, minimum=0, open_minimum=True)
    secant: Secant = setting(check_choice, choices=get_args(Secant))

    def __init__(
        self, power: float = 1.0, limit: float = 1.5, clip: float = 0.1, secant: Secant = "continuous"
    ) -> None:
        super().__init__()
        self.power = power
        self.limit = limit
        self.clip = clip
        self.secant = secant

    def factor(self, x: Tensor) -> Tensor:
        size = x.abs()
        factor = size.clamp(min=self.clip) ** ((1 - self.power) / self.power) / self.power
        if self.secant == "authors":
            factor = factor.masked_fill(size <= self.clip, self.clip ** (1 / self.power) / self.clip)
        return factor.masked_fill(size > self.limit, 0)

    def surrogate(self, x: Tensor) -> Tensor:
        """``f``, which stands for the sign: what `straightvq.diagnostics.functional.estimating_error` takes."""
        return x.sign() * x.abs() ** (1 / self.power)

    def extra_repr(self) -> str:
        return f"power={self.power}, limit={self.limit}, clip={self.clip}, secant={self.secant!r}"


def reste_power(progress: float, end: float = 3.0) -> float:
    """The power at a share of the training: ``1 + (1 - cos(progress pi / 2)) (end - 1)``, slow at first.

    Args:
        progress: share of the training that is done, 0 to 1.
        end: power at the end, at least 1; the paper's accuracy is best with 3.

    Source: the authors' code for arXiv 2308.06689.

    Example:
        >>> [round(reste_power(progress), 3) for progress in (0.0, 0.5, 1.0)]
        [1.0, 1.586, 3.0]
    """
    progress = check_float("reste_power", "progress", progress, minimum=0, maximum=1)
    end = check_float("reste_power", "end", end, minimum=1)
    return 1 + (1 - math.cos(progress * math.pi / 2)) * (end - 1)
