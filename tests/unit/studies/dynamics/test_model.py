"""The quantizers of the study of dynamics: their codes, moments and gradients; and the error of the model."""

import math
from typing import Any

import pytest
import torch

from straightvq.functional import nearest_code
from straightvq.nn import ReSTE, RotationTrick
from straightvq.studies.dynamics.model import Grid, Problem, mid_tread, moments, uniform


def test_a_grid_serves_every_number_with_its_nearest_code() -> None:
    w = torch.linspace(-3, 3, 1001, dtype=torch.float64)[:, None]
    for grid in (uniform(1, 1.0), uniform(3, 2.0), mid_tread(3, 1.5)):
        assert torch.equal(grid(w), grid.codes[nearest_code(w, grid.codes)])


def test_pairs_are_served_with_the_nearest_pair() -> None:
    grid = Grid(torch.tensor([[0.0, 0.0], [2.0, 1.0]], dtype=torch.float64))
    w = torch.tensor([[0.9, 0.4], [1.1, 0.6]], dtype=torch.float64)
    assert grid(w).tolist() == [[0.0, 0.0], [2.0, 1.0]]


def test_the_gradient_is_that_of_the_estimator() -> None:
    w = torch.tensor([[0.5], [-4.0]], dtype=torch.float64, requires_grad=True)
    for grid, expected in (
        (uniform(1, 1.0), [1.0, 1.0]),  # unchanged, beyond the range too
        (Grid(uniform(1, 1.0).codes, RotationTrick()), [2.0, 0.25]),  # |code| / |w|
        (Grid(uniform(1, 1.0).codes, ReSTE(power=1.0)), [1.0, 0.0]),  # nothing beyond 1.5
    ):
        (gradient,) = torch.autograd.grad(grid(w).sum(), w)
        assert gradient[:, 0].tolist() == pytest.approx(expected)


def test_moments_are_the_integrals_over_the_normal_distribution() -> None:
    x = torch.linspace(-9, 9, 400_001, dtype=torch.float64)[:, None]
    weight = (-x.square() / 2).exp() / math.sqrt(2 * math.pi) * (18 / 400_000)
    for grid in (uniform(1, 0.7), uniform(2, 2.0), mid_tread(3, 1.5)):
        q = grid(x)
        by_sum = float((q * x * weight).sum()), float((q.square() * weight).sum())
        assert moments(grid) == pytest.approx(by_sum, abs=1e-4)
    assert moments(uniform(1, 1.0)) == pytest.approx((math.sqrt(2 / math.pi), 1.0))
    assert moments(None) == (1.0, 1.0)


def test_the_error_is_that_of_the_student_over_all_inputs() -> None:
    problem = Problem(weights=uniform(2, 2.0), inputs=uniform(1, 1.0), target=torch.tensor([[0.5], [-1.5]]).double())
    d = 8
    w = torch.linspace(-2, 2, d, dtype=torch.float64)[:, None]
    x = torch.randn(400_000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, target = problem.quantized(w)[:, 0], problem.targets(d)[:, 0]
    measured = ((x.sign() @ q - x @ target).square() / d).mean()
    assert float(problem.square(q, target).mean()) == pytest.approx(float(measured), rel=0.01)


def test_weights_take_the_targets_in_turn() -> None:
    problem = Problem(target=torch.tensor([[1.0], [2.0]]))
    assert problem.targets(5)[:, 0].tolist() == [1.0, 2.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: uniform(0, 1.0), ValueError, "`bits` must be an integer >= 1. Got 0"),
        (lambda: uniform(1.5, 1.0), TypeError, "`bits` must be an integer"),
        (lambda: mid_tread(1, 1.0), ValueError, "`bits` must be an integer >= 2. Got 1"),
        (lambda: uniform(1, 0.0), ValueError, "`reach` must be"),
        (lambda: mid_tread(2, math.inf), ValueError, "`reach` must be"),
        (lambda: Problem(rate=0.0), ValueError, "`rate` must be"),
        (lambda: Problem(start=-1.0), ValueError, "`start` must be"),
        (lambda: Problem(noise=math.nan), ValueError, "`noise` must be"),
    ],
)
def test_impossible_numbers_are_refused(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()
