"""Our quantizers inside other libraries' networks: their calls, their shapes, their losses, one changed line."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.unit.interop.test_codecs import codes_and_decoded, dac, encodec, mimi
from torch import Tensor, nn

import straightvq as svq

DIM, SIZE = 8, 16


def both(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The library's layer, and ours in the place of a copy."""
    return module, svq.replace(copy.deepcopy(module))


def assert_alike(ours: Any, theirs: Any) -> None:
    """The same kind of tuple, of tensors of the same shapes and dtypes, and of nearly the same values."""
    assert len(ours) == len(theirs)
    for own, their in zip(ours, theirs, strict=True):
        if isinstance(their, tuple):
            assert_alike(own, their)
        elif their is None:
            assert own is None
        else:
            assert (own.shape, own.dtype) == (their.shape, their.dtype)
            torch.testing.assert_close(own, their, rtol=1e-4, atol=1e-5)


# --- vector-quantize-pytorch ------------------------------------------------------------------------------------------

TOKENS, IMAGE = (2, 10, DIM), (2, DIM, 3, 4)
LAYERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "plain": ("VectorQuantize", {"dim": DIM, "codebook_size": SIZE}, TOKENS),
    "one_token": ("VectorQuantize", {"dim": DIM, "codebook_size": SIZE}, (10, DIM)),
    "image": ("VectorQuantize", {"dim": DIM, "codebook_size": SIZE, "accept_image_fmap": True}, IMAGE),
    "channels_first": ("VectorQuantize", {"dim": DIM, "codebook_size": SIZE, "channel_last": False}, (2, DIM, 10)),
    "heads": ("VectorQuantize", {"dim": DIM, "codebook_size": SIZE, "heads": 2, "codebook_dim": 4}, TOKENS),
    "cosine": ("VectorQuantize", {"dim": DIM, "codebook_size": SIZE, "use_cosine_sim": True}, TOKENS),
    "weighted": ("VectorQuantize", {"dim": DIM, "codebook_size": SIZE, "commitment_weight": 0.25}, TOKENS),
    "residual": ("ResidualVQ", {"dim": DIM, "codebook_size": SIZE, "num_quantizers": 3}, TOKENS),
    "grouped": ("GroupedResidualVQ", {"dim": DIM, "codebook_size": SIZE, "num_quantizers": 3, "groups": 2}, TOKENS),
    "simvq": ("SimVQ", {"dim": DIM, "codebook_size": SIZE, "commitment_weight": 0.5}, TOKENS),
    "simvq_image": ("SimVQ", {"dim": DIM, "codebook_size": SIZE, "channel_first": True}, IMAGE),
    "fsq": ("FSQ", {"levels": [8, 5, 5], "dim": DIM}, TOKENS),
    "fsq_image": ("FSQ", {"levels": [8, 5, 5], "dim": DIM}, IMAGE),
    "fsq_two": ("FSQ", {"levels": [5, 5], "num_codebooks": 2}, (2, 10, 4)),
    "lfq": ("LFQ", {"codebook_size": SIZE, "dim": DIM}, TOKENS),
    "lfq_image": ("LFQ", {"codebook_size": SIZE, "dim": DIM}, IMAGE),
    "bsq": ("LFQ", {"codebook_size": SIZE, "spherical": True}, (2, 10, 4)),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_call_gives_what_the_librarys_gives(name: str, training: bool) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    kind, settings, shape = LAYERS[name]
    torch.manual_seed(0)
    module = getattr(vqp, kind)(**settings)
    module.train()(torch.randn(shape))  # so that averages and codes have moved
    theirs, ours = both(module.train(training))
    assert ours.training == training
    x = torch.randn(shape)
    before = theirs(x)
    if not training:
        assert_alike(ours(x), before)
    else:
        # The library returns codes of before its step, ours those of after it: shapes and indices agree.
        out = ours(x)
        assert [(o.shape, o.dtype) for o in out] == [(b.shape, b.dtype) for b in before]
        first = (slice(None),) if "residual" not in name else (..., 0)
        if name != "grouped":
            assert torch.equal(out[1][first], before[1][first])


