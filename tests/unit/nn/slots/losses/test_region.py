import math

import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.nn.slots.losses import region
from straightvq.nn.slots.losses.region import region_quotas


def layer_of(codes: Tensor, idle: list[float], window: int = 2) -> svq.VectorQuantizer:
    layer = svq.VectorQuantizer(codes.shape[1], svq.Codebook(len(codes)), losses=[svq.RegionLoss(window=window)])
    layer.to(codes.dtype).set_codes(codes)
    layer.losses[0].idle.copy_(torch.tensor(idle))
    return layer


def test_quotas_by_hand() -> None:
    assert region_quotas(torch.tensor([6, 2]), 4).tolist() == [3, 1]
    assert region_quotas(torch.tensor([6.0, 1.0, 0.0]), 4).tolist() == [4, 0, 0]  # ceil(24 / 7), and no lone vector's
    assert region_quotas(torch.tensor([6, 2]), 0).tolist() == [0, 0]


def test_targets_of_active_and_inactive_codes_by_hand() -> None:
    # Six vectors at 0.5 and two at 10.25: quotas 3 and 1 of the inactive codes 2, 3, 11 and 40. The first hands its
    # target to 2, 3 and 11, the second to 11, which takes the mean 5.375; 40 gets none. Differences 0.5, 0.25, 1.5,
    # 2.5 and 5.625: the sum of the squares is 40.453125.
    codes = torch.tensor([[0.0], [10.0], [2.0], [3.0], [11.0], [40.0]])
    layer = layer_of(codes, [0, 0, 2, 2, 2, 2])
    loss = layer(torch.tensor(6 * [[0.5]] + 2 * [[10.25]])).terms["region"]
    assert loss.item() == pytest.approx(40.453125 / 5)
    loss.backward()
    assert layer.codebook.raw.grad is not None
    want = torch.tensor([-0.2, -0.1, 0.6, 1.0, 2.25, 0.0])
    torch.testing.assert_close(layer.codebook.raw.grad[:, 0], want)


def naive(z: Tensor, indices: Tensor, codes: Tensor, inactive: list[int]) -> Tensor:
    counts = {k: int((indices == k).sum()) for k in range(len(codes))}
    targets = {k: z[indices == k].mean(0) for k in counts if counts[k]}
    handed: dict[int, list[Tensor]] = {k: [] for k in inactive}
    for k, target in targets.items():
        if counts[k] > 1:
            quota = math.ceil(counts[k] * len(inactive) / len(z))
            near = sorted(inactive, key=lambda m, t=target: (codes[m] - t).norm().item())
            for m in near[:quota]:
                handed[m].append(target)
    targets |= {m: torch.stack(some).mean(0) for m, some in handed.items() if some}
    errors = [(codes[k] - target).square().mean() for k, target in targets.items()]
    return torch.stack(errors).mean()


@pytest.mark.parametrize("tile", [1 << 22, 20])
def test_loss_and_gradient_are_those_of_the_naive_formula(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "_NUMBERS", tile)
    torch.manual_seed(0)
    codes = 2 * torch.randn(30, 3, dtype=torch.float64)
    z = torch.randn(40, 3, dtype=torch.float64) + 1
    layer = layer_of(codes, 15 * [0] + 15 * [5])
    out = layer(z)
    inactive = [k for k in range(15, 30) if not (out.indices == k).any()]
    assert len(inactive) > 3
    codes.requires_grad_()
    want = naive(z, out.indices, codes, inactive)
    torch.testing.assert_close(out.loss, want)
    got = torch.autograd.grad(out.loss, layer.codebook.raw)[0]
    torch.testing.assert_close(got, torch.autograd.grad(want, codes)[0])


def test_a_code_is_inactive_after_a_window_without_vectors() -> None:
    layer = layer_of(torch.tensor([[0.0], [100.0]]), [0, 0], window=2)
    z = torch.tensor([[1.0], [1.0]])
    for idle in (0, 1):
        assert layer.losses[0].idle.tolist() == [0, idle]
        assert layer(z).terms["region"] == 1  # of the active code alone
    assert layer(z).terms["region"] == (1 + 99**2) / 2
    layer(torch.tensor([[99.0]]))
    # Used again; and a batch of one vector for two codes is half a step for the other one.
    assert layer.losses[0].idle.tolist() == [0.5, 0]
    layer(torch.zeros(0, 1))
    layer.eval()(z)
    assert layer.losses[0].idle.tolist() == [0.5, 0]


@pytest.mark.parametrize(("loss", "least", "most"), [(svq.RegionLoss(), 5, 16), (svq.CodebookLoss(), 1, 1)])
def test_codes_far_from_the_data_come_to_it(loss: svq.Loss, least: int, most: int) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(2, svq.Codebook(16), losses=[loss])
    layer.set_codes(torch.cat([torch.zeros(1, 2), 100 + torch.randn(15, 2)]))
    optimizer = torch.optim.Adam(layer.parameters(), 1.0)
    for _ in range(200):
        optimizer.zero_grad()
        out = layer(torch.randn(64, 2))
        out.loss.backward()
        optimizer.step()
    assert least <= len(out.indices.unique()) <= most
