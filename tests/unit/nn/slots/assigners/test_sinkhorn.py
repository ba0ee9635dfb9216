import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.nn.draws import Clock, Draws
from straightvq.nn.slots.assigners import sinkhorn


def assigned(
    z: Tensor, codes: Tensor, valid: Tensor | None = None, temperature: float = 0.1, iterations: int = 5
) -> Tensor:
    batch = svq.Batch(z, valid, False, Draws(Clock()))
    return svq.Sinkhorn(temperature, iterations).training_rule(batch, codes)


def naive(z: Tensor, codes: Tensor, temperature: float, iterations: int) -> Tensor:
    """With the whole plan, as the authors' code has it: every code receives 1 / k, every vector is given away once."""
    cost = torch.cdist(z, codes).square()
    cost = (cost - cost.mean()) / cost.std(correction=0)
    plan = ((cost.min() - cost) / temperature).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(0) / len(codes)
        plan = plan / plan.sum(1, keepdim=True) / len(z)
    return plan.argmax(1)


@pytest.mark.parametrize("tile", [1 << 16, 100])
@pytest.mark.parametrize(("temperature", "iterations"), [(0.1, 5), (0.5, 1), (0.05, 20)])
def test_indices_are_those_of_the_whole_plan(
    temperature: float, iterations: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinkhorn, "_TILE", tile)
    torch.manual_seed(0)
    z, codes = torch.randn(90, 3).double() + 2, torch.randn(12, 3).double()
    got = assigned(z, codes, temperature=temperature, iterations=iterations)
    want = naive(z, codes, temperature, iterations)
    assert torch.equal(got, want)
    assert not torch.equal(got, svq.functional.nearest_code(z, codes))


def test_two_vectors_near_one_code_are_shared_out() -> None:
    z, codes = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [10.0]])
    assert assigned(z, codes).tolist() == [0, 1]
    assert svq.Sinkhorn()(z, codes).tolist() == [0, 0]


def test_all_codes_are_used_about_equally_where_the_nearest_ones_are_few() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(640, 4) + 3, torch.randn(16, 4)
    nearest = svq.functional.nearest_code(z, codes).bincount(minlength=16)
    balanced = assigned(z, codes, temperature=0.1, iterations=50).bincount(minlength=16)
    assert (nearest == 0).sum() > 5
    assert balanced.min() > 10
    assert balanced.max() < 60


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_large_and_small_costs_are_stable(unit: float, shift: float) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(64, 3), torch.randn(8, 3)
    got = assigned(unit * (z + shift), unit * (codes + shift))
    want = assigned(unit * (z + shift).double(), unit * (codes + shift).double())
    assert (got != want).float().mean() <= 0.05


def test_cold_plans_of_far_codes_have_no_overflow() -> None:
    codes = torch.tensor([[0.0], [1.0], [1e4]])
    got = assigned(torch.linspace(0, 1, 30)[:, None], codes, temperature=1e-3)
    assert got.min() >= 0
    assert got.max() < 3


def test_masked_vectors_take_no_part() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(50, 3), torch.randn(6, 3)
    valid = torch.rand(50) > 0.4
    spoilt = torch.where(valid[:, None], z, 100.0)
    got = assigned(spoilt, codes, valid)
    assert torch.equal(got[valid], assigned(z[valid], codes))


def test_nothing_valid_and_equal_costs_give_indices_all_the_same() -> None:
    codes = torch.randn(6, 3)
    for z, valid in ((torch.zeros(4, 3), torch.zeros(4).bool()), (torch.zeros(0, 3), None)):
        assert assigned(z, codes, valid).shape == (len(z),)
    assert assigned(torch.ones(4, 3), torch.ones(2, 3)).unique().tolist() == [0]


def test_evaluation_does_not_look_at_the_batch() -> None:
    torch.manual_seed(0)
    layer = svq.presets.optvq(3, 8)
    z = torch.randn(40, 3)
    layer(z)
    together = layer.eval()(z).indices
    assert torch.equal(together, torch.cat([layer(row[None]).indices for row in z]))
    assert torch.equal(together, layer.train().encode(z))
