"""Transforms of several steps, channels in reverse, and the bare layer."""

import copy
import math

import pytest
import torch
from torch import nn

import straightvq as svq
from straightvq import interop
from straightvq.testing import check_quantizer


def test_steps_act_in_order_and_codes_go_back_in_reverse() -> None:
    projection, unit = svq.Projection(3), svq.UnitNorm()
    steps = interop.Steps([projection, unit])
    steps.bind(6)
    z, code = torch.randn(5, 6), torch.randn(5, 3)
    assert steps.codebook_dim(6) == 3
    assert torch.equal(steps(z), unit(projection(z)))
    assert torch.equal(steps.inverse(code), projection.inverse(code))


def test_reversed_is_its_own_inverse() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0]])
    assert interop.Reversed()(z).tolist() == [[3.0, 2.0, 1.0]]
    assert torch.equal(interop.Reversed().inverse(interop.Reversed()(z)), z)


def test_steps_refuse_other_things() -> None:
    with pytest.raises(ValueError, match="at least one transform"):
        interop.Steps([])
    with pytest.raises(TypeError, match="must be an instance of Transform"):
        interop.Steps([nn.Linear(2, 2)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [interop.Reversed, lambda: interop.Steps([svq.Projection(4), svq.UnitNorm()])], ids=["reversed", "steps"]
)
def test_transforms_keep_the_laws(make) -> None:
    check_quantizer(make)


def test_bare_layer_stands_between_layers_and_keeps_its_loss() -> None:
    layer = interop.Bare(svq.presets.ema(4, 16, channel_dim=1))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.Conv2d(4, 3, 1))
    with pytest.raises(ValueError, match="must be asked for after a forward"):
        _ = layer.loss
    (net(torch.randn(2, 3, 5, 5)).square().mean() + layer.loss).backward()
    assert net[0].weight.grad is not None
    assert layer.last is not None
    assert math.isfinite(layer.loss.item())
    twin = copy.deepcopy(net)  # a graph could not be copied
    assert twin[1].last is None
    with pytest.raises(TypeError, match="must be an instance of Quantizer"):
        interop.Bare(nn.Linear(2, 2))
