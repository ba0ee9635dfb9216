import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import straightvq as svq


def plain_entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-300).log()).sum(-1)


def naive(z: Tensor, codes: Tensor, temperature: float, diversity: float) -> Tensor:
    """``mean H(p_n) - diversity H(mean p_n)`` from all distances."""
    p = (-(z[:, None] - codes).square().sum(2) / temperature).softmax(1)
    return plain_entropy(p).mean() - diversity * plain_entropy(p.mean(0))


def gradients(loss: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().clone().requires_grad_()
    value = loss(z)
    return value.detach(), torch.autograd.grad(value, z)[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("diversity", "temperature"), [(1.0, 1.0), (0.5, 0.2), (2.0, 5.0)])
@pytest.mark.parametrize("bits", [1, 3, 10])
@pytest.mark.parametrize("kind", [svq.LookupFreeQuantizer, svq.BinarySphericalQuantizer])
def test_of_signs_it_is_that_of_all_codes_by_their_distances(
    kind: type[svq.Quantizer], bits: int, diversity: float, temperature: float, masked: bool
) -> None:
    torch.manual_seed(0)
    layer = kind(bits, bits, losses=[svq.EntropyLoss(1.0, diversity, temperature)]).double()
    codes = layer.decode(torch.arange(1 << bits)).double()
    z = torch.randn(31, bits).double()
    mask = torch.rand(31) > 0.3 if masked else None
    rows = torch.ones(31).bool() if mask is None else mask
    got = gradients(lambda x: layer(x, mask).loss, z)
    want = gradients(lambda x: naive(layer.bound(x)[rows], codes, temperature, diversity), z)
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("update", [svq.GradientUpdate, svq.EMAUpdate])
def test_of_a_table_it_is_that_of_all_distances(update: Callable[[], svq.Update], masked: bool) -> None:
    torch.manual_seed(0)
    losses: list[svq.Loss] = [svq.EntropyLoss(1.0, 0.7, 3.0)]
    layer = svq.VectorQuantizer(5, svq.Codebook(12, update=update()), losses=losses).double().eval()
    z = torch.randn(31, 5).double().requires_grad_()
    mask = torch.rand(31) > 0.3 if masked else None
    rows = torch.ones(31).bool() if mask is None else mask
    codes = layer.codes().requires_grad_()
    loss, want = layer(z, mask).loss, naive(z[rows], codes, 3.0, 0.7)
    torch.testing.assert_close(loss, want)
    by_z, by_codes = torch.autograd.grad(want, (z, codes))
    torch.testing.assert_close(torch.autograd.grad(loss, z, retain_graph=True)[0], by_z)
    if update is svq.GradientUpdate:
        torch.testing.assert_close(torch.autograd.grad(loss, layer.codebook.raw)[0], by_codes)


def test_certain_vectors_one_for_each_code_by_hand() -> None:
    z = 9 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    loss = svq.LookupFreeQuantizer(2, 2, losses=[svq.EntropyLoss()])(z).terms["entropy"]
    assert loss.item() == pytest.approx(-math.log(4))
    # All at one code: both are 0. All at 0: both are ln 4.
    assert svq.LookupFreeQuantizer(2, 2)(z[:1].expand(4, 2)).terms["entropy"].item() == pytest.approx(0, abs=1e-5)
    uncertain = svq.LookupFreeQuantizer(2, 2, losses=[svq.EntropyLoss(diversity=0.0)])(torch.zeros(4, 2))
    assert uncertain.terms["entropy"].item() == pytest.approx(math.log(4))


def test_groups_give_an_upper_bound_that_independent_groups_reach() -> None:
    def codebook_entropy(z: Tensor, group_bits: int) -> float:
        def of(diversity: float) -> Tensor:
            return svq.LookupFreeQuantizer(4, 4, losses=[svq.EntropyLoss(1.0, diversity, 1.0, group_bits)])(z).loss

        return (of(0.0) - of(1.0)).item()

    torch.manual_seed(0)
    bits = 9 * torch.tensor([[1.0 if code >> i & 1 else -1.0 for i in range(4)] for code in range(16)])
    assert (
        codebook_entropy(bits, 2) == pytest.approx(codebook_entropy(bits, 4), rel=1e-5) == pytest.approx(math.log(16))
    )
    together = bits * torch.tensor([1.0, 1.0, 0.0, 0.0]) + bits[:, [2, 3, 0, 1]] * torch.tensor([0.0, 0.0, 1.0, 1.0])
    together[:, 2:] = together[:, :2]  # the second group repeats the first
    assert codebook_entropy(together, 4) == pytest.approx(math.log(4), rel=1e-4)
    assert codebook_entropy(together, 2) == pytest.approx(2 * math.log(4), rel=1e-4)
    for group_bits in (1, 3, 4, 18):
        assert codebook_entropy(torch.randn(50, 4), group_bits) > 0


def test_thirty_six_bits_in_groups_of_nine() -> None:
    z = torch.randn(500, 36, requires_grad=True)
    layer = svq.presets.bsq(36, 36)
    layer(z).loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert (z.grad != 0).any(1).all()


def test_settings_may_be_annealed_and_are_checked() -> None:
    loss = svq.EntropyLoss()
    loss.temperature, loss.diversity, loss.coefficient = 0.1, 2.0, 0.0
    with pytest.raises(ValueError, match="`temperature` must be a finite number"):
        loss.temperature = 0.0
    with pytest.raises(ValueError, match="`group_bits` must be at most 24"):
        loss.group_bits = 25
    assert loss.group_bits == 18
    with pytest.raises(ValueError, match="`context` must be given"):
        loss(torch.zeros(2, 2), torch.zeros(2, 2), None)


LAYERS: dict[str, Callable[..., svq.Quantizer]] = {
    "signs": lambda *losses: svq.LookupFreeQuantizer(4, 4, losses=list(losses)),
    "table": lambda *losses: svq.VectorQuantizer(4, svq.Codebook(6), losses=list(losses)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("temperature", [1e-6, 1e-37, 5e-324])
@pytest.mark.parametrize("size", [1.0, 1e12])
def test_the_smallest_temperature_makes_every_vector_certain(kind: str, size: float, temperature: float) -> None:
    """The entropy of a vector is then 0, and that of the codebook the one of the assignment."""
    torch.manual_seed(0)
    layer = LAYERS[kind](svq.EntropyLoss(1.0, temperature=temperature)).eval()
    if isinstance(layer, svq.VectorQuantizer):
        layer.set_codes(size * torch.randn(6, 4))
    z = (size * torch.randn(50, 4)).requires_grad_()
    out = layer(z)
    out.loss.backward()
    shares = out.indices.bincount() / 50
    assert out.loss.item() == pytest.approx(-plain_entropy(shares[shares > 0]).item(), rel=1e-5)
    assert z.grad is not None
    assert (z.grad == 0).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_a_vector_between_two_codes_counts_for_both_at_any_temperature(kind: str) -> None:
    layer = LAYERS[kind](svq.EntropyLoss(1.0, diversity=0.0, temperature=1e-300)).eval()
    if isinstance(layer, svq.VectorQuantizer):
        layer.set_codes(torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], *([[0.0, 9, n, 0] for n in range(4)])]))
    z = torch.tensor([[0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss = layer(z).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) * (4 if kind == "signs" else 1))
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", LAYERS)
def test_derivatives_of_any_order_and_function_transforms_are_those_of_the_formula(kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind](svq.EntropyLoss(1.0, 0.7, 2.0)).double().eval()
    codes = layer.codes() if isinstance(layer, svq.VectorQuantizer) else layer.decode(torch.arange(16))
    z, direction = torch.randn(9, 4).double().requires_grad_(), torch.randn(9, 4).double()
    want = torch.autograd.functional.hvp(lambda x: naive(x, codes, 2.0, 0.7), z.detach(), direction)[1]
    slope = torch.autograd.grad(layer(z).loss, z, create_graph=True)[0]
    curve = torch.autograd.grad((slope * direction).sum(), z)[0]
    torch.testing.assert_close(curve, want)
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).loss)(z.detach()), slope.detach())
    twice = torch.func.grad(lambda y: (torch.func.grad(lambda x: layer(x).loss)(y) * direction).sum())
    torch.testing.assert_close(twice(z.detach()), curve)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("strict", [False, True])
def test_a_forward_is_exported_for_any_number_of_vectors(kind: str, strict: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind](svq.EntropyLoss(1.0), svq.CommitmentLoss()).eval()
    sizes = {0: torch.export.Dim("n", min=2, max=1024)}
    program = torch.export.export(layer, (torch.randn(6, 4),), dynamic_shapes=(sizes,), strict=strict).module()
    z = torch.randn(33, 4)
    torch.testing.assert_close(program(z).terms, layer(z).terms)


def test_it_is_refused_where_there_is_neither_table_nor_sign() -> None:
    with pytest.raises(ValueError, match="EntropyLoss looks at the table of codes, and there is none"):
        svq.FiniteScalarQuantizer(2, [5, 5], losses=[svq.EntropyLoss()])