def test_script_trains_with_one_changed_line() -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(6, DIM), nn.Linear(DIM, 6)
            self.quantizer = vqp.VectorQuantize(DIM, SIZE, kmeans_init=True, threshold_ema_dead_code=2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            quantized, _, loss = self.quantizer(self.encoder(x))
            return self.decoder(quantized), loss

    def last_error(change: Callable[[nn.Module], nn.Module]) -> float:
        torch.manual_seed(0)
        net = change(Net())
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        x = torch.randn(4, 32, 6)
        for _ in range(60):
            reconstruction, loss = net(x)
            error = F.mse_loss(reconstruction, x)
            optimizer.zero_grad()
            (error + loss).backward()
            optimizer.step()
        return error.item()

    assert last_error(svq.replace) < 1.3 * last_error(lambda net: net) < 0.8


def test_codebook_that_waits_for_its_first_batch_still_does() -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    layer = svq.replace(vqp.VectorQuantize(DIM, SIZE, kmeans_init=True))
    x = 5 + torch.randn(4, 64, DIM)
    _, indices, _ = layer(x)
    assert layer.codebook.mean() > 4
    assert len(indices.unique()) > SIZE // 2


def test_frozen_codebook_stays_frozen() -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    layer = svq.replace(vqp.VectorQuantize(DIM, SIZE, freeze_codebook=True))
    before = layer.codebook
    layer(torch.randn(TOKENS))
    assert torch.equal(layer.codebook, before)


def test_dropout_of_levels_is_drawn_for_the_whole_batch_as_there() -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    settings = {"dim": DIM, "codebook_size": SIZE, "num_quantizers": 4, "quantize_dropout": True}
    theirs, ours = both(vqp.ResidualVQ(**settings, quantize_dropout_cutoff_index=1, quantize_dropout_multiple_of=2))
    for seed in range(8):
        x = torch.randn(TOKENS)
        their, own = (layer(x, rand_quantize_dropout_fixed_seed=seed) for layer in (theirs, ours))
        assert torch.equal(own[1] < 0, their[1] < 0)
        assert torch.equal(own[2] == 0, their[2] == 0)


@pytest.mark.parametrize("name", ["plain", "projected", "cosine", "heads", "straight_through", "simvq"])
def test_gradient_of_the_encoder_is_the_librarys(name: str) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    settings: dict[str, Any] = {
        "projected": {"codebook_dim": 3}, "cosine": {"use_cosine_sim": True},
        "heads": {"heads": 2, "codebook_dim": 4}, "straight_through": {"rotation_trick": False},
    }.get(name, {})  # fmt: skip
    torch.manual_seed(0)
    module = (vqp.SimVQ if name == "simvq" else vqp.VectorQuantize)(DIM, SIZE, **settings)
    theirs, ours = both(module)
    ours.quantizer.freeze()
    frozen = {} if name == "simvq" else {"freeze_codebook": True}
    x, weights, gradients = torch.randn(TOKENS), torch.randn(TOKENS), []
    for call in (lambda z: theirs(z, **frozen), ours):
        z = x.clone().requires_grad_()
        quantized, _, loss = call(z)
        ((quantized * weights).sum() + loss).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_entropy_loss_has_its_name() -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    weights = {"entropy_loss_weight": 0.3, "diversity_gamma": 0.5, "commitment_loss_weight": 0.7}
    theirs, ours = both(vqp.LFQ(codebook_size=SIZE, dim=DIM, **weights))
    x = 0.05 * torch.randn(TOKENS)
    torch.testing.assert_close(ours(x).entropy_aux_loss, theirs(x).entropy_aux_loss, rtol=2e-2, atol=2e-3)


def test_mask_and_indices_go_through() -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    theirs, ours = both(vqp.VectorQuantize(DIM, SIZE).eval())
    x, mask = torch.randn(TOKENS), torch.arange(10).expand(2, -1) < torch.tensor([[4], [10]])
    torch.testing.assert_close(ours(x, mask=mask)[0], theirs(x, mask=mask)[0])
    indices = ours(x)[1]
    torch.testing.assert_close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices))
    torch.testing.assert_close(ours.codebook, theirs.codebook)
    with pytest.raises(ValueError, match="`topk` must be left out"):
        ours(x, topk=2)


