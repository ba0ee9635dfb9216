"""Direct simulation: SGD in d dimensions, one fresh sample a step, the gradient by the library's estimators."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from straightvq.studies.dynamics.codes import Rule
from straightvq.studies.dynamics.model import Problem


class Course(NamedTuple):
    """What a training was at the times asked for."""

    errors: Tensor  # generalization error, Float64 (runs, times)
    weights: list[Tensor]  # at each time, Float64 (runs, blocks, m)
    codes: list[Tensor]  # at each time, Float64 (k, m); empty where none move


def simulate(problem: Problem, d: int, times: Sequence[float], *, runs: int = 1, seed: int = 0) -> Course:
    """Trains students with fixed codes side by side, each with samples of its own.

    Args:
        problem: teacher, student and rate.
        d: number of weights.
        times: rising, in units of d steps.
        runs: how many students.
        seed: of all draws.
    """
    draws = torch.Generator().manual_seed(seed)
    m = problem.target.shape[1]
    target = problem.targets(d // m)
    w = (problem.start * _normal(draws, runs, d // m, m)).requires_grad_()
    marks = _marks(times, d)
    errors, kept = torch.empty(runs, len(times), dtype=torch.float64), []
    for step in range(max(marks) + 1):
        q = problem.quantized(w.view(-1, m)).view_as(w)
        if step in marks:
            errors[:, marks[step]] = problem.square(q.detach(), target).mean((1, 2))[:, None] / 2
            kept += [w.detach().clone()] * len(marks[step])
        x = _normal(draws, runs, d // m, m)
        with torch.no_grad():
            seen = x if problem.inputs is None else problem.inputs(x.view(-1, 1)).view_as(x)
            residual = (q * seen - x * target).sum((1, 2), keepdim=True) / math.sqrt(d)
            if problem.noise:
                residual -= problem.noise * _normal(draws, runs, 1, 1)
        (gradient,) = torch.autograd.grad(q, w, residual * seen / math.sqrt(d))
        with torch.no_grad():
            w -= problem.rate * gradient
    return Course(errors, kept, [])


def train_layer(
    problem: Problem, rule: Rule, codes: Tensor, d: int, times: Sequence[float], *, seed: int = 0
) -> Course:
    """Trains one student whose weights pass a vector quantizer of the library, whose codes move by their rule.

    SGD takes the weights with the problem's rate, and the codes, where a gradient reaches them, with
    ``rule.speed / d``, at which they move as fast as the weights for every d.

    Args:
        problem: teacher and rate; the inputs and the labels must be as they are.
        rule: how the codes move.
        codes: at the start, Float64 (k, m).
        d, times, seed: as for `simulate`.
    """
    draws = torch.Generator().manual_seed(seed)
    m = codes.shape[1]
    target = problem.targets(d // m)
    layer = rule.layer(codes, d)
    w = (problem.start * _normal(draws, d // m, m)).requires_grad_()
    raw = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [w]}, *([{"params": raw, "lr": rule.speed / d}] if raw else [])]
    optimizer = torch.optim.SGD(groups, lr=problem.rate)
    marks = _marks(times, d)
    errors, kept, tables = torch.empty(1, len(times), dtype=torch.float64), [], []
    for step in range(max(marks) + 1):
        x = _normal(draws, d // m, m)
        out = layer(w)
        if step in marks:
            errors[:, marks[step]] = problem.square(out.quantized.detach(), target).mean() / 2
            kept += [w.detach().clone()[None]] * len(marks[step])
            tables += [layer.codes()] * len(marks[step])
        loss = ((out.quantized - target) * x).sum().square() / (2 * d)
        optimizer.zero_grad()
        (loss + out.loss).backward()
        optimizer.step()
    return Course(errors, kept, tables)


def _marks(times: Sequence[float], d: int) -> dict[int, list[int]]:
    """Numbers of the times by their step; few weights have one step for several times."""
    marks: dict[int, list[int]] = {}
    for number, time in enumerate(times):
        marks.setdefault(round(time * d), []).append(number)
    return marks


def _normal(draws: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=draws)
