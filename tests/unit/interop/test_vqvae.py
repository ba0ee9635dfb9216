"""The layout of zalandoresearch: codes, moving averages, the network around them, three real files."""

import io
from pathlib import Path

import pytest
import torch
from tests.unit.interop.same import assert_same_codes, decided
from torch import Tensor

import straightvq as svq
from straightvq import interop
from straightvq.models import VQVAENet

SHARED = Path(__file__).parents[4] / "shared"
FILES = ["cifar10_vqvae_ema", "cifar10_vqvae_ema_collapsed", "cifar10_vqvae_gradient"]


def state_of(size: int = 8, dim: int = 3, prefix: str = "_vq_vae.") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes, weights = torch.randn(size, dim, generator=generator), 1 + 9 * torch.rand(size, generator=generator)
    return {
        f"{prefix}_ema_w": codes * weights[:, None],
        f"{prefix}_ema_cluster_size": weights,
        f"{prefix}_embedding.weight": codes,
        "_pre_vq_conv.bias": torch.zeros(dim),
    }


def library_step(state: dict[str, Tensor], z: Tensor, decay: float, eps: float = 1e-5) -> Tensor:
    """The table after a training step of the library, by its formula: all in moving averages, smoothed."""
    codes = state["_vq_vae._embedding.weight"]
    one_hot = torch.nn.functional.one_hot(torch.cdist(z, codes).argmin(1), len(codes)).to(z.dtype)
    size = decay * state["_vq_vae._ema_cluster_size"] + (1 - decay) * one_hot.sum(0)
    total = size.sum()
    size = (size + eps) / (total + len(codes) * eps) * total
    return (decay * state["_vq_vae._ema_w"] + (1 - decay) * one_hot.T @ z) / size[:, None]


@pytest.mark.parametrize("prefix", ["", "_vq_vae.", "module.net.vq."])
def test_layout_is_found_at_any_prefix(prefix: str) -> None:
    state = state_of(prefix=prefix)
    found = interop.from_state_dict(state)
    assert (found.layout, found.prefix, found.others) == ("vqvae", prefix, ("_pre_vq_conv.bias",))
    codes = state[f"{prefix}_embedding.weight"]
    z = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    z = z[decided(z, codes)]
    indices = torch.cdist(z, codes).argmin(1)
    assert_same_codes(found.quantizer, z, indices, codes[indices])


def test_averages_come_along_and_the_next_step_is_the_librarys() -> None:
    state = state_of()
    layer = interop.from_state_dict(state, decay=0.9).quantizer
    assert isinstance(layer, svq.VectorQuantizer)
    before = layer.codes()
    assert torch.equal(layer.codebook.update.cluster_size, state["_vq_vae._ema_cluster_size"])
    z = torch.randn(64, 3, generator=torch.Generator().manual_seed(2))
    layer.train()(z)
    expected = library_step(state, z, 0.9)
    torch.testing.assert_close(layer.codes(), expected, rtol=0, atol=2e-5)
    # With the weight of one vector, which `set_codes` leaves, the table jumps.
    fresh = svq.VectorQuantizer(3, svq.Codebook(8, update=svq.EMAUpdate(0.9)))
    fresh.set_codes(before)
    fresh(z)
    assert (fresh.codes() - expected).abs().max() > 0.1 * (layer.codes() - before).abs().max()


def test_averages_of_another_table_are_told() -> None:
    state = state_of()
    state["_vq_vae._ema_w"][:2] += 5
    notes = interop.from_state_dict(state).notes
    assert any("2 of 8 codes" in note for note in notes)


def test_without_averages_the_codebook_learns_by_gradient() -> None:
    state = {"_embedding.weight": torch.randn(8, 3)}
    layer = interop.from_state_dict(state).quantizer
    assert isinstance(layer, svq.VectorQuantizer)
    assert isinstance(layer.codebook.update, svq.GradientUpdate)
    assert {loss.name: loss.coefficient for loss in layer.losses} == {"commitment": 0.25, "codebook": 1.0}


@pytest.mark.parametrize("keys", [["_embedding.weight"], ["_embedding.weight", "_ema_w", "_ema_cluster_size"]])
def test_round_trip(keys: list[str]) -> None:
    state = {name.removeprefix("_vq_vae."): value for name, value in state_of().items()}
    state = {name: state[name] for name in keys}
    back = interop.to_state_dict(interop.from_state_dict(state).quantizer, "vqvae")
    assert back.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(back[name], value)


