"""VQGAN's names: taming-transformers, whose class is on no index and is written down here, and diffusers."""

import pytest
import torch
from tests.unit.interop.same import assert_same_codes
from torch import Tensor

import straightvq as svq
from straightvq import interop


def vqgan(codes: Tensor) -> dict[str, Tensor]:
    """The entries of taming's VQModel around a table, as its checkpoints name them."""
    return {"encoder.down.0.block.0.conv1.weight": torch.ones(1), "quantize.embedding.weight": codes}


def legacy_loss(z: Tensor, codes: Tensor, beta: float = 0.25) -> Tensor:
    """The loss of both libraries: beta weighs the codebook's term."""
    code = codes[torch.cdist(z, codes).argmin(1)]
    return (code.detach() - z).square().mean() + beta * (code - z.detach()).square().mean()


def test_legacy_weights_are_kept_and_told() -> None:
    codes = torch.randn(16, 4)
    found = interop.from_state_dict(vqgan(codes))
    assert found.layout == "taming"
    assert any("legacy=True" in note for note in found.notes)
    z, table = torch.randn(50, 4), codes.clone().requires_grad_()
    x = z.clone().requires_grad_()
    legacy_loss(x, table).backward()
    y = z.clone().requires_grad_()
    out = found.quantizer(y)
    out.loss.backward()
    torch.testing.assert_close(out.loss, legacy_loss(z, codes))
    torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close(found.quantizer.codebooks()[0].raw.grad, table.grad)


def test_remapped_indices_are_refused_by_name() -> None:
    state = vqgan(torch.randn(16, 4)) | {"quantize.used": torch.arange(3)}
    with pytest.raises(ValueError, match=r"remapped indices .* 'quantize.used'"):
        interop.from_state_dict(state)


def test_gumbel_quantizer_is_refused_by_name() -> None:
    state = {"quantize.embed.weight": torch.randn(16, 4), "quantize.proj.weight": torch.randn(16, 4, 1, 1)}
    with pytest.raises(ValueError, match="Gumbel"):
        interop.from_state_dict(state)


def test_averages_of_its_ema_class_come_along() -> None:
    codes, size = torch.randn(16, 4), 1 + torch.rand(16)
    state = vqgan(codes)
    state |= {"quantize.embedding.cluster_size": size, "quantize.embedding.embed_avg": codes * size[:, None]}
    found = interop.from_state_dict(state, decay=0.9)
    update = found.quantizer.codebooks()[0].update
    assert isinstance(update, svq.EMAUpdate)
    assert (update.decay, list(found.dropped)) == (0.9, ["quantize.embedding.embed_avg"])
    assert torch.equal(update.cluster_size, size)
    back = interop.to_state_dict(found.quantizer, "taming")
    torch.testing.assert_close(back["embedding.embed_avg"], state["quantize.embedding.embed_avg"])


def test_codes_of_length_one_have_normalised_vectors_unless_told_otherwise() -> None:
    codes = torch.nn.functional.normalize(torch.randn(16, 4), dim=1)
    z = 3 * torch.randn(50, 4)
    by_angle = (torch.nn.functional.normalize(z, dim=1) @ codes.T).argmax(1)
    assert_same_codes(interop.from_state_dict(vqgan(codes)).quantizer, z, by_angle, codes[by_angle])
    plain = interop.from_state_dict(vqgan(codes), unit_norm=False).quantizer
    assert isinstance(plain.transform, svq.Identity)


def test_diffusers_model() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(num_vq_embeddings=32, vq_embed_dim=4).eval()
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
    found = interop.from_state_dict(model.state_dict(), channel_dim=1)
    assert (found.layout, found.prefix) == ("diffusers", "quantize.")
    z = torch.randn(2, 4, 5, 5)
    quantized, loss, (_, _, indices) = model.quantize(z)
    assert_same_codes(found.quantizer, z, indices.view(2, 5, 5), quantized.detach())
    torch.testing.assert_close(found.quantizer(z).loss, loss)
    model.quantize.load_state_dict(interop.to_state_dict(found.quantizer, "diffusers"))
    assert torch.equal(model.quantize(z)[2][2], indices)
