"""The density of the weights: it keeps its mass, and agrees with closed forms where there are any."""

import numpy as np
import pytest
import torch

from straightvq.nn import RotationTrick
from straightvq.studies.dynamics.closed_forms import rest, unquantized
from straightvq.studies.dynamics.density import solve
from straightvq.studies.dynamics.model import Grid, Problem, uniform

TIMES = [0.0, 2.0, 5.0, 10.0]


def test_without_a_quantizer_it_has_the_error_of_the_closed_form() -> None:
    for problem in (Problem(), Problem(noise=1.0, rate=0.5), Problem(inputs=uniform(1, 1.0))):
        expected = unquantized(problem, torch.tensor(TIMES, dtype=torch.float64)).numpy()
        found = solve(problem, TIMES, cells=300, reach=5.0).errors
        np.testing.assert_allclose(found, expected, atol=5e-3)


def test_it_stays_a_density() -> None:
    found = solve(Problem(weights=uniform(2, 2.0)), TIMES, cells=300, reach=5.0)
    width = found.centres[1] - found.centres[0]
    np.testing.assert_allclose(found.heights.sum(1) * width, 1.0, atol=1e-9)
    assert (found.heights >= 0).all()


def test_it_comes_to_the_state_of_rest() -> None:
    for problem in (Problem(weights=uniform(2, 2.0), rate=0.8), Problem(weights=uniform(3, 4.0), rate=0.5, noise=0.5)):
        found = solve(problem, [20.0], cells=200, reach=4.0).errors[0]
        assert found == pytest.approx(rest(problem, problem.rate), rel=0.02)


def test_what_it_cannot_follow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`target` must be one number. Got \(2, 1\)"):
        solve(Problem(target=torch.ones(2, 1)), TIMES, cells=100, reach=5.0)
    turned = Problem(weights=Grid(uniform(1, 1.0).codes, RotationTrick()))
    with pytest.raises(ValueError, match=r"must have the estimator StraightThrough\. Got RotationTrick"):
        solve(turned, TIMES, cells=100, reach=5.0)
