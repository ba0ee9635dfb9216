"""Estimators of signs in the quantizers that round channel by channel."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.nn.families.codebook_free import CodebookFree
from straightvq.nn.families.finite_scalar import Form

FORMS: list[Form] = ["paper", "symmetric", "atanh"]
SIGNS = [svq.LookupFreeQuantizer, svq.BinarySphericalQuantizer]


def rows(n: int = 200, dim: int = 3) -> Tensor:
    return 2 * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradient(layer: svq.Quantizer, z: Tensor, weight: Tensor) -> Tensor:
    """At the vectors after ``bound``, whose derivative is left out."""
    layer.double()
    x = z.clone().requires_grad_()
    step = layer.step(x, None)
    bounded = step.z.detach().requires_grad_()
    (weight * layer.estimate(step._replace(z=bounded))).sum().backward()
    assert bounded.grad is not None
    return bounded.grad


def thresholds(grid: Tensor) -> Tensor:
    return (grid[1:] + grid[:-1]) / 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("make", [lambda: svq.ReSTE(3.0), lambda: svq.ErrorDecay(4.0)], ids=["reste", "tanh"])
def test_rounding_to_levels_is_a_sign_around_the_nearest_threshold(
    form: Form, scale: float, make: Callable[[], svq.SignEstimator]
) -> None:
    levels = [2, 5, 4]
    layer = svq.FiniteScalarQuantizer(3, levels, form=form, scale=scale, estimator=make())
    z, weight = scale * rows(), torch.linspace(-1, 1, 3, dtype=torch.float64)
    got = gradient(layer, z, weight)
    bounded, offsets = layer.bound(z), layer.offsets(layer.bound(z))
    for channel, count in enumerate(levels):
        # The naive way: the whole grid of the channel, its thresholds, the nearest of them.
        half = count // 2 if form != "symmetric" else (count - 1) / 2
        lowest = -(count // 2) if form != "symmetric" else -half
        grid = scale * (lowest + torch.arange(count, dtype=torch.float64)) / half
        for row in range(len(z)):
            value = bounded[row, channel]
            nearest = thresholds(grid)[(thresholds(grid) - value).abs().argmin()]
            x = (value - nearest) / (scale / (2 * half))
            assert offsets[row, channel].item() == pytest.approx(x.item(), abs=1e-12)
            expected = weight[channel] * make().factor(x)
            assert got[row, channel].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_between_levels_power_one_is_the_straight_through_estimator_to_the_bit(form: Form) -> None:
    z, weight = rows(), torch.tensor([1.0, -0.3, 0.7], dtype=torch.float64)
    mine, plain = (
        gradient(svq.FiniteScalarQuantizer(3, [2, 5, 4], form=form, estimator=estimator), z, weight)
        for estimator in (svq.ReSTE(1.0), svq.StraightThrough())
    )
    assert torch.equal(mine, plain)


@pytest.mark.parametrize("kind", SIGNS)
def test_offsets_of_signs_are_in_half_widths(kind: type[svq.LookupFreeQuantizer]) -> None:
    layer, z = kind(3, 3).double(), rows()
    bounded = layer.bound(z)
    width = 1.0 if kind is svq.LookupFreeQuantizer else 3**-0.5
    torch.testing.assert_close(layer.offsets(bounded), bounded / width)


@pytest.mark.parametrize("kind", [*SIGNS, lambda dim, bits, estimator: svq.FiniteScalarQuantizer(dim, [2] * bits)])
def test_gradient_of_a_vector_does_not_depend_on_the_others(kind: Callable[..., CodebookFree]) -> None:
    """So that processes which share a batch do what one does with all of it."""
    z, weight = rows(10), torch.tensor([1.0, -0.3, 0.7], dtype=torch.float64)
    for estimator in (svq.ReSTE(3.0), svq.ErrorDecay(2.0)):
        layer = kind(3, 3, estimator=estimator)
        whole = gradient(layer, z, weight)
        parts = [gradient(layer, part, weight) for part in (z[:3], z[3:])]
        assert torch.equal(torch.cat(parts), whole)


def test_noise_in_place_of_rounding_has_no_sign() -> None:
    with pytest.raises(ValueError, match="`noise` must be 0 with ReSTE"):
        svq.FiniteScalarQuantizer(2, [5, 5], noise=0.5, estimator=svq.ReSTE())


# z ~ N(0, 1/4): estimating error per element and, with the authors' secant, variance of the factor.
KNOWN = {1.0: (0.452, 0.003), 2.0: (0.236, 0.78), 3.0: (0.144, 2.16), 5.0: (0.070, 4.58), 10.0: (0.022, 7.86)}


def moment(power: float, std: float = 0.5) -> float:
    """E |z|^power of a normal variable."""
    return std**power * 2 ** (power / 2) * math.gamma((power + 1) / 2) / math.sqrt(math.pi)


@pytest.mark.parametrize(("power", "error", "variance"), [(o, *known) for o, known in KNOWN.items()])
def test_indicators_of_normal_vectors_agree_with_closed_forms(power: float, error: float, variance: float) -> None:
    shares = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    z = 0.5 * torch.special.ndtri(shares)
    estimator = svq.ReSTE(power, secant="authors")
    found = (torch.sign(z) - estimator.surrogate(z)).square().mean().item()
    assert found == pytest.approx(1 - 2 * moment(1 / power) + moment(2 / power), rel=1e-4)
    assert found == pytest.approx(error, abs=6e-4)
    assert estimator.factor(z).var(correction=0).item() == pytest.approx(variance, rel=0.02, abs=6e-4)
