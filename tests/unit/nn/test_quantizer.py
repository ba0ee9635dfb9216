import contextlib
import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import straightvq as svq


def test_bypass_reaches_every_quantizer_inside_and_ends_with_its_block() -> None:
    net = nn.Sequential(svq.presets.vq_vae(4, 8), nn.ModuleDict({"inner": svq.presets.ema(4, 8)}))
    inner = net[1]["inner"]
    z = torch.randn(5, 4)
    with svq.bypass(net):
        assert torch.equal(net[0](z).quantized, z)
        assert torch.equal(inner(z).quantized, z)
    assert (net[0](z).indices >= 0).all()


def test_bypass_ends_with_an_exception() -> None:
    layer = svq.presets.vq_vae(4, 8)
    with pytest.raises(RuntimeError, match="stop"), svq.bypass(layer):
        raise RuntimeError("stop")
    assert (layer(torch.randn(3, 4)).indices >= 0).all()


def test_bypass_nests_and_survives_an_exception() -> None:
    layer = svq.presets.vq_vae(4, 8)
    with svq.bypass(layer):
        with svq.bypass(layer):
            pass
        assert (layer(torch.randn(3, 4)).indices == -1).all()
        with pytest.raises(RuntimeError, match="stop"), svq.bypass(layer):
            raise RuntimeError("stop")
        assert (layer(torch.randn(3, 4)).indices == -1).all()
    assert (layer(torch.randn(3, 4)).indices >= 0).all()


def test_bypass_still_checks_its_input() -> None:
    layer = svq.presets.vq_vae(4, 8)
    with svq.bypass(layer), pytest.raises(ValueError, match="4 channels"):
        layer(torch.randn(3, 5))


def test_bypassed_loss_is_connected_like_any_other() -> None:
    layer = svq.presets.vq_vae(4, 8)
    z = torch.randn(3, 4, requires_grad=True)
    with svq.bypass(layer):
        layer(z).loss.backward()
    assert z.grad is not None
    assert (z.grad == 0).all()


def test_bypassed_image_has_indices_without_the_channel_axis() -> None:
    layer = svq.presets.vq_vae(4, 8, channel_dim=1)
    z = torch.randn(2, 4, 3, 5)
    with svq.bypass(layer):
        out = layer(z)
    assert out.indices.shape == layer(z).indices.shape == (2, 3, 5)
    assert set(out.terms) == {"commitment", "codebook"}


def test_output_unpacks_in_the_documented_order() -> None:
    out = svq.presets.vq_vae(4, 8)(torch.randn(3, 4))
    quantized, indices, loss, terms = out
    assert quantized is out.quantized
    assert indices is out.indices
    assert loss is out.loss
    assert terms is out.terms
    assert out._fields == ("quantized", "indices", "loss", "terms")


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis_may_hold_the_channels(axis: int) -> None:
    torch.manual_seed(0)
    layer = svq.presets.vq_vae(4, 8, channel_dim=axis).eval()
    last = torch.randn(3, 5, 4)
    z = last.movedim(-1, axis)
    out = layer(z)
    plain = svq.presets.vq_vae(4, 8).eval()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(out.indices, plain(last).indices)
    assert torch.equal(out.quantized.movedim(axis, -1), plain(last).quantized)


def test_non_contiguous_inputs_are_taken() -> None:
    layer = svq.presets.straight(4, 8).eval()
    z = torch.randn(6, 8)[::2, ::2]
    assert torch.equal(layer(z).indices, layer(z.contiguous()).indices)


def test_bypass_is_transform_and_inverse_without_the_codes() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(6, svq.Codebook(8), transform=svq.Projection(3), channel_dim=1)
    z = torch.randn(2, 6, 5)
    with svq.bypass(layer):
        out = layer(z)
    projected = layer.transform.inverse(layer.transform(z.movedim(1, -1)))
    torch.testing.assert_close(out.quantized, projected.movedim(-1, 1))
    assert not torch.allclose(out.quantized, z)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_made_under_bypass_is_not_bypassed(copied: Any) -> None:
    layer = svq.presets.vq_vae(4, 8)
    with svq.bypass(layer):
        twin = copied(layer)
    assert (twin(torch.randn(3, 4)).indices >= 0).all()


def test_what_comes_out_under_bypass_may_be_changed_in_place() -> None:
    layer = svq.presets.vq_vae(4, 8)
    z = torch.randn(3, 4)
    kept = z.clone()
    with svq.bypass(layer):
        layer(z).quantized.detach().zero_()
        layer.eval()(z).quantized.detach().zero_()
    assert torch.equal(z, kept)


@pytest.mark.parametrize("make", [svq.presets.vq_vae, svq.presets.straight, svq.presets.vq_ste_pp])
def test_every_parameter_gets_a_gradient_under_bypass(make: Any) -> None:
    layer = make(16, 8)
    layer(torch.randn(100, 16))
    with svq.bypass(layer):
        out = layer(torch.randn(3, 16, requires_grad=True))
        (out.quantized.sum() + out.loss).backward()
    assert [name for name, p in layer.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("bypassed", [False, True])
@pytest.mark.parametrize(("channel_dim", "shape"), [(1, (2, 4, 3, 5)), (-1, (2, 7, 4)), (0, (4, 6))])
def test_a_contiguous_input_gives_a_contiguous_output(channel_dim: int, shape: tuple[int, ...], bypassed: bool) -> None:
    layer = svq.presets.vq_vae(4, 8, channel_dim=channel_dim)
    with svq.bypass(layer) if bypassed else contextlib.nullcontext():
        quantized = layer(torch.randn(shape)).quantized
    assert quantized.is_contiguous()
    quantized.view(shape[0], -1)


def test_an_image_in_channels_last_memory_keeps_it() -> None:
    layer = svq.presets.vq_vae(4, 8, channel_dim=1)
    z = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    assert layer(z).quantized.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("channel_dim", "shape"), [(1, ()), (-3, (4,)), (2, (4,))])
