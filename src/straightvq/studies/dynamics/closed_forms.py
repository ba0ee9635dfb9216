"""What can be said without simulating: students without a quantizer, states of rest, and the length of the plateau."""

import math

import torch
from torch import Tensor

from straightvq.studies.dynamics.model import Grid, Problem

_LARGEST_RATE = 100.0  # from which on a rate counts as unlimited


def unquantized(problem: Problem, times: Tensor) -> Tensor:
    """Generalization error (t,) of a student whose weights pass unquantized, its inputs quantized or not.

    With ``s = E (w - w* k1 / k2)^2``: ``R = k2 s + E w*^2 (1 - k1^2 / k2)`` and
    ``ds/dtau = -2 rate k2 s + rate^2 k2 (R + noise^2)``, which is linear.

    Example:
        >>> [round(error, 3) for error in unquantized(Problem(), torch.tensor([0.0, 5.0, 20.0])).tolist()]
        [1.0, 0.387, 0.022]
    """
    k1, k2 = problem.moments
    power = float(problem.target.square().mean())
    floor = power * (1 - k1**2 / k2)
    s = problem.start**2 + power * (k1 / k2) ** 2
    slope = problem.rate * k2 * (problem.rate * k2 - 2)
    push = problem.rate**2 * k2 * (floor + problem.noise**2)
    s_later = s + push * times if slope == 0 else (s + push / slope) * (slope * times).exp() - push / slope
    return (k2 * s_later + floor) / 2


def largest_unquantized_rate(problem: Problem) -> float:
    """The rate from which on a student without quantized weights diverges: ``2 / k2``."""
    return 2 / problem.moments[1]


def rest(problem: Problem, rate: float) -> float:
    """Generalization error of the state of rest of a student with fixed codes of single weights.

    For a target the density of a weight at rest is ``exp(-2 U / (rate k2 (R + noise^2)))`` with
    ``U' = k2 Q(w) - k1 w*``: exponential between two thresholds. R follows from it as a sum over the codes, and must
    be that in the exponent; of several such R this is the largest. A target that the outermost code cannot pass drives
    its weights away, and is served by that code.

    Args:
        problem: its rate is not used.
        rate: positive; towards 0 the error tends to `rest_of_slow`.
    """
    grid = _grid(problem)
    k1, k2 = problem.moments
    reach = float(grid.codes.max())
    largest = float(problem.target.abs().max())
    R = k2 * reach**2 + 2 * k1 * reach * largest + largest**2
    for _ in range(2000):
        new = float(_square_at_rest(problem, grid, rate * k2 * (R + problem.noise**2) / 2))
        if abs(new - R) < 1e-9 * (1 + R):
            break
        R = new
    return new / 2


def _square_at_rest(problem: Problem, grid: Grid, heat: float) -> Tensor:
    """R of the density ``exp(-U / heat)``."""
    k1, k2 = problem.moments
    target, codes, inner = problem.target, grid.codes[:, 0], grid.thresholds
    slope = (k2 * codes - k1 * target) / max(heat, 1e-12)  # of U / heat, (r, k)
    width = inner.diff()
    height = torch.nn.functional.pad((slope[:, 1:-1] * width).cumsum(1), (1, 0))  # U / heat at the thresholds
    lower = torch.minimum(height[:, :-1], height[:, 1:])
    steep = slope[:, 1:-1].abs()
    inside = torch.where(steep * width < 1e-9, width, -torch.expm1(-steep * width) / steep.clamp(min=1e-300))
    left, right = -slope[:, :1], slope[:, -1:]
    logs = torch.cat([height[:, :1] + left.log(), lower - inside.log(), height[:, -1:] + right.log()], 1)
    share = torch.softmax(-logs, 1)
    away = torch.cat([left <= 0, torch.zeros_like(lower, dtype=torch.bool), right <= 0], 1)
    share = torch.where(away.any(1, keepdim=True), away.to(share.dtype), share)
    return (share * problem.square(codes, target)).sum(1).mean()


def rest_of_slow(problem: Problem) -> float:
    """Generalization error at rest as the rate tends to 0.

    A weight whose goal ``t = w* k1 / k2`` lies between the codes a and b sits at the threshold between them and is now
    one, now the other, so that ``E Q = t`` and ``R = k2 (b - t) (t - a) + w*^2 (1 - k1^2 / k2)``; with the outermost
    code c for a goal beyond it ``R = k2 c^2 - 2 k1 c w* + w*^2``.

    Example:
        >>> from straightvq.studies.dynamics.model import uniform
        >>> round(rest_of_slow(Problem(weights=uniform(2, 2.0))), 6)  # codes 2/3 and 2 around 1: (1/3) 1 / 2
        0.166667
    """
    codes = _grid(problem).codes[:, 0]
    k1, k2 = problem.moments
    goal = problem.target * k1 / k2
    below = codes[(torch.searchsorted(codes, goal) - 1).clamp(min=0)]
    above = codes[torch.searchsorted(codes, goal).clamp(max=len(codes) - 1)]
    between = k2 * (above - goal) * (goal - below) + problem.target.square() * (1 - k1**2 / k2)
    beyond = problem.square(below, problem.target)
    return float(torch.where(below == above, beyond, between).mean()) / 2


def largest_rate(problem: Problem) -> float:
    """The rate up to which training ends with a smaller error than answering 0 has; ``inf`` if with every rate.

    A quantized student never diverges, since its codes are bounded; beyond this rate it is of no use. 0 if it is of
    none at any rate.
    """
    limit = float(problem.target.square().mean()) / 2
    low, high = 0.0, _LARGEST_RATE
    if rest(problem, high) <= limit:
        return math.inf
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if rest(problem, middle) <= limit else (low, middle)
    return low


def plateau(problem: Problem, step: float, share: float = 0.1) -> float:
    """How long the error stays within ``share`` of that of the code 0, for targets of 1 and codes ``step`` apart.

    As long as nearly all weights are at the code 0, a weight is normal with mean ``rate tau`` and variance
    ``start^2 + rate^2 tau``; each that passes ``step / 2`` lowers R by ``1 - (1 - step)^2``. Infinite where that is
    no gain.

    Example:
        >>> round(plateau(Problem(rate=0.05, start=0.05), 1.0), 2)
        6.49
    """
    gain = 1 - (1 - step) ** 2
    if gain <= share:
        return math.inf
    quantile = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share / gain, dtype=torch.float64)))

    def is_over(tau: float) -> bool:
        spread = math.sqrt(problem.start**2 + problem.rate**2 * tau)
        return problem.rate * tau + quantile * spread >= step / 2

    low, high = 0.0, 1.0
    while not is_over(high):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if is_over(middle) else (middle, high)
    return high


def _grid(problem: Problem) -> Grid:
    assert problem.weights is not None
    return problem.weights
