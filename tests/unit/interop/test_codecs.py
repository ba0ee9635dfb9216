"""The quantizers of EnCodec, DAC and Mimi as transformers has them, the first two also in their authors' names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.interop.same import assert_same_codes
from torch import Tensor, nn

import straightvq as svq
from straightvq import interop
from straightvq.testing import check_quantizer


def filled(module: nn.Module) -> nn.Module:
    """A module whose zero buffers hold numbers: no weights of a trained one are at hand."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.named_buffers():
        if name.endswith(("cluster_size", "cluster_usage")):
            value.copy_(1 + 9 * torch.rand(value.shape, generator=generator))
    for name, value in module.named_buffers():
        if name.endswith("embed"):
            value.copy_(torch.randn(value.shape, generator=generator))
        if name.endswith(("embed_avg", "embed_sum")):
            weights = module.get_buffer(
                name.rpartition(".")[0] + (".cluster_size" if "avg" in name else ".cluster_usage")
            )
            table = module.get_buffer(name.replace("embed_avg", "embed")) if "avg" in name else torch.randn(value.shape)
            value.copy_(table * weights[:, None])
    return module.eval()


def encodec(**config: Any) -> nn.Module:
    library = pytest.importorskip("transformers.models.encodec.modeling_encodec")
    settings = library.EncodecConfig(codebook_size=16, codebook_dim=6, hidden_size=6, **config)
    torch.manual_seed(0)
    return filled(library.EncodecResidualVectorQuantizer(settings))


def dac() -> nn.Module:
    library = pytest.importorskip("transformers.models.dac.modeling_dac")
    settings = library.DacConfig(codebook_size=16, codebook_dim=3, n_codebooks=4, quantizer_dropout=0.0)
    settings.hidden_size = 6
    torch.manual_seed(0)
    return library.DacResidualVectorQuantizer(settings).eval()


def mimi(**config: Any) -> nn.Module:
    library = pytest.importorskip("transformers.models.mimi.modeling_mimi")
    sizes = {"codebook_size": 16, "codebook_dim": 4, "hidden_size": 6, "num_quantizers": 5}
    settings = library.MimiConfig(**{**sizes, "vector_quantization_hidden_dimension": 4, **config})
    torch.manual_seed(0)
    return filled(library.MimiSplitResidualVectorQuantizer(settings))


LIBRARIES: dict[str, Callable[[], nn.Module]] = {"encodec": encodec, "dac": dac, "mimi": mimi}


