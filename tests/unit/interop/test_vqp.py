"""Live layers of vector-quantize-pytorch: the same indices, the same decode, the same next step, and back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.interop.same import assert_same_codes
from torch import Tensor, nn

import straightvq as svq
from straightvq import interop

vqp = pytest.importorskip("vector_quantize_pytorch")

DIM, SIZE = 8, 16


def trained(make: Callable[[], nn.Module], steps: int = 4, shape: tuple[int, ...] = (4, 16, DIM)) -> nn.Module:
    """A layer after some training steps, so that its moving averages are no longer those of the start."""
    torch.manual_seed(0)
    module = make().train()
    for _ in range(steps):
        module(torch.randn(shape))
    return module


LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "euclidean": (lambda: vqp.VectorQuantize(DIM, SIZE), {}),
    "cosine": (lambda: vqp.VectorQuantize(DIM, SIZE, use_cosine_sim=True), {}),
    "projection": (lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=3), {}),
    "projection_cosine": (lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=3, use_cosine_sim=True), {}),
    "heads": (lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=4, heads=2), {"dim": DIM}),
    "heads_cosine": (lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=4, heads=2, use_cosine_sim=True), {"dim": DIM}),
    "heads_projection": (lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=3, heads=2), {}),
    "heads_separate": (
        lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=4, heads=2, separate_codebook_per_head=True), {}
    ),
    "heads_separate_projection": (
        lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=3, heads=2, separate_codebook_per_head=True), {}
    ),
    "residual": (lambda: vqp.ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=SIZE), {}),
    "residual_projection": (
        lambda: vqp.ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=SIZE, codebook_dim=4), {}
    ),
    "residual_shared": (
        lambda: vqp.ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=SIZE, shared_codebook=True), {}
    ),
    "residual_cosine": (lambda: vqp.ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=SIZE, use_cosine_sim=True), {}),
    "residual_sizes": (lambda: vqp.ResidualVQ(dim=DIM, codebook_size=(16, 8, 4)), {}),
}  # fmt: skip
NAMES = {name: "vqp.residual" if "residual" in name else "vqp" for name in LAYERS}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_indices_and_decode_are_the_librarys(name: str) -> None:
    make, settings = LAYERS[name]
    module = trained(make).eval()
    found = interop.from_state_dict(module.state_dict(), **settings)
    assert (found.layout, found.others) == (NAMES[name], ())
    z = torch.randn(3, 50, DIM)
    quantized, indices, *_ = module(z)
    assert_same_codes(found.quantizer, z, indices, quantized)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_back_into_the_librarys_own_layer(name: str) -> None:
    make, settings = LAYERS[name]
    module = trained(make).eval()
    quantizer = interop.from_state_dict(module.state_dict(), **settings).quantizer
    torch.manual_seed(5)
    fresh = make().eval()
    state = interop.to_state_dict(quantizer, NAMES[name])
    fresh.load_state_dict(state)
    z = torch.randn(3, 50, DIM)
    assert torch.equal(fresh(z)[1], module(z)[1])
    torch.testing.assert_close(fresh(z)[0], module(z)[0], rtol=0, atol=1e-6)
    for entry, value in module.state_dict().items():
        if "cosine" not in name:
            torch.testing.assert_close(state[entry], value, rtol=1e-4, atol=1e-4)


def tables(quantizer: svq.Quantizer) -> list[Tensor]:
    return [book.codes() for book in quantizer.codebooks()]


@pytest.mark.parametrize("name", ["euclidean", "cosine", "heads_separate", "residual", "heads", "residual_cosine"])
def test_next_training_step_moves_the_codes_as_the_librarys_does(name: str) -> None:
    make, settings = LAYERS[name]
    module = trained(make)
    quantizer = interop.from_state_dict(module.state_dict(), **settings).quantizer.train()
    before = tables(quantizer)
    z = torch.randn(4, 64, DIM)
    rest = z
    if isinstance(quantizer, svq.ResidualQuantizer):
        # Later levels see what is left of the codes after their step here, and before it there.
        for level in quantizer.levels:
            left = level.eval()(rest).quantized
            level.train()(rest)
            rest = rest - left
    else:
        quantizer(z)
    module(z)
    books = [part.embed for part in module.modules() if type(part).__name__ == "Codebook"]
    library = [codes for embed in books for codes in embed]
    for old, ours, theirs in zip(before, tables(quantizer), library, strict=True):
        move = (theirs - old).abs().max()
        assert move > 0.05
        # Codes whose weight is small feel the library's smoothing.
        assert (ours - theirs).abs().max() < 2e-3 * move


def test_gradient_of_residual_levels_is_passed_once_here_and_once_per_level_there() -> None:
    module = vqp.ResidualVQ(dim=DIM, num_quantizers=3, codebook_size=SIZE, rotation_trick=False)
    found = interop.from_state_dict(module.state_dict())
    assert any("3 times in all; here once" in note for note in found.notes)
    x = torch.randn(2, 5, DIM, requires_grad=True)
    (theirs,) = torch.autograd.grad(module.train()(x)[0].sum(), x)
    (ours,) = torch.autograd.grad(found.quantizer(x).quantized.sum(), x)
    torch.testing.assert_close(theirs, 3 * ours)


def test_number_of_heads_and_decay_are_told_when_they_are_guessed() -> None:
    module = trained(LAYERS["euclidean"][0])
    notes = " ".join(interop.from_state_dict(module.state_dict()).notes)
    assert "one of width 8" in notes
    assert "the library's default, 0.8" in notes
    notes = " ".join(interop.from_state_dict(module.state_dict(), dim=DIM, decay=0.5).notes)
    assert "one of width" not in notes
    assert "default" not in notes


def test_next_step_without_the_weights_would_be_another() -> None:
    module = trained(LAYERS["euclidean"][0])
    state = module.state_dict()
    layer = interop.from_state_dict(state).quantizer.train()
    layer.codebooks()[0].update.cluster_size.fill_(1)
    before, z = tables(layer)[0], torch.randn(4, 64, DIM)
    module(z)
    layer(z)
    theirs = module.codebook
    assert (tables(layer)[0] - theirs).abs().max() > 0.1 * (theirs - before).abs().max()


def test_commitment_loss_is_the_librarys() -> None:
    for name in ("euclidean", "cosine", "projection_cosine"):
        module = trained(LAYERS[name][0])
        module.freeze_codebook = True
        quantizer = interop.from_state_dict(module.state_dict()).quantizer.train()
        quantizer.freeze()
        z = torch.randn(4, 16, DIM)
        torch.testing.assert_close(quantizer(z).loss, module(z)[2].reshape(()))


def test_table_learned_by_gradient_is_told_from_averages() -> None:
    module = vqp.VectorQuantize(DIM, SIZE, learnable_codebook=True, ema_update=False)
    with torch.no_grad():
        module._codebook.embed.add_(torch.randn(1, SIZE, DIM))
    layer = interop.from_state_dict(module.state_dict()).quantizer
    assert isinstance(layer.codebooks()[0].update, svq.GradientUpdate)
    assert isinstance(
        interop.from_state_dict(trained(LAYERS["euclidean"][0]).state_dict()).quantizer.codebooks()[0].update,
        svq.EMAUpdate,
    )


@torch.no_grad()
def test_grouped_residual_gives_the_librarys_indices_in_our_order() -> None:
    module = trained(lambda: vqp.GroupedResidualVQ(dim=DIM, groups=2, num_quantizers=3, codebook_size=SIZE)).eval()
    found = interop.from_state_dict(module.state_dict())
    assert found.layout == "vqp.grouped_residual"
    z = torch.randn(3, 20, DIM)
    quantized, indices, _ = module(z)
    assert_same_codes(found.quantizer, z, indices.movedim(0, -1).flatten(-2), quantized)
    state = interop.to_state_dict(found.quantizer, "vqp.grouped_residual")
    module.load_state_dict(state)
    assert torch.equal(module(z)[1], indices)


# --- without a table --------------------------------------------------------------------------------------------------

FREE: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "fsq": (lambda: vqp.FSQ([8, 5, 5, 5]), "vqp.fsq", {"levels": [8, 5, 5, 5]}),
    "fsq_even": (lambda: vqp.FSQ([4, 4, 6, 6]), "vqp.fsq", {"levels": [4, 4, 6, 6]}),
    "fsq_projection": (lambda: vqp.FSQ([8, 5, 5], dim=DIM), "vqp.fsq", {"levels": [8, 5, 5]}),
    "fsq_without_bias": (
        lambda: vqp.FSQ([8, 5, 5], dim=DIM, projection_has_bias=False), "vqp.fsq", {"levels": [8, 5, 5]}
    ),
    "fsq_symmetric": (
        lambda: vqp.FSQ([2, 3, 4, 5], preserve_symmetry=True), "vqp.fsq", {"levels": [2, 3, 4, 5], "symmetric": True}
    ),
    "fsq_two": (lambda: vqp.FSQ([4, 5], num_codebooks=2), "vqp.fsq", {"levels": [4, 5], "dim": 4}),
    "fsq_two_projection": (lambda: vqp.FSQ([4, 5], num_codebooks=2, dim=DIM), "vqp.fsq", {"levels": [4, 5]}),
    "lfq": (lambda: vqp.LFQ(codebook_size=16), "vqp.lfq", {}),
    "lfq_projection": (lambda: vqp.LFQ(codebook_size=32, dim=DIM), "vqp.lfq", {}),
    "lfq_two": (lambda: vqp.LFQ(codebook_size=16, num_codebooks=2), "vqp.lfq", {"dim": 8}),
    "lfq_two_projection": (lambda: vqp.LFQ(codebook_size=16, num_codebooks=2, dim=6), "vqp.lfq", {}),
    "bsq": (lambda: vqp.LFQ(codebook_size=16, spherical=True), "vqp.bsq", {}),
    "bsq_projection": (lambda: vqp.LFQ(codebook_size=32, dim=DIM, spherical=True), "vqp.bsq", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
@torch.no_grad()
def test_without_a_table_indices_decode_and_round_trip(name: str) -> None:
    make, layout, settings = FREE[name]
    torch.manual_seed(0)
    module = make().eval()
    state = module.state_dict()
    quantizer = interop.from_state_dict(state, None if layout == "vqp.lfq" else layout, **settings).quantizer
    z = 2 * torch.randn(3, 200, module.dim)
    quantized, indices, *_ = module(z)
    assert_same_codes(quantizer, z, indices.long(), quantized)
    back = interop.to_state_dict(quantizer, layout)
    assert {name: value.shape for name, value in state.items()}.items() <= {n: v.shape for n, v in back.items()}.items()
    for entry, value in state.items():
        torch.testing.assert_close(back[entry], value)


def test_gradient_of_fsq_is_the_librarys() -> None:
    module = vqp.FSQ([8, 5, 4, 3])
    quantizer = interop.from_state_dict({}, "vqp.fsq", levels=[8, 5, 4, 3]).quantizer
    z = torch.randn(2, 30, 4)
    weights = torch.randn(2, 30, 4)
    gradients = []
    for forward in (lambda x: module(x)[0], lambda x: quantizer(x).quantized):
        x = z.clone().requires_grad_()
        (forward(x) * weights).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_loss_of_lfq_is_the_librarys() -> None:
    module = vqp.LFQ(codebook_size=16).train()
    quantizer = interop.from_state_dict(module.state_dict()).quantizer.train()
    z = 0.02 * torch.randn(2, 30, 4)
    torch.testing.assert_close(quantizer(z).loss, module(z).entropy_aux_loss, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_simvq_is_a_fixed_table_behind_a_map(bias: bool) -> None:
    torch.manual_seed(0)
    module = vqp.SimVQ(DIM, SIZE, codebook_transform=nn.Linear(DIM, DIM, bias=bias), rotation_trick=False)
    found = interop.from_state_dict(module.state_dict())
    assert found.layout == "vqp.simvq"
    quantizer = found.quantizer
    z = torch.randn(3, 50, DIM)
    with torch.no_grad():
        quantized, indices, _ = module(z)
    assert_same_codes(quantizer, z, indices, quantized)
    gradients = []
    for layer, weight in ((module, module.code_transform.weight), (quantizer.train(), None)):
        x = z.clone().requires_grad_()
        out = layer(x)
        (out[0].square().sum() + out[2]).backward()
        own = quantizer.codebooks()[0].parametrization.weight if weight is None else weight
        gradients.append((x.grad, own.grad, out[2].detach()))
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    back = interop.to_state_dict(quantizer, "vqp.simvq")
    assert back.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(back[name], value)


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "layer_norm": (
        lambda: vqp.VectorQuantize(DIM, SIZE, codebook_dim=3, layernorm_after_project_in=True), {}, "layernorm_after"
    ),
    "affine": (lambda: trained(lambda: vqp.VectorQuantize(DIM, SIZE, affine_param=True)), {}, "affine_param cannot"),
    "bridge": (lambda: vqp.VectorQuantize(DIM, SIZE, vq_bridge=nn.Linear(DIM, DIM)), {}, "vq_bridge"),
    "implicit": (
        lambda: vqp.ResidualVQ(dim=DIM, num_quantizers=2, codebook_size=SIZE, implicit_neural_codebook=True),
        {}, "implicit_neural_codebook",
    ),
    "rotation": (lambda: vqp.FSQ([5, 5], orthogonal_rotation=True), {"layout": "vqp.fsq", "levels": [5, 5]}, "fixed"),
    "unstarted": (lambda: vqp.VectorQuantize(DIM, SIZE, kmeans_init=True), {}, "must have been started"),
    "simvq": (
        lambda: vqp.SimVQ(DIM, SIZE, codebook_transform=nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU())),
        {}, "a network in the place",
    ),
    "simvq_width": (lambda: vqp.SimVQ(DIM, SIZE, frozen_codebook_dim=4), {}, r"of the shape \(4, 4\)"),
    "no_levels": (lambda: vqp.FSQ([5, 5]), {"layout": "vqp.fsq"}, "`levels` must be given"),
    "wrong_dim": (lambda: vqp.VectorQuantize(DIM, SIZE), {"dim": DIM + 1}, "`dim` must be a multiple"),
    "useless": (lambda: vqp.VectorQuantize(DIM, SIZE), {"levels": [5, 5]}, "`levels` must be left out"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(name: str) -> None:
    make, settings, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        interop.from_state_dict(make().state_dict(), **settings)