def test_codes_of_every_float_dtype_are_read_and_wide_ones_stay_wide() -> None:
    for dtype, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        codes = torch.randn(8, 3).to(dtype)
        layer = interop.from_state_dict({"_embedding.weight": codes}).quantizer
        assert isinstance(layer, svq.VectorQuantizer)
        assert layer.codes().dtype == expected
        assert torch.equal(layer.codes(), codes.to(expected))


def test_importing_copies() -> None:
    state = state_of()
    before = {name: value.clone() for name, value in state.items()}
    interop.from_state_dict(state).quantizer(torch.randn(50, 3))
    assert all(torch.equal(value, before[name]) for name, value in state.items())


# --- the network around it --------------------------------------------------------------------------------------------


def test_weight_norm_is_multiplied_out_and_missing_biases_are_zero() -> None:
    v = torch.tensor([[3.0, 4.0], [0.0, 2.0]])[:, :, None, None]
    block = "_encoder._residual_stack._layers.0._block.1"
    state = {f"{block}.weight_g": torch.tensor([10.0, 1.0]).view(2, 1, 1, 1), f"{block}.weight_v": v}
    weights = interop.network_weights(state)
    assert weights["encoder.6.body.1.weight"].flatten().tolist() == [6, 8, 0, 1]
    assert weights["encoder.6.body.1.bias"].tolist() == [0, 0]


def test_rectified_skip_is_that_of_blocks_that_rectify_in_place() -> None:
    net = VQVAENet(svq.presets.vq_vae(4, 8, channel_dim=1), hidden=4, residual=2, blocks=1, rectified_skip=True)
    block = net.encoder[6]
    in_place = torch.nn.Sequential(torch.nn.ReLU(inplace=True), *block.body[1:])
    x = torch.randn(2, 4, 5, 5)
    copy = x.clone()
    out = in_place(copy)  # rectifies the copy itself
    assert torch.equal(block(x), copy + out)


def pictures() -> Tensor:
    pq = pytest.importorskip("pyarrow.parquet")
    Image = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    path = SHARED / "data" / "cifar10_png" / "test.parquet"
    if not path.exists():
        pytest.skip(f"needs the folder {path.parent}")
    rows = pq.read_table(path).column("image").to_pylist()
    images = [np.array(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows]
    return torch.stack([torch.from_numpy(image) for image in images]).permute(0, 3, 1, 2).contiguous() / 255


def network_of(name: str) -> VQVAENet:
    path = SHARED / "weights" / f"{name}.pth"
    if not path.exists():
        pytest.skip(f"needs the folder {path.parent}")
    state = interop.read_state(path)
    quantizer = interop.from_state_dict(state, channel_dim=1).quantizer
    net = VQVAENet(quantizer, rectified_skip=True).eval()
    missing, extra = net.load_state_dict(interop.network_weights(state, half_range=1.0), strict=False)
    assert not extra
    assert all(entry.startswith("quantizer.") for entry in missing)
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mse", "perplexity", "dead"),
    [(FILES[0], 3.55e-3, 430, 0), (FILES[1], 7.86e-3, 62, 443), (FILES[2], 9.40e-3, 67, 428)],
)
@torch.no_grad()
def test_trained_network_reconstructs_as_it_did(name: str, mse: float, perplexity: float, dead: int) -> None:
    net, x = network_of(name), pictures()
    assert len(x) == 1017
    outs = [net(part) for part in x.split(128)]
    error = torch.cat([out.reconstruction for out in outs]) - x
    assert error.square().mean().item() == pytest.approx(mse, abs=0.01e-3)
    counts = torch.cat([out.quantizer.indices for out in outs]).flatten().bincount(minlength=512).double()
    shares = counts / counts.sum()
    assert torch.special.entr(shares).sum().exp().item() == pytest.approx(perplexity, abs=1)
    assert int((counts == 0).sum()) == dead
    assert torch.equal(net.detokenize(net.tokenize(x[:128])), outs[0].reconstruction)


@pytest.mark.parametrize("name", FILES)
def test_real_file_holds_what_its_report_says(name: str) -> None:
    path = SHARED / "weights" / f"{name}.pth"
    if not path.exists():
        pytest.skip(f"needs the folder {path.parent}")
    found = interop.from_file(path)
    assert (found.layout, found.prefix, found.dropped) == ("vqvae", "_vq_vae.", {})
    assert not any("moving averages. The library" in note for note in found.notes)
