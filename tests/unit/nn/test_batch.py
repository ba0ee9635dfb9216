import pytest
import torch
from tests.ranks import pretend_ranks

from straightvq.nn.batch import Batch, pool_moments


def test_moments_by_hand() -> None:
    # {1, 3} and, masked, 100: mean 2, biased variance 1.
    batch = Batch(torch.tensor([[1.0], [100.0], [3.0]]), torch.tensor([True, False, True]), None)
    count, mean, var = batch.moments()
    assert (count.item(), mean.item(), var.item()) == (2, 2, 1)
    assert batch.shares().tolist() == [2]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_pooled_moments_are_those_of_all_vectors_whatever_the_shards(offset: float) -> None:
    torch.manual_seed(0)
    z = offset + torch.randn(50, 3)
    shards = [Batch(part, None, None) for part in (z[:7], z[7:7], z[7:])]
    parts = []
    for shard in shards:
        count, mean, var = shard.moments()
        parts.append(torch.cat([count, mean, var * count], 1))
    count, mean, var = pool_moments(torch.stack(parts))
    assert count.item() == 50
    torch.testing.assert_close(mean[0].double(), z.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var[0].double(), z.double().var(0, unbiased=False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("valid", [None, torch.arange(10) % 2 == 0], ids=["all", "masked"])
def test_shares_travel_with_the_moments(valid: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pretend_ranks(monkeypatch, 3)
    alone = Batch(torch.randn(10, 2), valid, None)
    expected = [10 if valid is None else 5] * 3
    assert alone.shares().tolist() == alone.shares().tolist() == expected
    assert sent == ["all_gather"], "asked once"
    sent.clear()
    batch = Batch(torch.randn(10, 2), valid, None)
    batch.moments()
    assert batch.shares().tolist() == expected
    batch.moments()
    assert sent == ["all_gather"]
