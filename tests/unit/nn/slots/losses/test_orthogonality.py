import pytest
import torch
from torch import Tensor

import straightvq as svq


def naive(codes: Tensor) -> Tensor:
    pairs = [(one, other) for i, one in enumerate(codes) for j, other in enumerate(codes) if i != j]
    return torch.stack([torch.cosine_similarity(one, other, 0).square() for one, other in pairs]).mean()


@pytest.mark.parametrize("active_only", [False, True])
def test_loss_and_gradient_are_those_of_all_pairs(active_only: bool) -> None:
    torch.manual_seed(0)
    losses: list[svq.Loss] = [svq.OrthogonalityLoss(active_only=active_only)]
    layer = svq.VectorQuantizer(3, svq.Codebook(12), losses=losses).double()
    out = layer(torch.randn(7, 3).double())
    codes = layer.codes().requires_grad_()
    used = out.indices.unique()
    assert 2 < len(used) < 12
    want = naive(codes[used] if active_only else codes)
    torch.testing.assert_close(out.loss, want)
    got = torch.autograd.grad(out.loss, layer.codebook.raw)[0]
    torch.testing.assert_close(got, torch.autograd.grad(want, codes)[0])


def test_right_angles_cost_nothing_and_opposite_codes_as_much_as_equal_ones() -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(2), losses=[svq.OrthogonalityLoss()])
    for second, want in (([0.0, 5.0], 0.0), ([-3.0, 0.0], 1.0), ([7.0, 0.0], 1.0), ([2.0, 2.0], 0.5)):
        layer.set_codes(torch.tensor([[1.0, 0.0], second]))
        assert layer(torch.zeros(1, 2)).loss.item() == pytest.approx(want, abs=1e-6)


def test_a_code_of_length_0_has_a_finite_gradient_and_one_active_code_costs_nothing() -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(3), losses=[svq.OrthogonalityLoss()])
    layer.set_codes(torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]]))
    layer(torch.zeros(1, 2)).loss.backward()
    assert layer.codebook.raw.grad is not None
    assert layer.codebook.raw.grad.isfinite().all()
    alone = svq.VectorQuantizer(2, svq.Codebook(3), losses=[svq.OrthogonalityLoss(active_only=True)])
    assert alone(torch.zeros(4, 2)).loss == 0
