import pytest
import torch
from torch import nn

import straightvq as svq
from straightvq.diagnostics import estimating_error, gradient_instability
from straightvq.studies.binary.watching import INSTABILITY, Indicators


def test_error_is_that_of_the_estimator_as_it_was_in_each_step() -> None:
    estimator = svq.ReSTE()
    layer = svq.LookupFreeQuantizer(2, 2, scale=0.5, estimator=estimator, losses=[])
    watch = Indicators({"error": [layer]}, [])
    z, expected = torch.randn(3, 10, 2), []
    for power, part in zip((1.0, 2.0, 5.0), z, strict=True):
        estimator.power = power
        layer(part)
        expected.append(estimating_error(part / 0.5, estimator.surrogate).item())
    assert watch.errors["error"].compute().item() == pytest.approx(sum(expected) / 3)


@pytest.mark.parametrize(
    ("layer", "units"),
    [
        (svq.BinarySphericalQuantizer(4, 4, estimator=svq.ReSTE(3.0)), lambda z: z / z.norm(dim=1, keepdim=True) * 2),
        # Symmetric, two levels: the threshold is 0 and the half-step 1.
        (svq.FiniteScalarQuantizer(4, [2] * 4, form="symmetric", estimator=svq.ReSTE(3.0)), torch.tanh),
    ],
    ids=["sphere", "levels"],
)
def test_vectors_are_measured_in_half_steps_from_the_threshold(layer: svq.Quantizer, units: object) -> None:
    assert callable(units)
    watch, z = Indicators({"error": [layer]}, []), torch.randn(50, 4)
    layer(z)
    expected = estimating_error(units(z), svq.ReSTE(3.0).surrogate)
    assert watch.errors["error"].compute().item() == pytest.approx(expected.item(), rel=1e-5)


def test_evaluation_is_not_looked_at() -> None:
    layer = svq.LookupFreeQuantizer(1, 1, estimator=svq.ReSTE(), losses=[])
    watch = Indicators({"error": [layer]}, [])
    layer(torch.ones(3, 1))
    layer.eval()(torch.zeros(3, 1))
    assert watch.errors["error"].compute().item() == 0.0


def test_reading_gives_the_means_since_the_last_one() -> None:
    layer = svq.LookupFreeQuantizer(1, 1, estimator=svq.ReSTE(), losses=[])
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    watch = Indicators({"error": [layer]}, weights)
    for scale in (1.0, 3.0):
        layer(torch.full((2, 1), 0.5))
        weights[0].grad, weights[1].grad = scale * torch.tensor([1.0, -3.0]), scale * torch.tensor([2.0])
        watch.see_gradients()
    once = gradient_instability([torch.tensor([1.0, -3.0]), torch.tensor([2.0])]).item()
    assert watch.read() == pytest.approx({"error": 0.25, INSTABILITY: once * (1 + 9) / 2})
    layer(torch.ones(2, 1))
    watch.see_gradients()
    assert watch.read() == pytest.approx({"error": 0.0, INSTABILITY: once * 9})
