"""The limit of many weights as an equation for their density, on a grid of cells.

``dp/dtau = d/dw (rate (k2 Q(w) - k1 w*) p) + D d2p/dw2`` with ``D = rate^2 k2 (R + noise^2) / 2`` is the law of one
particle. The flow between two cells is that of Scharfetter and Gummel, exact for a constant drift, so that the state of
rest is too; drift in place of diffusion adds a spread of half a cell times itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from straightvq.errors import InvalidValueError
from straightvq.nn import StraightThrough
from straightvq.studies.dynamics.model import Problem

Floats = NDArray[np.float64]


class Densities(NamedTuple):
    """Of the weights at the times asked for."""

    errors: Floats  # generalization error, (times,)
    centres: Floats  # of the cells, (cells,)
    heights: Floats  # density, (times, cells)


def solve(problem: Problem, times: Sequence[float], *, cells: int, reach: float) -> Densities:
    """Follows the density of weights with one target, under the plain straight-through estimator.

    Args:
        problem: its target must be a single number.
        times: rising, in units of d steps.
        cells: of equal width; a width of about 1/200 resolves the peak at a threshold for rates of 0.05 to 0.1.
        reach: the cells cover ``-reach`` to ``reach``, whose ends nothing passes.

    Raises:
        ValueError: for several targets, or an estimator that is not the plain one.
    """
    if problem.target.numel() != 1:
        raise InvalidValueError(f"`solve`: `target` must be one number. Got {tuple(problem.target.shape)}.")
    if problem.weights is not None and type(problem.weights.estimator) is not StraightThrough:
        name = type(problem.weights.estimator).__name__
        raise InvalidValueError(f"`solve`: `problem` must have the estimator StraightThrough. Got {name}.")
    k1, k2 = problem.moments
    target = float(problem.target)
    width = 2 * reach / cells
    centres: Floats = -reach + width * (np.arange(cells, dtype=np.float64) + 0.5)
    codes = _quantized(problem, centres)
    # A threshold lies where the codes of two cells differ, for the drift as for the error.
    drift = -problem.rate * (k2 * (codes[1:] + codes[:-1]) / 2 - k1 * target)
    p = np.exp(-((centres / max(problem.start, width)) ** 2) / 2)
    p /= p.sum() * width
    errors, heights, now = [], [], 0.0
    for time in times:
        while now < time - 1e-12:
            R = _square(problem, codes, p * width)
            diffusion = max(problem.rate**2 * k2 * (R + problem.noise**2) / 2, 1e-12)
            dt = min(time - now, 0.5 / (np.abs(drift).max() / width + 2 * diffusion / width**2))
            lean = drift * width / diffusion
            flow = diffusion / width * (_bernoulli(-lean) * p[:-1] - _bernoulli(lean) * p[1:])
            p = p - dt / width * np.diff(flow, prepend=0.0, append=0.0)
            now += dt
        errors.append(_square(problem, codes, p * width) / 2)
        heights.append(p)
    return Densities(np.array(errors), centres, np.array(heights))


def _bernoulli(x: Floats) -> Floats:
    """``x / (exp(x) - 1)``, 1 at 0."""
    x = np.where(np.abs(x) < 1e-9, 1e-9, np.clip(x, -700, 700))
    y: Floats = x / np.expm1(x)
    return y


def _quantized(problem: Problem, w: Floats) -> Floats:
    q: Floats = problem.quantized(torch.from_numpy(w)[:, None])[:, 0].numpy()
    return q


def _square(problem: Problem, codes: Floats, share: Floats) -> float:
    return float((share * problem.square(torch.from_numpy(codes), problem.target.flatten()).numpy()).sum())