def codes_and_decoded(name: str, module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """The library's indices (b, t, levels), and what it decodes them to, (b, channels, t)."""
    if name == "dac":
        _, indices, *_ = module(z)
        return indices.movedim(1, -1), module.from_codes(indices)[0]
    indices = module.encode(z)
    decoded = module.decode(indices.transpose(0, 1) if name == "mimi" else indices)
    return indices.movedim(0, -1), decoded


@pytest.mark.parametrize("name", LIBRARIES)
@torch.no_grad()
def test_indices_and_decode_are_the_librarys(name: str) -> None:
    module = LIBRARIES[name]()
    state = {f"quantizer.{key}": value for key, value in module.state_dict().items()}
    found = interop.from_state_dict({**state, "encoder.layers.0.conv.bias": torch.zeros(3)}, channel_dim=1)
    assert (found.layout, found.prefix, len(found.others)) == (name, "quantizer.", 1)
    z = torch.randn(2, 6, 50)
    indices, decoded = codes_and_decoded(name, module, z)
    assert_same_codes(found.quantizer, z, indices, decoded)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_prefix_of_the_levels_decodes_as_in_the_library(name: str) -> None:
    module = LIBRARIES[name]()
    quantizer = interop.from_state_dict(module.state_dict(), channel_dim=1).quantizer.eval()
    indices = quantizer.encode(torch.randn(2, 6, 50))[..., :2]
    with torch.no_grad():
        if name == "dac":
            expected = module.from_codes(indices.movedim(-1, 1))[0]
        else:
            expected = module.decode(indices.movedim(-1, 1 if name == "mimi" else 0))
    torch.testing.assert_close(quantizer.decode(indices), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LIBRARIES)
def test_round_trip(name: str) -> None:
    state = LIBRARIES[name]().state_dict()
    back = interop.to_state_dict(interop.from_state_dict(state).quantizer, name)
    assert back.keys() == state.keys()
    for entry, value in state.items():
        torch.testing.assert_close(back[entry], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_usage_comes_along(name: str) -> None:
    state = LIBRARIES[name]().state_dict()
    weights = [value for entry, value in state.items() if entry.endswith(("cluster_size", "cluster_usage"))]
    books = interop.from_state_dict(state).quantizer.codebooks()
    for book, weight in zip(books, weights, strict=True):
        assert isinstance(book.update, svq.EMAUpdate)
        assert book.update.decay == 0.99
        assert torch.equal(book.update.cluster_size, weight)


def test_next_step_of_encodec_is_its_formula() -> None:
    state = encodec().state_dict()
    levels = interop.from_state_dict(state, decay=0.9).quantizer.train().levels
    z = torch.randn(100, 6)
    for number in (0, 3):  # each on its own: what a later level sees depends on the codes before it
        at = f"layers.{number}.codebook."
        one_hot = torch.nn.functional.one_hot(torch.cdist(z, state[at + "embed"]).argmin(1), 16).float()
        size = 0.9 * state[at + "cluster_size"] + 0.1 * one_hot.sum(0)
        sums = 0.9 * state[at + "embed_avg"] + 0.1 * one_hot.T @ z
        total = size.sum()
        expected = sums / ((size + 1e-5) / (total + 16e-5) * total)[:, None]
        levels[number](z)
        assert (expected - state[at + "embed"]).abs().max() > 0.1
        torch.testing.assert_close(levels[number].codes(), expected, rtol=0, atol=1e-4)


def test_encodec_of_its_authors_has_other_names() -> None:
    state = encodec().state_dict()
    theirs = {f"quantizer.vq.{name.replace('.codebook.', '._codebook.')}": value for name, value in state.items()}
    found = interop.from_state_dict(theirs)
    assert (found.layout, found.prefix) == ("encodec", "quantizer.vq.")
    assert torch.equal(found.quantizer.codebooks()[2].codes(), state["layers.2.codebook.embed"])


@pytest.mark.parametrize(
    "names", [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
)
def test_weight_norm_of_dac_is_multiplied_out(names: tuple[str, str]) -> None:
    state = {}
    for entry, value in dac().state_dict().items():
        if entry.endswith("_proj.weight"):
            length = value.flatten(1).norm(dim=1)[:, None, None]
            at = entry.removesuffix("weight")
            state |= {at + names[0]: length, at + names[1]: 3 * value / length}
        else:
            state[entry] = value
    found = interop.from_state_dict(state)
    plain = interop.from_state_dict(dac().state_dict())
    z = torch.randn(5, 6)
    torch.testing.assert_close(found.quantizer(z).quantized, plain.quantizer(z).quantized)


def test_losses_of_dac_are_the_librarys() -> None:
    module = dac()
    quantizer = interop.from_state_dict(module.state_dict(), channel_dim=1).quantizer
    z = torch.randn(2, 6, 50)
    *_, commitment, codebook = module(z)
    terms = quantizer(z).terms
    torch.testing.assert_close(terms["commitment"], commitment.mean())
    torch.testing.assert_close(terms["codebook"], codebook.mean())


def test_gradient_of_dac_is_the_librarys() -> None:
    module = dac()
    quantizer = interop.from_state_dict(module.state_dict(), channel_dim=1).quantizer
    z, weights = torch.randn(2, 6, 50), torch.randn(2, 6, 50)
    gradients = []
    for forward in (lambda x: module(x)[0], lambda x: quantizer(x).quantized):
        x = z.clone().requires_grad_()
        (forward(x) * weights).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


# --- the split quantizer ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_mimi_without_projections() -> None:
    module = mimi(codebook_dim=6, vector_quantization_hidden_dimension=6)
    quantizer = interop.from_state_dict(module.state_dict(), channel_dim=1).quantizer
    z = torch.randn(2, 6, 50)
    indices, decoded = codes_and_decoded("mimi", module, z)
    assert_same_codes(quantizer, z, indices, decoded)


def split() -> interop.SplitQuantizer:
    return interop.SplitQuantizer(6, [svq.presets.ema(6, 8), svq.presets.soundstream(6, 8, num_quantizers=2)])


@pytest.mark.slow
def test_split_quantizer_keeps_the_laws() -> None:
    check_quantizer(split)


def test_split_quantizer_adds_the_codes_losses_and_gradients_of_its_branches() -> None:
    quantizer = split().eval()
    first, second = quantizer.branches
    z = torch.randn(10, 6)
    weights = torch.randn(10, 6)
    results = []

    def naive(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = first(x), second(x)
        return a.quantized + b.quantized, a.loss + b.loss

    for forward in (lambda x: quantizer(x)[0::2], naive):
        x = z.clone().requires_grad_()
        quantized, loss = forward(x)
        ((quantized * weights).sum() + loss).backward()
        results.append((quantized, loss, x.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)
    indices = quantizer(z).indices
    torch.testing.assert_close(quantizer.decode(indices[:, :1]), first.decode(indices[:, 0]))


def test_split_quantizer_refuses_branches_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"must have the width 6\. Got 4 at branch 1"):
        interop.SplitQuantizer(6, [svq.presets.ema(6, 8), svq.presets.ema(4, 8)])
    with pytest.raises(TypeError, match="must be a quantizer or a list"):
        interop.SplitQuantizer(6, [])
