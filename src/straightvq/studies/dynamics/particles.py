"""The limit of many weights: independent particles, which know of each other through the mean error only.

Every weight follows ``dw = -rate (k2 Q(w) - k1 w*) dtau + rate sqrt(k2 (R + noise^2)) dB``, what is multiplied by the
rate being the gradient at the quantizer's output, which passes the estimator.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from straightvq.functional import nearest_code
from straightvq.studies.dynamics.codes import Means, Rule
from straightvq.studies.dynamics.model import Grid, Problem
from straightvq.studies.dynamics.simulation import Course


def follow(problem: Problem, times: Sequence[float], *, count: int, dt: float, seed: int = 0) -> Course:
    """Particles with fixed codes.

    Args:
        problem: teacher, student and rate.
        times: rising, in units of d steps.
        count: number of particles, each a block of weights.
        dt: step of the Euler scheme.
        seed: of all draws.
    """
    draws = torch.Generator().manual_seed(seed)
    target = problem.targets(count)
    w = _start(problem, target, draws)
    errors, kept = [], []
    for length in _lengths(times, dt):
        if length:
            w = _moved(problem, problem.weights, w, target, length, draws)
        else:
            errors.append(problem.square(problem.quantized(w), target).mean() / 2)
            kept.append(w[None])
    return Course(torch.stack(errors)[None], kept, [])


def follow_codes(
    problem: Problem, rule: Rule, codes: Tensor, d: int, times: Sequence[float], *, count: int, dt: float, seed: int = 0
) -> Course:
    """Particles and the codes that they move; d decides at which size EMA starts, the share of one block.

    Args:
        problem: teacher and rate.
        rule: how the codes move.
        codes: at the start, Float64 (k, m).
        d: number of weights of the training that is described.
        times, count, dt, seed: as for `follow`.
    """
    draws = torch.Generator().manual_seed(seed)
    target = problem.targets(count)
    w = _start(problem, target, draws)
    sizes = torch.full((len(codes),), codes.shape[1] / d, dtype=torch.float64)
    errors, kept, tables = [], [], []
    for length in _lengths(times, dt):
        indices = nearest_code(w, codes)
        q = codes[indices]
        if length:
            moved = _moved(problem, Grid(codes), w, target, length, draws)
            moved -= 2 * problem.rate * rule.commitment * length * (w - q)
            codes, sizes = rule.flow(codes, sizes, Means.of(w, target, indices, len(codes)), length)
            w = moved
        else:
            errors.append(problem.square(q, target).mean() / 2)
            kept.append(w[None])
            tables.append(codes)
    return Course(torch.stack(errors)[None], kept, tables)


def _start(problem: Problem, target: Tensor, draws: torch.Generator) -> Tensor:
    return problem.start * torch.randn(target.shape, dtype=torch.float64, generator=draws)


def _lengths(times: Sequence[float], dt: float) -> list[float]:
    """Steps of at most dt that end at the times; a step of 0 says that one is reached."""
    lengths, now = [], 0.0
    for time in times:
        steps = math.ceil((time - now) / dt - 1e-9)
        lengths += [(time - now) / steps] * steps + [0.0] if steps else [0.0]
        now = time
    return lengths


def _moved(problem: Problem, grid: Grid | None, w: Tensor, target: Tensor, dt: float, draws: torch.Generator) -> Tensor:
    k1, k2 = problem.moments
    w = w.detach().requires_grad_()
    q = w if grid is None else grid(w)
    with torch.no_grad():
        spread = math.sqrt(k2 * dt * (float(problem.square(q, target).mean()) + problem.noise**2))
        normal = torch.randn(w.shape, dtype=torch.float64, generator=draws)
        at_output = (k2 * q - k1 * target) * dt + spread * normal
    (gradient,) = torch.autograd.grad(q, w, at_output)
    return w.detach() - problem.rate * gradient
