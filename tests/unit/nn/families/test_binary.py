import math

import numpy as np
import pytest
import torch

import straightvq as svq

CLASSES = [svq.LookupFreeQuantizer, svq.BinarySphericalQuantizer]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("bits", [1, 2, 5, 12])
def test_every_code_has_the_index_of_the_formula_and_comes_back(kind: type[svq.Quantizer], bits: int) -> None:
    layer = kind(bits, bits, losses=[]).eval()
    indices = torch.arange(1 << bits)
    signs = np.array([[1 if index >> bit & 1 else -1 for bit in range(bits)] for index in range(1 << bits)])
    codes = layer.decode(indices)
    width = 1.0 if kind is svq.LookupFreeQuantizer else 1 / math.sqrt(bits)
    np.testing.assert_allclose(codes.numpy(), width * signs, rtol=1e-6)
    assert torch.equal(layer.encode(codes), indices)
    assert torch.equal(layer(codes).quantized, codes)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("bits", [18, 36, 62])
def test_long_indices_are_those_of_the_formula(kind: type[svq.Quantizer], bits: int) -> None:
    layer = kind(bits, bits, losses=[])
    z = torch.randn(200, bits, generator=torch.Generator().manual_seed(bits))
    z[0], z[1] = 1.0, -1.0
    want = [sum(1 << bit for bit in range(bits) if row[bit] > 0) for row in z.tolist()]  # eq. (4) of MAGVIT-v2
    out = layer(z)
    assert out.indices.tolist() == want
    assert torch.equal(layer.decode(out.indices), out.quantized)
    assert layer.codebook_size == 1 << bits


@pytest.mark.parametrize("kind", CLASSES)
def test_more_than_62_bits_are_refused(kind: type[svq.Quantizer]) -> None:
    with pytest.raises(ValueError, match=r"`bits` must give at most 2\^62 codes"):
        kind(63, 63, losses=[])
    with pytest.raises(ValueError, match=r"each of the 8 channels .* Got 5; use transform=Projection\(5\)"):
        kind(8, 5, losses=[])


@pytest.mark.parametrize("kind", CLASSES)
def test_the_sign_of_zero_is_plus_one(kind: type[svq.Quantizer]) -> None:
    out = kind(3, 3, losses=[])(torch.tensor([[0.0, -0.0, -1.0], [0.0, 0.0, 0.0]], requires_grad=True))
    assert out.indices.tolist() == [3, 7]
    assert (out.quantized != 0).all()


def test_sphere_by_hand() -> None:
    # u = (.6, -.8); d u / d z = (I - u u') / 5, so the gradient of (1, 0) is (.64, .48) / 5.
    z = torch.tensor([[3.0, -4.0]], requires_grad=True)
    layer = svq.BinarySphericalQuantizer(2, 2, losses=[])
    out = layer(z)
    out.quantized[0, 0].backward()
    assert out.quantized.tolist() == [pytest.approx([0.5**0.5, -(0.5**0.5)])]
    assert z.grad is not None
    assert z.grad.tolist() == [pytest.approx([0.128, 0.096])]
    assert layer.unquantized(z.detach()).tolist() == [pytest.approx([0.6, -0.8])]


def test_cube_by_hand() -> None:
    z = torch.tensor([[0.3, -2.0]], requires_grad=True)
    out = svq.LookupFreeQuantizer(2, 2, scale=0.5, losses=[svq.CommitmentLoss(1.0)])(z)
    (out.quantized.sum() + out.loss).backward()
    assert out.quantized.tolist() == [[0.5, -0.5]]
    assert out.loss.item() == pytest.approx((0.04 + 2.25) / 2)  # (.3 - .5)^2 and (2 - .5)^2
    assert z.grad is not None
    assert z.grad.tolist() == [pytest.approx([1 - 0.2, 1 - 1.5])]


def test_length_changes_nothing_on_the_sphere() -> None:
    layer = svq.BinarySphericalQuantizer(4, 4)
    z = torch.randn(50, 4)
    for scale in (1e-6, 1e10):
        torch.testing.assert_close(layer(scale * z).loss, layer(z).loss)
        assert torch.equal(layer(scale * z).indices, layer(z).indices)


def test_default_losses_are_those_of_the_papers() -> None:
    assert set(svq.LookupFreeQuantizer(4, 4)(torch.randn(5, 4)).terms) == {"entropy", "commitment"}
    assert set(svq.BinarySphericalQuantizer(4, 4)(torch.randn(5, 4)).terms) == {"entropy"}
    assert list(svq.LookupFreeQuantizer(4, 4).state_dict()) == ["settings"]


def test_bits_and_half_width_stay_those_of_the_construction() -> None:
    layer = svq.LookupFreeQuantizer(4, 4, scale=0.5)
    for name, value in {"bits": 5, "half_width": 1.0}.items():
        with pytest.raises(ValueError, match=f"`{name}` must stay .* make a new layer"):
            setattr(layer, name, value)
    with pytest.raises(TypeError, match="`half_width` must be a number"):
        layer.half_width = "wide"
    assert (layer.bits, layer.half_width) == (4, 0.5)


def test_entropy_penalty_brings_all_codes_into_use() -> None:
    """From vectors in one corner: without it one code, with it nearly all sixteen."""

    def used(losses: list[svq.Loss]) -> int:
        torch.manual_seed(0)
        layer = svq.LookupFreeQuantizer(4, 4, losses=losses)
        z = torch.nn.Parameter(0.1 * torch.randn(64, 4) + 0.5)
        optimizer = torch.optim.Adam([z], 0.05)
        for _ in range(200):
            optimizer.zero_grad()
            layer(z).loss.backward()
            optimizer.step()
        return len(layer.encode(z.detach()).unique())

    assert used([svq.CommitmentLoss()]) == 1
    assert used([svq.CommitmentLoss(0.01), svq.EntropyLoss(1.0, diversity=2.0)]) >= 12


# --- what the tests of vector-quantize-pytorch state ------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES)
def test_decoded_indices_are_the_output_for_images(kind: type[svq.Quantizer]) -> None:
    layer = kind(16, 16, channel_dim=1)
    out = layer(torch.randn(2, 16, 32, 32))
    assert torch.equal(layer.decode(out.indices), out.quantized)


def test_a_single_vector_has_an_entropy_and_few_have_finite_gradients() -> None:
    layer = svq.LookupFreeQuantizer(2, 2, losses=[svq.EntropyLoss(1.0, diversity=0.7)])
    x = torch.tensor([[0.1, -0.2], [0.2, -0.1]], requires_grad=True)
    alone = layer(x[:1]).loss
    p = torch.sigmoid(4 * x[0].detach())
    each = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    torch.testing.assert_close(alone, 0.3 * each)  # of one vector both entropies are the same
    layer(x).loss.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
