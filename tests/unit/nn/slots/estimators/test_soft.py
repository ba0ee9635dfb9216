import pytest
import torch
from tests.reference import estimators as naive
from torch import Tensor

import straightvq as svq
from straightvq.nn.slots.assigners.stochastic import drawn_with


def layer(estimator: svq.Estimator, assigner: svq.Assigner | None = None) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    return svq.VectorQuantizer(4, svq.Codebook(8), assigner=assigner, estimator=estimator, losses=[]).double()


def gradients(quantizer: svq.VectorQuantizer, z: Tensor, g: Tensor) -> tuple[Tensor, list[Tensor]]:
    z = z.clone().requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.quantized, quantizer.decode(out.indices))
    return out.indices, list(torch.autograd.grad(out.quantized, [z, quantizer.codebook.raw], g))


def of_naive(out: Tensor, z: Tensor, codes: Tensor, g: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out, [z, codes], g))


Z, G = (torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (1, 2))


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_gumbel_sees_the_noise_that_drew_the_codes(mode: str) -> None:
    quantizer = layer(svq.Gumbel(0.5), svq.Stochastic(3.0)).train(mode == "training")
    indices, got = gradients(quantizer, Z, G)
    z, codes = Z.clone().requires_grad_(), quantizer.codes().requires_grad_()
    logits, noise = naive.distance_logits(z, codes, 3.0), torch.zeros(50, 8, dtype=torch.float64)
    if mode == "training":
        noise = drawn_with(quantizer.batch(Z, None)).tile(slice(None), codes)
    assert torch.equal((logits + noise).argmax(1), indices)
    wanted = of_naive(naive.gumbel(z, codes, indices, noise, logits, 0.5), z, codes, G)
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def test_reinmax_takes_the_temperature_of_the_draws() -> None:
    quantizer = layer(svq.ReinMax(2.0), svq.Stochastic(3.0))
    indices, got = gradients(quantizer, Z, G)
    z, codes = Z.clone().requires_grad_(), quantizer.codes().requires_grad_()
    wanted = of_naive(naive.reinmax(z, codes, indices, 3.0, 2.0), z, codes, G)
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_index_backpropagation_is_the_dense_one_hot(mode: str) -> None:
    quantizer = layer(svq.IndexBackpropagation(2.0), svq.LargestProduct()).train(mode == "training")
    indices, got = gradients(quantizer, Z, G)
    z, codes = Z.clone().requires_grad_(), quantizer.codes().requires_grad_()
    logits = z @ codes.T / 2.0
    assert torch.equal(logits.argmax(1), indices)
    none = torch.zeros(50, 8, dtype=torch.float64)
    wanted = of_naive(naive.gumbel(z, codes, indices, none, logits, 1.0), z, codes, G)
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other)
    assert (got[1] != 0).all(), "every code learns"


def test_a_later_forward_does_not_change_the_noise_of_an_earlier_one() -> None:
    first, second = layer(svq.Gumbel(), svq.Stochastic(3.0)), layer(svq.Gumbel(), svq.Stochastic(3.0))
    second.load_state_dict(first.state_dict())
    found = []
    for quantizer, again in ((first, False), (second, True)):
        z = Z.clone().requires_grad_()
        out = quantizer(z).quantized
        if again:
            quantizer(Z)
        found.append(torch.autograd.grad(out, z, G)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("part", [svq.Gumbel(), svq.ReinMax(), svq.IndexBackpropagation()], ids=repr)
def test_codes_without_a_gradient_are_refused_by_name(part: svq.Estimator) -> None:
    assigner = svq.Stochastic() if part.needs_draws else None
    with pytest.raises(ValueError, match=f"{type(part).__name__} sends a gradient to the codes, and EMAUpdate takes"):
        svq.VectorQuantizer(4, svq.Codebook(8, update=svq.EMAUpdate()), assigner=assigner, estimator=part)


@pytest.mark.parametrize(
    "part",
    [
        svq.Gumbel(),
        svq.ReinMax(),
        svq.IndexBackpropagation(),
        svq.DiVeQ(),
        svq.NSVQ(),
        svq.SpaceFillingDiVeQ(),
        svq.DynamicStraightThrough(),
    ],
    ids=repr,
)
def test_they_are_refused_where_there_is_no_table(part: svq.Estimator) -> None:
    with pytest.raises(ValueError, match=f"{type(part).__name__} looks at the table of codes, and there is none"):
        svq.FiniteScalarQuantizer(2, [5, 5], estimator=part)


def test_the_rotation_trick_needs_no_table() -> None:
    z = torch.randn(20, 2, requires_grad=True)
    svq.FiniteScalarQuantizer(2, [5, 5], estimator=svq.RotationTrick())(z).quantized.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_a_context_without_a_temperature_is_refused() -> None:
    codes = torch.eye(2)
    with pytest.raises(ValueError, match="`ReinMax`: `context` must have the temperature"):
        svq.ReinMax()(codes, codes, svq.Context(codes, torch.tensor([0, 1]), None))
