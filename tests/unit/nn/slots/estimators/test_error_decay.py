import math

import pytest
import torch

import straightvq as svq
from straightvq.diagnostics.functional import estimating_error

X = [-2.0, -0.3, 0.0, 0.05, 0.8, 3.0]


def sech2(x: float) -> float:
    return 1 / math.cosh(x) ** 2


@pytest.mark.parametrize("sharpness", [0.1, 0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("half_width", [1.0, 0.25])
def test_values_and_gradients_by_the_paper_s_formula(sharpness: float, half_width: float) -> None:
    # k t (1 - tanh(t x)^2) = max(1, t) / cosh(t x)^2, with x in units of the half-width.
    z = torch.tensor([[half_width * x for x in X]], dtype=torch.float64, requires_grad=True)
    code = torch.where(z.detach() >= 0, half_width, -half_width).double()
    weight = torch.linspace(-1, 2, len(X), dtype=torch.float64)
    out = svq.ErrorDecay(sharpness)(z, code)
    assert torch.equal(out, code)
    (weight * out).sum().backward()
    assert z.grad is not None
    expected = [w * max(1.0, sharpness) * sech2(sharpness * x) for w, x in zip(weight.tolist(), X, strict=True)]
    assert z.grad[0].tolist() == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_factor_is_the_derivative_of_the_surrogate(sharpness: float) -> None:
    estimator = svq.ErrorDecay(sharpness)
    x = torch.linspace(-2, 2, 51, dtype=torch.float64).requires_grad_()
    estimator.surrogate(x).sum().backward()
    torch.testing.assert_close(estimator.factor(x.detach()), x.grad)


def test_small_sharpness_is_the_straight_through_estimator() -> None:
    x = torch.linspace(-1, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(svq.ErrorDecay(1e-4).factor(x), torch.ones_like(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(svq.ErrorDecay(1e-4).surrogate(x), x, rtol=0, atol=1e-7)


def test_error_of_the_estimate_falls_with_the_sharpness() -> None:
    z = torch.linspace(-1.5, 1.5, 1000)
    errors = [estimating_error(z, svq.ErrorDecay(t).surrogate).item() for t in (1.0, 2.0, 5.0, 10.0, 30.0)]
    assert errors == sorted(errors, reverse=True)


def test_schedule_by_hand() -> None:
    assert [svq.error_decay_sharpness(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.1, 10**-0.5, 1.0, 10.0])
    assert svq.error_decay_sharpness(0.5, start=1.0, end=4.0) == pytest.approx(2.0)
