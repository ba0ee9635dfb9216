import itertools
import math

import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.diagnostics.functional import estimating_error


def gradient(estimator: svq.Estimator, z: list[float], half_width: float = 1.0) -> list[float]:
    x = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    code = torch.where(x.detach() >= 0, half_width, -half_width).double()
    out = estimator(x, code)
    assert torch.equal(out, code)
    out.sum().backward()
    assert x.grad is not None
    return x.grad[0].tolist()


@pytest.mark.parametrize("secant", ["continuous", "authors"])
def test_power_one_is_the_clipped_straight_through_estimator_to_the_bit(secant: str) -> None:
    z = torch.cat([torch.linspace(-3, 3, 4001), torch.tensor([0.1, -0.1, 1.5, -1.5, 0.0])])[:, None]
    weight = torch.randn_like(z)

    def by(estimator: svq.Estimator, clipped: bool) -> Tensor:
        x = z.clone().requires_grad_()
        given = torch.where(x.abs() > 1.5, x.detach(), x) if clipped else x
        out = svq.LookupFreeQuantizer(1, 1, estimator=estimator, losses=[])(given).quantized
        (weight * out).sum().backward()
        assert x.grad is not None
        return x.grad

    mine = by(svq.ReSTE(power=1.0, secant=secant), clipped=False)
    assert torch.equal(mine, by(svq.StraightThrough(), clipped=True))


@pytest.mark.parametrize("secant", ["continuous", "authors"])
def test_factors_by_hand(secant: str) -> None:
    # o = 2: .5 * .25^-.5 = 1; .5 at 1; within .1 .5 * .1^-.5 = 1.5811, or .1^.5 / .1 = 3.1623.
    # o = 3: 1/3 * .125^(-2/3) = 4/3; within .1 1/3 * .1^(-2/3) = 1.5472, or .1^(1/3) / .1 = 4.6416.
    near = {2.0: {"continuous": 1.5811, "authors": 3.1623}, 3.0: {"continuous": 1.5472, "authors": 4.6416}}
    got = gradient(svq.ReSTE(2.0, secant=secant), [0.25, -1.0, 0.05, 0.0, 1.6, -1.6, 1.5])
    inside = near[2.0][secant]
    assert got == pytest.approx([1.0, 0.5, inside, inside, 0.0, 0.0, 0.5 * 1.5**-0.5], rel=1e-4)
    inside = near[3.0][secant]
    assert gradient(svq.ReSTE(3.0, secant=secant), [-0.125, -0.01]) == pytest.approx([4 / 3, inside], rel=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 10.0])
def test_factor_is_continuous_at_the_clip_and_the_authors_jumps_by_the_power(power: float) -> None:
    at = [0.1 - 1e-9, 0.1 + 1e-9]
    below, above = gradient(svq.ReSTE(power), at)
    assert below == pytest.approx(above, rel=1e-6)
    below, above = gradient(svq.ReSTE(power, secant="authors"), at)
    assert below / above == pytest.approx(power, rel=1e-6)


@pytest.mark.parametrize("half_width", [0.5, 2.0, 36**-0.5])
def test_factor_is_measured_in_half_widths(half_width: float) -> None:
    x = [0.05, 0.3, -1.2, 1.7]
    assert gradient(svq.ReSTE(3.0), [half_width * v for v in x], half_width) == pytest.approx(
        gradient(svq.ReSTE(3.0), x)
    )


def test_error_of_the_estimate_falls_with_the_power() -> None:
    z = torch.linspace(-1.5, 1.5, 1001)
    errors = [estimating_error(z, svq.ReSTE(power).surrogate).item() for power in (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)]
    assert errors == sorted(errors, reverse=True)
    assert all(a > b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("power", [1.0, 2.0, 5.0])
def test_factor_is_the_derivative_of_the_surrogate(power: float) -> None:
    estimator = svq.ReSTE(power)
    x = torch.linspace(0.11, 1.49, 50, dtype=torch.float64).requires_grad_()
    estimator.surrogate(x).sum().backward()
    torch.testing.assert_close(estimator.factor(x.detach()), x.grad)


def test_the_clip_never_passes_the_limit() -> None:
    with pytest.raises(ValueError, match=r"`clip` must be at most `limit`.* Got 0.5 and 0.2"):
        svq.ReSTE(limit=0.2, clip=0.5)
    estimator = svq.ReSTE(limit=1.5, clip=0.1)
    for name, value in {"clip": 2.0, "limit": 0.05}.items():
        with pytest.raises(ValueError, match="`clip` must be at most `limit`"):
            setattr(estimator, name, value)
    assert (estimator.clip, estimator.limit) == (0.1, 1.5)
    estimator.limit = estimator.clip  # then the gradient is constant within, and nothing outside


def test_schedule_by_hand() -> None:
    assert svq.reste_power(0.0) == 1.0
    assert svq.reste_power(1.0) == pytest.approx(3.0)
    assert svq.reste_power(0.5, end=5.0) == pytest.approx(1 + 4 * (1 - math.sqrt(0.5)))
    layer = svq.LookupFreeQuantizer(2, 2, estimator=svq.ReSTE())
    for progress in (0.0, 0.3, 1.0):
        layer.estimator.power = svq.reste_power(progress)
    assert layer.estimator.power == pytest.approx(3.0)


def test_it_is_refused_where_codes_are_no_signs() -> None:
    with pytest.raises(ValueError, match="ReSTE stands for the derivative of a sign, and these codes are no signs"):
        svq.VectorQuantizer(2, svq.Codebook(4), estimator=svq.ReSTE())


@pytest.mark.parametrize("kind", [svq.LookupFreeQuantizer, svq.BinarySphericalQuantizer])
def test_both_binary_quantizers_take_it(kind: type[svq.Quantizer]) -> None:
    z = torch.randn(20, 6, requires_grad=True)
    layer = kind(6, 6, estimator=svq.ReSTE(2.0))
    out = layer(z)
    out.quantized.square().sum().add(out.loss).backward()
    assert torch.equal(layer.decode(out.indices), out.quantized.detach())
    assert z.grad is not None
    assert z.grad.isfinite().all()
