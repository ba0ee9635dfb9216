"""Our own layers by their entries alone: the same codes and indices, whatever parts have entries."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import straightvq as svq
from straightvq import interop
from straightvq.models import Autoencoder


def trained(make: Callable[[], svq.Quantizer], steps: int = 3) -> svq.Quantizer:
    """After a few steps, all parameters moved by hand, so that no map is the identity."""
    torch.manual_seed(0)
    layer = make().train()
    for _ in range(steps):
        layer(torch.randn(256, layer.dim))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


def chained() -> svq.Quantizer:
    book = svq.Codebook(16, parametrization=svq.Chain([svq.Affine(2.0, groups=2), svq.UnitNormCodes()]))
    return svq.VectorQuantizer(6, book, transform=svq.UnitNorm())


def normalised() -> svq.Quantizer:
    book = svq.Codebook(16, parametrization=svq.UnitNormCodes(), update=svq.EMAUpdate(0.9))
    return svq.VectorQuantizer(6, book, transform=svq.UnitNorm())


def linear() -> svq.Quantizer:
    return svq.VectorQuantizer(6, svq.Codebook(16, parametrization=svq.Linear(bias=True)))


def running() -> svq.Quantizer:
    return svq.VectorQuantizer(6, svq.Codebook(16, parametrization=svq.RunningAffine(groups=2)))


def heavy() -> svq.Quantizer:
    return svq.VectorQuantizer(6, svq.Codebook(16, update=svq.AlternatedUpdate(lr=5.0, momentum=0.5)))


LAYERS: dict[str, tuple[Callable[[], svq.Quantizer], dict[str, Any]]] = {
    "vq_vae": (lambda: svq.presets.vq_vae(6, 16), {}),
    "ema": (lambda: svq.presets.ema(6, 16, codebook_dim=3), {"decay": 0.9}),
    "vq_ste_pp": (lambda: svq.presets.vq_ste_pp(6, 16), {"lr_scale": 2.0}),
    "straight": (lambda: svq.presets.straight(6, 16), {}),
    "simvq": (lambda: svq.presets.simvq(6, 16), {}),
    "cvq": (lambda: svq.presets.cvq(6, 16), {}),
    "mmd": (lambda: svq.presets.mmd(6, 16), {}),
    "chained": (chained, {"lr_scale": 2.0}),
    "normalised": (normalised, {}),
    "linear": (linear, {}),
    "running": (running, {}),
    "heavy": (heavy, {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_bare_state_gives_the_same_codes_and_indices(name: str) -> None:
    make, settings = LAYERS[name]
    layer = trained(make)
    state = {f"net.vq.{key}": value for key, value in layer.state_dict().items()} | {"net.bias": torch.ones(3)}
    found = interop.from_state_dict(state, **settings)
    assert (found.layout, found.prefix, found.others) == ("straightvq", "net.vq.", ("net.bias",))
    assert isinstance(layer, svq.VectorQuantizer)
    assert isinstance(found.quantizer, svq.VectorQuantizer)
    assert torch.equal(found.quantizer.codes(), layer.codes())
    z = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.quantizer.eval()(z).quantized, layer(z).quantized)
    kept = found.quantizer.state_dict()
    dropped = {key.removeprefix("net.vq.") for key in found.dropped}
    assert dropped == {key for key in layer.state_dict() if key.startswith(("clock.", "losses."))}
    assert all(torch.equal(value, kept[key]) for key, value in layer.state_dict().items() if key not in dropped)


def test_statistics_come_along_and_the_next_step_is_the_same() -> None:
    layer = trained(lambda: svq.presets.ema(6, 16))
    again = interop.from_state_dict(layer.state_dict()).quantizer
    z = torch.randn(256, 6)
    for each in (layer, again):
        each.train()(z)
    assert torch.equal(again.codebooks()[0].codes(), layer.codebooks()[0].codes())
    assert torch.equal(again.state_dict()["codebook.reset.idle"], layer.state_dict()["codebook.reset.idle"])


def test_importing_copies() -> None:
    layer = trained(lambda: svq.presets.ema(6, 16))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    interop.from_state_dict(layer.state_dict()).quantizer.train()(torch.randn(256, 6))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("composite", "number"),
    [
        (lambda: svq.presets.soundstream(6, 16, num_quantizers=3), 3),
        (lambda: svq.ProductQuantizer(6, [svq.presets.ema(3, 16) for _ in range(2)]), 2),
        (lambda: svq.presets.rq_vae(6, 16, num_quantizers=4), 1),  # one codebook for all levels
    ],
)
def test_a_composite_is_found_part_by_part(composite: Callable[[], svq.Quantizer], number: int) -> None:
    whole = trained(composite)
    state = {f"q.{key}": value for key, value in whole.state_dict().items()}
    places = interop.find_quantizers(state)
    assert places == [("straightvq", f"q.parts.{each}.") for each in range(number)]
    for (layout, prefix), book in zip(places, whole.codebooks(), strict=True):
        found = interop.from_state_dict(state, layout, prefix=prefix)
        assert torch.equal(found.quantizer.codebooks()[0].codes(), book.codes())
        assert any("'q.parts.' are parts of a composite" in note for note in found.notes)
    if number > 1:
        with pytest.raises(ValueError, match=r"must hold one quantizer.*'straightvq' at 'q\.parts\.0\.', 'straightvq'"):
            interop.from_state_dict(state)


def test_a_whole_network_holds_one() -> None:
    network = Autoencoder(svq.presets.straight(4, 8, channel_dim=1), hidden=8)
    found = interop.from_state_dict(network.state_dict(), channel_dim=1)
    assert found.prefix == "quantizer."
    assert found.quantizer(torch.randn(2, 4, 3, 3)).indices.shape == (2, 3, 3)


def test_what_no_entry_tells_is_asked_for_or_said() -> None:
    layer = trained(lambda: svq.presets.vq_ste_pp(6, 16))
    with pytest.raises(ValueError, match="`lr_scale` must be given, because the codes are multiplied by it"):
        interop.from_state_dict(layer.state_dict())
    fresh = svq.presets.vq_ste_pp(6, 16)  # its map is the identity, whatever the number
    found = interop.from_state_dict(fresh.state_dict())
    assert torch.equal(found.quantizer.codebooks()[0].codes(), fresh.codes())
    assert any("has not been trained" in note for note in found.notes)
    assert any("use load_state_dict" in note for note in found.notes)
    trained_by_gradient = trained(lambda: svq.VectorQuantizer(6, svq.Codebook(16, parametrization=svq.UnitNormCodes())))
    found = interop.from_state_dict(trained_by_gradient.state_dict(), unit_norm=True)
    assert torch.equal(found.quantizer.codebooks()[0].codes(), trained_by_gradient.codebooks()[0].codes())


def test_a_parametrization_with_settings_of_its_own_is_refused() -> None:
    layer = svq.VectorQuantizer(6, svq.Codebook(16, parametrization=svq.MLP(hidden=8)))
    with pytest.raises(ValueError, match="must be Affine, RunningAffine, Linear or a Chain of them"):
        interop.from_state_dict(layer.state_dict())


def test_round_trip_through_the_names_of_the_layout() -> None:
    layer = trained(lambda: svq.presets.straight(6, 16))
    state = interop.to_state_dict(layer, "straightvq")
    assert state.keys() == layer.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    with pytest.raises(ValueError, match="the layout 'straightvq' cannot hold"):
        interop.to_state_dict(svq.presets.fsq(2, [4, 4]), "straightvq")
