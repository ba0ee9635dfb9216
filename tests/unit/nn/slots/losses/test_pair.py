import numpy as np
import pytest
import torch

import straightvq as svq
from straightvq.nn.slots.losses import masked_mean


def test_vq_loss_by_hand() -> None:
    # z = [[0,0],[3,1]], c = [[1,0],[3,3]], beta = .75, alpha = 1: L = 1.25,
    # dz = [[-.125,0],[0,-.25]], dc = [[.375,0],[0,.75]].
    layer = svq.VectorQuantizer(2, svq.Codebook(2), losses=[svq.CommitmentLoss(0.25), svq.CodebookLoss(0.75)])
    layer.set_codes(torch.tensor([[1.0, 0.0], [3.0, 3.0]]))
    z = torch.tensor([[0.0, 0.0], [3.0, 1.0]], requires_grad=True)
    out = layer(z)
    out.loss.backward()
    assert out.indices.tolist() == [0, 1]
    assert out.loss.item() == 1.25
    assert out.terms["commitment"].item() == out.terms["codebook"].item() == 1.25
    assert z.grad is not None
    assert layer.codebook.raw.grad is not None
    assert z.grad.tolist() == [[-0.125, 0.0], [0.0, -0.25]]
    assert layer.codebook.raw.grad.tolist() == [[0.375, 0.0], [0.0, 0.75]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "name"), [(svq.CommitmentLoss, "commitment"), (svq.CodebookLoss, "codebook")])
def test_loss_is_a_mean_over_unmasked_elements(
    kind: type[svq.Loss], name: str, masked: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    z, code = (torch.randn(7, 3, dtype=dtype, requires_grad=True) for _ in range(2))
    valid = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool() if masked else None
    loss = kind()(z, code, valid)
    rows = range(7) if valid is None else np.flatnonzero(valid.numpy())
    want = np.mean([(z[i, j].item() - code[i, j].item()) ** 2 for i in rows for j in range(3)])
    assert loss.item() == pytest.approx(want, rel=1e-6)
    loss.backward()
    mover, other = (z, code) if name == "commitment" else (code, z)
    assert other.grad is None
    assert mover.grad is not None
    keep = torch.ones(7, 1) if valid is None else valid[:, None]
    torch.testing.assert_close(mover.grad, keep * 2 * (mover - other).detach() / (len(rows) * 3), check_dtype=False)


def test_mean_of_nothing_is_zero_and_connected() -> None:
    for x, valid in (
        (torch.zeros(0, 3, requires_grad=True), None),
        (torch.ones(2, 3, requires_grad=True), torch.zeros(2).bool()),
    ):
        mean = masked_mean(x, valid)
        assert mean.item() == 0
        mean.backward()
        assert x.grad is not None
        assert (x.grad == 0).all()


def test_huge_values_at_masked_rows_do_not_leak() -> None:
    x = torch.tensor([[1.0], [float("inf")], [float("nan")]])
    assert masked_mean(x, torch.tensor([True, False, False])).item() == 1.0


def test_a_weight_of_zero_reports_only() -> None:
    layer = svq.VectorQuantizer(3, svq.Codebook(4), losses=[svq.CommitmentLoss(0.0), svq.CodebookLoss()])
    out = layer(torch.randn(5, 3))
    assert out.terms["commitment"] > 0
    assert torch.equal(out.loss, out.terms["codebook"])


def test_loss_of_the_paper_in_its_own_weights() -> None:
    torch.manual_seed(0)
    alpha, beta = 5.0, 0.95
    layer = svq.VectorQuantizer(
        3, svq.Codebook(4), losses=[svq.CommitmentLoss(alpha * (1 - beta)), svq.CodebookLoss(alpha * beta)]
    )
    z = torch.randn(9, 3)
    out = layer(z)
    assert out.loss.item() == pytest.approx(alpha * (z - out.quantized).square().mean().item(), rel=1e-5)


def test_a_loss_must_say_which_sides_it_trains() -> None:
    class Quiet(svq.Loss):
        name = "quiet"

        def forward(self, z, code, valid):
            return z.sum()

    with pytest.raises(ValueError, match=r"`Quiet`: `trains` must be one of 'encoder', 'codes', 'both'\. Got None"):
        Quiet(1.0)
