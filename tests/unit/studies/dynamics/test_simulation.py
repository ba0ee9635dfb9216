"""SGD in d dimensions: a step by hand, the figures of the mean field, and agreement of the two."""

import math

import pytest
import torch

from straightvq.nn import ReSTE, RotationTrick
from straightvq.studies.dynamics.codes import Rule
from straightvq.studies.dynamics.density import solve
from straightvq.studies.dynamics.experiments import square_codes, teacher
from straightvq.studies.dynamics.model import Grid, Problem, mid_tread, uniform
from straightvq.studies.dynamics.particles import follow, follow_codes
from straightvq.studies.dynamics.simulation import simulate, train_layer


def normal(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, generator=draws) for shape in shapes]


@pytest.mark.parametrize("inputs", [None, uniform(1, 1.0)])
def test_a_step_is_that_of_the_formula(inputs: Grid | None) -> None:
    """``w - rate (Q(w) phi(x) / sqrt(d) - y) phi(x) / sqrt(d)``, with the same draws."""
    problem = Problem(weights=uniform(2, 2.0), inputs=inputs, rate=0.3, noise=0.5)
    found = simulate(problem, 4, [0.0, 0.25], runs=1, seed=3)
    w, x, n = normal(3, (1, 4, 1), (1, 4, 1), (1, 1, 1))
    w, x, noise = w[0, :, 0], x[0, :, 0], n.item()
    codes = torch.tensor([-2.0, -2 / 3, 2 / 3, 2.0], dtype=torch.float64)
    q = codes[(w[:, None] - codes).abs().argmin(1)]
    seen = x if inputs is None else x.sign()
    residual = (q * seen).sum() / 2 - (x.sum() / 2 + 0.5 * noise)
    torch.testing.assert_close(found.weights[0][0, :, 0], w)
    torch.testing.assert_close(found.weights[1][0, :, 0], w - 0.3 * residual * seen / 2)


def test_an_estimator_that_bends_the_gradient_is_felt() -> None:
    w, x = (value[0, :, 0] for value in normal(3, (1, 4, 1), (1, 4, 1)))
    sign = w.sign()
    step = -0.1 * ((sign * x).sum() / 2 - x.sum() / 2) * x / 2
    codes = uniform(1, 1.0).codes
    for estimator, factor in (
        (RotationTrick(), (1 / w.abs()).clamp(max=2)),
        (ReSTE(power=1.0), (w.abs() <= 1.5).double()),
    ):
        found = simulate(Problem(weights=Grid(codes, estimator)), 4, [0.25], seed=3)
        torch.testing.assert_close(found.weights[0][0, :, 0], w + factor * step)


def test_a_step_through_the_layer_is_that_of_the_formula() -> None:
    """One target, codes trained by their loss: ``c - (1 / d) (2 / d) sum (c - w)``."""
    problem, codes = teacher("one target"), square_codes()
    found = train_layer(problem, Rule("gradient"), codes, 6, [0.0, 1 / 6], seed=1)
    w, x = normal(1, (3, 2), (3, 2))
    w = 0.05 * w
    residual = -x.sum() / math.sqrt(6)  # all are at the code 0, and the targets are 1
    torch.testing.assert_close(found.weights[1][0], w - 0.1 * residual * x / math.sqrt(6))
    expected = codes.clone()
    expected[4] += (1 / 6) * (2 / 6) * w.sum(0)
    torch.testing.assert_close(found.codes[1], expected)


def test_times_that_share_a_step_share_its_values() -> None:
    found = simulate(Problem(), 4, [0.0, 0.01, 0.02, 0.25], runs=2)
    assert torch.equal(found.errors[:, 0], found.errors[:, 2])
    assert len(found.weights) == 4
    assert not torch.equal(found.errors[:, 0], found.errors[:, 3])


# The error at tau = 5, 10, 20 and 60: eta 0.1, targets of 1, weights that start standard normal.
FIGURES = {
    "none": (None, [0.386, 0.150, 0.022, 0.000]),
    "1 bit, range 1": (uniform(1, 1.0), [0.429, 0.082, 0.000, 0.000]),
    "2 bits, range 2": (uniform(2, 2.0), [0.409, 0.139, 0.086, 0.163]),
    "2 bits, range 4": (uniform(2, 4.0), [0.631, 0.310, 0.322, 0.381]),
    "3 bits, range 4": (uniform(3, 4.0), [0.409, 0.167, 0.119, 0.153]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_mean_field_has_the_known_figures(name: str) -> None:
    grid, expected = FIGURES[name]
    problem, times = Problem(weights=grid), [5.0, 10.0, 20.0, 60.0]
    assert solve(problem, times, cells=600, reach=5.0).errors == pytest.approx(expected, abs=0.02)
    particles = follow(problem, times, count=4000, dt=0.1)
    assert particles.errors[0].tolist() == pytest.approx(expected, abs=0.05)


def test_the_plateau_of_a_coarser_grid_lasts_longer() -> None:
    """Errors at tau = 1, 3, 7, 15 and 20: it is left at 1, at 3, at 7 and never."""
    for step, low, high in (
        (0.25, [0.45, 0.35, 0.24, 0.05, 0.01], [0.48, 0.39, 0.27, 0.13, 0.09]),
        (0.5, [0.48, 0.43, 0.20, 0.11, 0.09], [0.51, 0.46, 0.24, 0.13, 0.12]),
        (1.0, [0.49, 0.49, 0.42, 0.04, 0.00], [0.51, 0.51, 0.46, 0.08, 0.01]),
        (2.0, [0.49, 0.49, 0.49, 0.49, 0.49], [0.51, 0.51, 0.51, 0.51, 0.51]),
    ):
        problem = Problem(weights=mid_tread(5, 15 * step), rate=0.05, start=0.05)
        errors = solve(problem, [1.0, 3.0, 7.0, 15.0, 20.0], cells=500, reach=2.5).errors
        assert all(low <= errors), step
        assert all(errors <= high), step


@pytest.mark.parametrize("inputs", [None, uniform(2, 2.0)])
def test_simulation_follows_the_mean_field(inputs: Grid | None) -> None:
    problem, times, d = Problem(weights=uniform(2, 2.0), inputs=inputs), [2.0, 5.0, 10.0], 150
    simulated = simulate(problem, d, times, runs=4).errors.mean(0)
    expected = solve(problem, times, cells=500, reach=5.0).errors
    assert simulated.tolist() == pytest.approx(expected, abs=3 / math.sqrt(d))


@pytest.mark.parametrize(
    "rule", [Rule("EMA"), Rule("alternated", sync=1.0), Rule("gradient", commitment=0.25)], ids=str
)
def test_codes_that_move_follow_the_mean_field(rule: Rule) -> None:
    problem, times, d = teacher("four targets"), [2.0, 4.0, 6.0], 80
    expected = follow_codes(problem, rule, square_codes(), d, times, count=2000, dt=0.05).errors[0]
    found = train_layer(problem, rule, square_codes(), d, times).errors[0]
    assert found.tolist() == pytest.approx(expected.tolist(), abs=3 / math.sqrt(d))
