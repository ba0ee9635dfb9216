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
