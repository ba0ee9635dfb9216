import pytest
import torch

import straightvq as svq


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradient_are_those_of_mean_and_deviation(masked: bool) -> None:
    torch.manual_seed(0)
    losses: list[svq.Loss] = [svq.MomentLoss(weight=2.0, variance=0.3)]
    layer = svq.VectorQuantizer(4, svq.Codebook(5, update=svq.EMAUpdate()), losses=losses).double()
    z = (3 * torch.randn(11, 4) + 1).double().requires_grad_()
    mask = torch.rand(11) > 0.3 if masked else None
    some = z if mask is None else z[mask]
    want = 2 * (some.mean(0).square().mean() + 0.3 * (some.std(0, correction=0) - 1).square().mean())
    loss = layer(z, mask).loss
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], torch.autograd.grad(want, z)[0])


def test_by_hand() -> None:
    # Mean 3 and deviation 2: 9 + 0.5 * 1. d/dz = 2 m / n + 0.5 * 2 (s - 1) (z - m) / (n s) = 3 +- 0.5.
    layer = svq.VectorQuantizer(1, svq.Codebook(2, update=svq.EMAUpdate()), losses=[svq.MomentLoss(1.0, 0.5)])
    z = torch.tensor([[1.0], [5.0]], requires_grad=True)
    loss = layer(z).loss
    loss.backward()
    assert loss.item() == 9.5
    assert z.grad is not None
    assert z.grad.tolist() == [[2.5], [3.5]]


def test_without_spread_the_gradient_is_finite() -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(2, update=svq.EMAUpdate()), losses=[svq.MomentLoss()])
    z = torch.ones(5, 2, requires_grad=True)
    layer(z).loss.backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.full((5, 2), 0.1 * 2 / (5 * 2)))