def test_indices_with_too_few_axes_for_the_channels_are_refused(channel_dim: int, shape: tuple[int, ...]) -> None:
    layer = svq.presets.vq_vae(4, 8, channel_dim=channel_dim)
    with pytest.raises(ValueError, match=r"enough axes .* channels on axis"):
        layer.decode(torch.zeros(shape, dtype=torch.int64))


def test_initialisers_that_look_for_weights_find_only_matrices() -> None:
    def xavier(module: nn.Module) -> None:
        # Programs that do so pass over torch's own norms, as that of `Bridge` is.
        if hasattr(module, "weight") and not isinstance(module, nn.LayerNorm):
            nn.init.xavier_uniform_(module.weight)

    for name in svq.presets.__all__:
        getattr(svq.presets, name)(16, [8] if name == "fsq" else 8).apply(xavier)


def test_a_forward_on_the_meta_device_gives_shapes() -> None:
    layer = svq.presets.ema(4, 8, channel_dim=1).to("meta")
    for mode in (True, False):
        out = layer.train(mode)(torch.randn(2, 4, 5, device="meta"))
        assert out.quantized.shape == (2, 4, 5)
        assert out.indices.shape == (2, 5)


def test_data_parallel_replicas_are_refused_with_the_way_out() -> None:
    layer = svq.presets.ema(4, 8)
    with pytest.raises(ValueError, match=r"torch\.nn\.DataParallel .* Use DistributedDataParallel"):
        layer._replicate_for_data_parallel()  # what torch.nn.parallel.replicate calls on every module
    assert "_replicate_for_data_parallel()" in inspect.getsource(nn.parallel.replicate)


def test_values_that_nobody_can_ask_for_make_the_batch_masked_and_the_result_nan() -> None:
    """What happens on accelerators and in compiled graphs: no assertion that ends the process's context."""
    torch.manual_seed(0)
    layer = svq.presets.ema(4, 8)
    layer(torch.randn(100, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for bad in (float("nan"), float("inf"), 1e30):
        z = torch.randn(20, 4)
        z[3, 2] = bad
        out = compiled(z)
        assert out.loss.isnan()
        assert out.quantized.isnan().all()
        assert (out.indices == -1).all()
        for name, value in layer.state_dict().items():
            assert name == "clock.step" or torch.equal(value, before[name]), name
    assert compiled(torch.randn(20, 4)).loss.isfinite()


def test_indices_that_nobody_can_ask_for_decode_to_nan_out_of_range() -> None:
    layer = svq.presets.vq_vae(4, 8)
    torch._dynamo.reset()
    decoded = torch.compile(layer.decode, fullgraph=True, backend="aot_eager")(torch.tensor([3, 8, -1, -2]))
    assert torch.equal(decoded[0], layer.codes()[3])
    assert decoded.isnan().all(1).tolist() == [False, True, False, True]
    assert (decoded[2] == 0).all()


def test_an_exported_layer_can_be_saved(tmp_path: Any) -> None:
    layer = svq.presets.straight(4, 8).eval()
    z = torch.randn(5, 4)
    torch.export.save(torch.export.export(layer, (z,)), tmp_path / "layer.pt2")
    out = torch.export.load(tmp_path / "layer.pt2").module()(z)
    assert torch.equal(out.quantized, layer(z).quantized)
    assert torch.equal(out.indices, layer(z).indices)


class Shifted(svq.Transform):
    """Has a training rule: it shifts what it sees then."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z + 100 if self.training else z

    def inverse(self, code: torch.Tensor) -> torch.Tensor:
        return code + 100 if self.training else code


def test_encoding_and_decoding_follow_the_evaluation_rule_of_every_part_in_training_mode() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(4, svq.Codebook(8), transform=Shifted()).eval()
    z = torch.randn(20, 4)
    indices, plain = layer.encode(z), layer.unquantized(z)
    decoded = layer.decode(indices)
    layer.train()
    assert torch.equal(layer.encode(z), indices)
    assert torch.equal(layer.unquantized(z), plain)
    assert torch.equal(layer.decode(indices), decoded)
    assert layer.training
    assert layer.transform.training


@pytest.mark.parametrize(
    ("behind", "function"), [(nn.Conv2d(4, 3, 1), "conv2d"), (nn.Linear(5, 2), "linear"), (nn.ReLU(), "relu")]
)
def test_a_layer_that_is_given_the_whole_output_is_refused_with_the_line_to_write(
    behind: nn.Module, function: str
) -> None:
    layer = svq.presets.ema(4, 8, channel_dim=1)
    net = nn.Sequential(layer, behind)
    with pytest.raises(TypeError, match=rf"`{function}` takes a tensor.*`out\.quantized`.*interop\.Bare\(quantizer\)"):
        net(torch.randn(2, 4, 5, 5))
    net[0] = svq.interop.Bare(layer)
    assert net(torch.randn(2, 4, 5, 5)).isfinite().all()