OFF: dict[str, tuple[str, dict[str, Any]]] = {
    "orthogonal": ("has_codebook_orthogonal_loss", {"orthogonal_reg_weight": 1.0}),
    "diversity": ("has_codebook_diversity_loss", {"codebook_diversity_loss_weight": 1.0}),
    "sampling": ("stochastic", {"stochastic_sample_codes": True}),
    "affine": ("affine_param", {"affine_param": True}),
    "sync": ("sync_update_v", {"sync_update_v": 0.5, "learnable_codebook": True, "ema_update": False}),
    "three_axes": ("accept_3d_fmap", {"accept_3d_fmap": True}),
}


@pytest.mark.parametrize("name", OFF)
def test_option_without_a_part_here_is_refused_and_nothing_is_changed(name: str) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    words, settings = OFF[name]
    net = nn.Sequential(vqp.VectorQuantize(DIM, SIZE), vqp.VectorQuantize(DIM, SIZE, **settings))
    before = list(net)
    with pytest.raises(ValueError, match=f"`{words}` of VectorQuantize must be switched off"):
        svq.replace(net)
    assert list(net) == before


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("sane", [False, True])
def test_diffusers_quantizer(legacy: bool, sane: bool) -> None:
    library = pytest.importorskip("diffusers.models.autoencoders.vae")
    theirs, ours = both(library.VectorQuantizer(32, 4, beta=0.3, legacy=legacy, sane_index_shape=sane))
    z = torch.randn(2, 4, 5, 6)
    gradients = []
    for layer in (theirs, ours):
        x = z.clone().requires_grad_()
        quantized, loss, _ = layer(x)
        (quantized.square().sum() + loss).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(ours.quantizer.codebook.raw.grad, theirs.embedding.weight.grad)
    assert_alike(ours(z), theirs(z))
    flat = theirs(z)[2][2].flatten()
    for shape in ((2, 5, 6, 4), None):
        torch.testing.assert_close(ours.get_codebook_entry(flat, shape), theirs.get_codebook_entry(flat, shape))


@torch.no_grad()
def test_whole_model_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(norm_num_groups=32).eval()
    images = torch.randn(1, 3, 16, 16)
    before = model(images).sample
    assert svq.replace(model) is model
    assert isinstance(model.quantize.quantizer, svq.VectorQuantizer)
    torch.testing.assert_close(model(images).sample, before, rtol=1e-4, atol=1e-4)


class VectorQuantizerEMA(nn.Module):
    """The layer that the notebook of zalandoresearch made popular, by its names, with the formulas of its paper."""

    def __init__(self, size: int, dim: int, commitment_cost: float, decay: float) -> None:
        super().__init__()
        self._commitment_cost, self._decay, self._epsilon = commitment_cost, decay, 1e-5
        self._embedding = nn.Embedding(size, dim)
        self.register_buffer("_ema_cluster_size", torch.rand(size) + 1)
        self._ema_w = nn.Parameter(self._embedding.weight.detach() * self._ema_cluster_size[:, None])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = z.movedim(1, -1).flatten(0, -2)
        indices = torch.cdist(rows, self._embedding.weight).argmin(1)
        encodings = F.one_hot(indices, self._embedding.num_embeddings).to(z.dtype)
        quantized = self._embedding(indices).view(*z.movedim(1, -1).shape).movedim(-1, 1)
        loss = self._commitment_cost * (quantized.detach() - z).square().mean()
        shares = encodings.mean(0)
        perplexity = torch.exp(-(shares * torch.log(shares + 1e-10)).sum())
        return loss, z + (quantized - z).detach(), perplexity, encodings


