"""The model whose training is followed: a linear student with quantized weights learns from a linear teacher."""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from straightvq.functional import nearest_code
from straightvq.nn import Estimator, StraightThrough
from straightvq.nn.part import check_float, check_int


@dataclass(frozen=True)
class Grid:
    """Replaces vectors by the nearest of codes that stay where they are.

    Args:
        codes: Float64 (k, m), in rising order where m is 1.
        estimator: the gradient that passes.
    """

    codes: Tensor
    estimator: Estimator = field(default_factory=StraightThrough)

    def __call__(self, w: Tensor) -> Tensor:
        """w (n, m) -> the nearest codes (n, m), with the estimator's gradient."""
        if self.codes.shape[1] == 1:  # a search among the thresholds, which takes a hundredth of the time
            indices = torch.bucketize(w.detach()[:, 0], self.thresholds)
        else:
            indices = nearest_code(w.detach(), self.codes)
        return self.estimator.estimate(w, self.codes[indices], None)

    @property
    def thresholds(self) -> Tensor:
        """Where one code of numbers ends and the next begins, Float64 (k - 1,)."""
        return (self.codes[1:, 0] + self.codes[:-1, 0]) / 2


def uniform(bits: int, reach: float) -> Grid:
    """``2^bits`` codes at equal distances from ``-reach`` to ``reach``, so that 0 is none of them.

    Args:
        bits: at least 1.
        reach: the outermost code, positive.

    Raises:
        ValueError, TypeError: for other values.

    Example:
        >>> uniform(2, 3.0).codes.flatten().tolist()
        [-3.0, -1.0, 1.0, 3.0]
    """
    return _between(2 ** check_int("uniform", "bits", bits, 1), _positive("uniform", reach))


def mid_tread(bits: int, reach: float) -> Grid:
    """``2^bits - 1`` codes at equal distances from ``-reach`` to ``reach``; the middle one is 0.

    Args:
        bits: at least 2.
        reach: the outermost code, positive.

    Raises:
        ValueError, TypeError: for other values.

    Example:
        >>> mid_tread(2, 3.0).codes.flatten().tolist()
        [-3.0, 0.0, 3.0]
    """
    return _between(2 ** check_int("mid_tread", "bits", bits, 2) - 1, _positive("mid_tread", reach))


def _positive(owner: str, reach: float) -> float:
    return check_float(owner, "reach", reach, minimum=0, open_minimum=True)


def _between(count: int, reach: float) -> Grid:
    return Grid(torch.linspace(-reach, reach, count, dtype=torch.float64)[:, None])


def moments(grid: Grid | None) -> tuple[float, float]:
    """``E[q(x) x]`` and ``E[q(x)^2]`` for x of the standard normal distribution; 1 and 1 without a quantizer.

    ``sum_j c_j (f(a_j) - f(a_(j+1)))`` and ``sum_j c_j^2 (F(a_(j+1)) - F(a_j))``, where code ``c_j`` serves from
    ``a_j`` to ``a_(j+1)``, f is the density and F its integral.

    Example:
        >>> [round(moment, 4) for moment in moments(uniform(1, 1.0))]
        [0.7979, 1.0]
    """
    if grid is None:
        return 1.0, 1.0
    codes, inner = grid.codes[:, 0], grid.thresholds
    below = torch.cat([torch.zeros(1, dtype=torch.float64), torch.special.ndtr(inner), torch.ones(1).double()])
    heights = (-inner.square() / 2).exp() / math.sqrt(2 * math.pi)
    density = torch.nn.functional.pad(heights, (1, 1))
    return float((codes * -density.diff()).sum()), float((codes.square() * below.diff()).sum())


def _ones() -> Tensor:
    return torch.ones(1, 1, dtype=torch.float64)


@dataclass(frozen=True)
class Problem:
    """Teacher, student and rate, the same for every dimension d.

    The teacher is ``y = w* x / sqrt(d) + noise n`` with standard normal x and n, the student ``Q(w) phi(x) / sqrt(d)``,
    and a step of SGD on half its squared error takes one fresh sample: ``w <- w - rate * gradient``, where the gradient
    passes Q as its estimator says. Time is ``tau = steps / d``.

    Args:
        weights: Q; None for the identity.
        inputs: phi, on numbers; None for the identity.
        rate: of SGD, positive.
        start: standard deviation of the weights at the start, at least 0; their mean is 0.
        noise: standard deviation of the noise, at least 0.
        target: the teacher's weights in blocks, Float64 (r, m); weights take its rows in turn. By default all are 1.

    Raises:
        ValueError, TypeError: for impossible numbers.
    """

    weights: Grid | None = None
    inputs: Grid | None = None
    rate: float = 0.1
    start: float = 1.0
    noise: float = 0.0
    target: Tensor = field(default_factory=_ones)

    def __post_init__(self) -> None:
        check_float(self, "rate", self.rate, minimum=0, open_minimum=True)
        check_float(self, "start", self.start, minimum=0)
        check_float(self, "noise", self.noise, minimum=0)

    @functools.cached_property
    def moments(self) -> tuple[float, float]:
        """k1 = E[phi(x) x] and k2 = E[phi(x)^2]."""
        return moments(self.inputs)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what follows, in JSON's kinds."""
        told: dict[str, Any] = {"rate": self.rate, "start": self.start, "noise": self.noise}
        told["target"] = self.target.tolist()
        for name, grid in (("weights", self.weights), ("inputs", self.inputs)):
            told[name] = None if grid is None else [grid.codes.tolist(), repr(grid.estimator)]
        return told

    def quantized(self, w: Tensor) -> Tensor:
        """w (n, m) -> Q(w) (n, m), with its gradient."""
        return w if self.weights is None else self.weights(w)

    def targets(self, blocks: int) -> Tensor:
        """Of so many blocks of weights, Float64 (blocks, m)."""
        return self.target.repeat(-(-blocks // len(self.target)), 1)[:blocks]

    def square(self, q: Tensor, target: Tensor) -> Tensor:
        """``k2 Q^2 - 2 k1 Q w* + w*^2``, whose mean R over all weights is twice the generalization error."""
        k1, k2 = self.moments
        return k2 * q.square() - 2 * k1 * q * target + target.square()
