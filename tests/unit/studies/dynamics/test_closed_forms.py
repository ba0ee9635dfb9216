"""What the study of dynamics knows without simulating, against numbers worked out by hand and by brute force."""

import math

import pytest
import torch
from torch import Tensor

from straightvq.studies.dynamics.closed_forms import (
    largest_rate,
    largest_unquantized_rate,
    plateau,
    rest,
    rest_of_slow,
    unquantized,
)
from straightvq.studies.dynamics.model import Problem, mid_tread, uniform


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_without_a_quantizer_the_error_decays_by_two_rates_less_a_square() -> None:
    """R starts as 1 + 1 and falls by 2 * 0.1 - 0.1^2 = 0.19 per unit of tau."""
    found = unquantized(Problem(rate=0.1), times(0.0, 5.0, 10.0))
    assert found.tolist() == pytest.approx([1.0, math.exp(-0.95), math.exp(-1.9)])


def test_without_a_quantizer_noise_leaves_its_share() -> None:
    """At rest 2 R = rate (R + noise^2): R = rate noise^2 / (2 - rate)."""
    found = unquantized(Problem(rate=0.5, noise=2.0), times(1000.0))
    assert found.item() == pytest.approx(0.5 * 4 / 1.5 / 2)


def test_quantized_inputs_leave_what_they_hide_of_the_teacher() -> None:
    """Signs have k1^2 = 2 / pi and k2 = 1: floor 1 - 2 / pi, and the noise that it makes."""
    problem = Problem(inputs=uniform(1, 1.0), rate=0.1)
    floor = 1 - 2 / math.pi
    assert unquantized(problem, times(1000.0)).item() == pytest.approx(floor * (1 + 0.1 / 1.9) / 2)
    assert unquantized(problem, times(0.0)).item() == pytest.approx((1 + 1) / 2)


def test_at_the_largest_rate_the_spread_neither_grows_nor_falls() -> None:
    problem = Problem(inputs=uniform(2, 1.0), rate=1.0)
    largest = largest_unquantized_rate(problem)
    assert largest == pytest.approx(2 / problem.moments[1])
    ends = [
        unquantized(Problem(inputs=problem.inputs, rate=share * largest), times(500.0)).item() for share in (0.9, 1.1)
    ]
    assert ends[0] < 1.0
    assert ends[1] > 1e6


@pytest.mark.parametrize(
    ("bits", "reach", "error"),
    [
        (2, 2.0, (1 / 3) * 1 / 2),  # codes 2/3 and 2
        (2, 4.0, (7 / 3) * (1 / 3) / 2),  # codes -4/3 and 4/3
        (3, 4.0, (3 / 7) * (5 / 7) / 2),  # codes 4/7 and 12/7
        (1, 1.0, 0.0),  # a code
        (2, 0.5, 0.5**2 / 2),  # beyond the outermost code
    ],
)
def test_a_slow_rate_rests_between_the_two_codes_around_the_target(bits: int, reach: float, error: float) -> None:
    problem = Problem(weights=uniform(bits, reach))
    assert rest_of_slow(problem) == pytest.approx(error)
    assert rest(problem, 0.01) == pytest.approx(error, abs=1e-6)


def test_several_targets_have_the_mean_of_their_errors() -> None:
    targets = [-1.7, -0.4, 0.2, 1.0, 3.0]
    alone = [rest_of_slow(Problem(weights=uniform(2, 2.0), target=times(t)[:, None])) for t in targets]
    together = rest_of_slow(Problem(weights=uniform(2, 2.0), target=times(*targets)[:, None]))
    assert together == pytest.approx(sum(alone) / len(alone))


def test_quantized_inputs_shift_the_target_at_rest() -> None:
    """Of ``k2 (b - t) (t - a) + w*^2 (1 - k1^2 / k2)`` with k1 = sqrt(2 / pi), k2 = 1, t = k1, a = 2/3, b = 2."""
    k1 = math.sqrt(2 / math.pi)
    expected = ((2 - k1) * (k1 - 2 / 3) + 1 - k1**2) / 2
    assert rest_of_slow(Problem(weights=uniform(2, 2.0), inputs=uniform(1, 1.0))) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.3, 1.0, 1.9])
def test_the_state_of_rest_is_the_density_that_makes_its_own_noise(rate: float) -> None:
    """The density ``exp(-2 U / (rate (R + noise^2)))`` on a fine grid has the R that was put into it."""
    problem = Problem(weights=uniform(2, 2.0), noise=0.3, target=times(1.0, -0.3)[:, None])
    R = 2 * rest(problem, rate)
    w = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    q = problem.quantized(w[:, None])[:, 0]
    squares = []
    for target in problem.target[:, 0]:
        potential = (q - target).cumsum(0) * (80 / 800_000)
        density = torch.softmax(-2 * potential / (rate * (R + 0.09)), 0)
        squares.append(float((density * (q - target).square()).sum()))
    assert sum(squares) / 2 == pytest.approx(R, rel=1e-3)


def test_codes_close_to_the_target_allow_every_rate() -> None:
    """However large the rate, weights that are spread over the grid give at most range^2 - 1."""
    assert largest_rate(Problem(weights=uniform(2, 1.4))) == math.inf
    assert largest_rate(Problem(weights=uniform(2, 1.5))) < math.inf


def test_the_largest_rate_parts_useful_from_useless() -> None:
    problem = Problem(weights=uniform(2, 2.0))
    largest = largest_rate(problem)
    assert rest(problem, 0.99 * largest) < 0.5 < rest(problem, 1.01 * largest)
    assert largest_rate(Problem(weights=uniform(1, 2.0))) == pytest.approx(0.0, abs=1e-5)  # R is 4 - 1 at any rate


def test_the_plateau_ends_when_a_share_of_the_weights_has_walked_half_a_step() -> None:
    """Without spread at the start: rate tau - 1.2816 rate sqrt(tau) ... the tenth that is ahead, at half a step."""
    problem = Problem(rate=0.05, start=0.0)
    tau = plateau(problem, 1.0)
    assert 0.05 * tau + 1.281552 * 0.05 * math.sqrt(tau) == pytest.approx(0.5, abs=1e-6)


def test_a_plateau_without_a_gain_behind_it_does_not_end() -> None:
    assert plateau(Problem(weights=mid_tread(3, 6.0), rate=0.05, start=0.05), 2.0) == math.inf
