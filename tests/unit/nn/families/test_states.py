"""A state says what it is of, where shapes do not: another layer refuses it, and changes nothing by doing so."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import straightvq as svq

Make = Callable[[], svq.Quantizer]


def grid(**given: object) -> svq.FiniteScalarQuantizer:
    return svq.FiniteScalarQuantizer(2, [8, 5], **given)


def shared(times: int) -> svq.ResidualQuantizer:
    return svq.ResidualQuantizer(4, svq.presets.ema(4, 8), num_quantizers=times)


def nested(scale: float) -> svq.ProductQuantizer:
    groups: list[svq.Quantizer] = [svq.presets.ema(4, 8), svq.LookupFreeQuantizer(4, 4, scale=scale, losses=[])]
    return svq.ProductQuantizer(8, groups)


# A layer, another one whose state has the same shapes, and what the refusal says.
PAIRS: dict[str, tuple[Make, Make, str]] = {
    "levels": (grid, lambda: svq.FiniteScalarQuantizer(2, [5, 8]), r"the levels \[8, 5\]. Got \[5, 8\]"),
    "form": (grid, lambda: grid(form="symmetric"), "form=0, scale=1, clamp=0. Got form=1"),
    "form of the bound": (grid, lambda: grid(form="atanh"), "form=0, scale=1, clamp=0. Got form=2"),
    "grid's scale": (grid, lambda: grid(scale=0.5), "scale=1.*Got .*scale=0.5"),
    "clamp": (grid, lambda: grid(clamp=True), "clamp=0. Got .*clamp=1"),
    "half-width": (
        lambda: svq.LookupFreeQuantizer(4, 4),
        lambda: svq.LookupFreeQuantizer(4, 4, scale=0.5),
        "half_width=1. Got bits=4, half_width=0.5",
    ),
    "bits": (
        lambda: svq.BinarySphericalQuantizer(4, 4),
        lambda: svq.BinarySphericalQuantizer(5, 5),
        "bits=4, half_width=0.5. Got bits=5",
    ),
    "levels that share": (lambda: shared(2), lambda: shared(3), "num_quantizers=2. Got num_quantizers=3"),
    "groups that share": (
        lambda: svq.ProductQuantizer(8, svq.presets.ema(4, 8), num_groups=2),
        lambda: svq.ProductQuantizer(16, svq.presets.ema(4, 8), num_groups=4),
        "num_groups=2. Got num_groups=4",
    ),
    "deep inside": (lambda: nested(1.0), lambda: nested(2.0), "LookupFreeQuantizer.*half_width=1. Got .*half_width=2"),
    "kinds of composite": (
        lambda: shared(2),
        lambda: svq.ProductQuantizer(12, svq.presets.ema(4, 8), num_groups=3),
        "num_quantizers=2. Got num_quantizers=3",
    ),
    "normalised or not": (
        lambda: svq.RandomProjectionQuantizer(4, 8),
        lambda: svq.RandomProjectionQuantizer(4, 8, normalize=False),
        "normalize=1. Got normalize=0",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("strict", [True, False])
def test_the_state_of_another_layer_is_refused_and_changes_nothing(name: str, strict: bool) -> None:
    make, other, words = PAIRS[name]
    layer, state = nn.Sequential(make()), nn.Sequential(other()).state_dict()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=words):
        layer.load_state_dict(state, strict=strict)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", PAIRS)
def test_a_state_that_does_not_say_loads_strictly(name: str) -> None:
    """As those of earlier versions."""
    torch.manual_seed(0)
    layer, twin = PAIRS[name][0](), PAIRS[name][0]()
    layer(torch.randn(30, layer.dim))
    state = layer.state_dict()
    for key in [key for key in state if key.endswith("settings")]:
        del state[key]
    twin.load_state_dict(state)
    z = torch.randn(30, layer.dim)
    assert torch.equal(twin.eval()(z).quantized, layer.eval()(z).quantized)
    twin.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(twin(z).quantized, layer(z).quantized)


@pytest.mark.parametrize("name", PAIRS)
def test_memory_given_later_gets_the_settings(name: str) -> None:
    with torch.device("meta"):
        layer = PAIRS[name][0]()
    layer.to_empty(device="cpu")
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    made = PAIRS[name][0]().state_dict()
    assert all(torch.equal(value, made[key]) for key, value in layer.state_dict().items() if key.endswith("settings"))
    layer.load_state_dict(made)


FREE: dict[str, Make] = {
    "paper's grid": lambda: svq.FiniteScalarQuantizer(3, [8, 5, 7], scale=0.3),
    "symmetric grid": lambda: svq.FiniteScalarQuantizer(3, [8, 6, 7], form="symmetric"),
    "cube": lambda: svq.LookupFreeQuantizer(3, 3, scale=0.3),
    "sphere": lambda: svq.BinarySphericalQuantizer(3, 3),
    "random": lambda: svq.RandomProjectionQuantizer(3, 8),
    "residual": lambda: svq.ResidualQuantizer(3, [svq.FiniteScalarQuantizer(3, [5] * 3, scale=s) for s in (1.0, 0.3)]),
    "product": lambda: svq.ProductQuantizer(6, svq.LookupFreeQuantizer(3, 3, scale=0.3), num_groups=2),
}


@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FREE)
def test_a_layer_in_double_decodes_in_double_what_its_forward_gives(name: str, given: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = FREE[name]().double().eval()
    out = layer(torch.randn(50, layer.dim, dtype=given))
    codes = layer.decode(out.indices)
    assert codes.dtype == torch.float64
    assert torch.equal(codes.to(given), out.quantized)
    assert layer.half().decode(out.indices).dtype == torch.float32