def test_copied_vqvae_layer() -> None:
    torch.manual_seed(0)
    theirs, ours = both(VectorQuantizerEMA(SIZE, 4, 0.4, 0.95))
    z = torch.randn(2, 4, 5, 6)
    assert_alike(ours.eval()(z), theirs(z))
    update = ours.quantizer.codebook.update
    assert isinstance(update, svq.EMAUpdate)
    assert update.decay == 0.95


# --- sound ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encodec", "mimi"])
@torch.no_grad()
def test_codec_encodes_and_decodes_as_before(name: str) -> None:
    theirs, ours = both({"encodec": encodec, "mimi": mimi}[name]())
    z = torch.randn(2, 6, 40)
    assert_alike(codes_and_decoded(name, ours, z), codes_and_decoded(name, theirs, z))
    if name == "mimi":
        assert torch.equal(ours.encode(z, 3), theirs.encode(z, 3))
    else:
        for bandwidth in (None, 0.0, 0.7, 1.5):
            assert torch.equal(ours.encode(z, bandwidth), theirs.encode(z, bandwidth))


@torch.no_grad()
def test_dac_gives_all_five_as_before() -> None:
    theirs, ours = both(dac())
    z = torch.randn(2, 6, 40)
    for number in (None, 2):
        own, their = ours(z, number), theirs(z, number)
        assert_alike(own, their)
        assert_alike(ours.from_codes(own[1]), theirs.from_codes(their[1]))


def test_dac_trains_with_dropout_of_levels() -> None:
    module = dac()
    module.quantizer_dropout = 0.5
    ours = svq.replace(module).train()
    quantized, codes, latents, commitment, codebook = ours(torch.randn(4, 6, 40))
    assert (codes[2:] >= 0).all()
    assert (quantized.shape, latents.shape) == ((4, 6, 40), (4, 12, 40))
    (quantized.square().mean() + (commitment + codebook).mean()).backward()
    assert all(p.grad is not None for p in ours.parameters())


# --- all of them ------------------------------------------------------------------------------------------------------


def test_nothing_to_replace_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`model` must hold a known quantizer, of 'vqp'.* Got Linear\."):
        svq.replace(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a quantizer of the layout 'dac'"):
        svq.replace(VectorQuantizerEMA(8, 2, 0.25, 0.9), "dac")
    with pytest.raises(ValueError, match="`layout` must be one of"):
        svq.replace(nn.Linear(2, 2), "nothing")
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        svq.replace(3)


def test_layer_that_serves_twice_is_replaced_once() -> None:
    layer = VectorQuantizerEMA(8, 2, 0.25, 0.9)
    net = nn.ModuleDict({"a": nn.ModuleList([layer]), "b": layer}).double()
    svq.replace(net)
    assert net["a"][0] is net["b"]
    assert net["b"].quantizer.codes().dtype == torch.float64


def test_replaced_network_is_copied_saved_and_loaded(tmp_path: Any) -> None:
    net = nn.Sequential(svq.replace(VectorQuantizerEMA(8, 2, 0.25, 0.9)))
    twin = copy.deepcopy(net)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    net(torch.randn(4, 2, 5))
    twin.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    assert not torch.equal(net[0].quantizer.codes(), twin[0].quantizer.codes())


def test_draws_come_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    vqp = pytest.importorskip("vector_quantize_pytorch")
    layer = svq.replace(vqp.ResidualVQ(dim=DIM, codebook_size=SIZE, num_quantizers=4, quantize_dropout=True))

    def kept() -> list[int]:
        torch.manual_seed(3)
        return [int((layer(torch.randn(TOKENS))[1][0, 0] >= 0).sum()) for _ in range(6)]

    first = kept()
    random.seed(11)
    assert kept() == first
