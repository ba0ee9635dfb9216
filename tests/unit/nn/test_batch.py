import pytest
import torch
from tests.ranks import pretend_ranks

from straightvq.nn import batch as batches
from straightvq.nn.batch import Batch, pool_moments
from straightvq.nn.draws import Clock, Draws


def test_moments_by_hand() -> None:
    # {1, 3} and, masked, 100: mean 2, biased variance 1.
    batch = Batch(torch.tensor([[1.0], [100.0], [3.0]]), torch.tensor([True, False, True]), None, Draws(Clock()))
    count, mean, var = batch.moments()
    assert (count.item(), mean.item(), var.item()) == (2, 2, 1)
    assert batch.shares().tolist() == [2]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_pooled_moments_are_those_of_all_vectors_whatever_the_shards(offset: float) -> None:
    torch.manual_seed(0)
    z = offset + torch.randn(50, 3)
    shards = [Batch(part, None, None, Draws(Clock())) for part in (z[:7], z[7:7], z[7:])]
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
    alone = Batch(torch.randn(10, 2), valid, None, Draws(Clock()))
    expected = [10 if valid is None else 5] * 3
    assert alone.shares().tolist() == alone.shares().tolist() == expected
    assert sent == ["all_gather"], "asked once"
    sent.clear()
    batch = Batch(alone.z, valid, None, Draws(Clock()))
    count, mean, var = batch.moments()
    assert batch.shares().tolist() == expected
    batch.moments()
    assert sent == ["all_gather"]
    _, own_mean, own_var = Batch(alone.z, valid, False, Draws(Clock())).moments()
    assert count.item() == batch.total().item() == sum(expected)
    torch.testing.assert_close(mean, own_mean)
    torch.testing.assert_close(var, own_var)


@pytest.mark.parametrize("ranks", [1, 2])
def test_shares_of_more_vectors_than_float32_counts_are_exact(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_ranks(monkeypatch, ranks)
    number = 2**24 + 1  # float32 rounds it to 2^24
    batch = Batch(torch.zeros(1, 1).expand(number, 1), None, None, Draws(Clock()))
    count, *_ = batch.moments()
    assert batch.shares().tolist() == [number] * ranks
    assert count.item() == batch.total().item() == number * ranks


@pytest.mark.parametrize("valid", [None, torch.arange(1 << 22) % 3 > 0], ids=["all", "masked"])
def test_moments_of_millions_of_vectors_keep_their_digits(valid: torch.Tensor | None) -> None:
    """One after the other, four million float32 numbers near 1,000 add up to a mean that is off by more than ten."""
    torch.manual_seed(0)
    z = 1000 + torch.randn(1 << 22, 1)
    exact = (z if valid is None else z[valid]).double()
    _, mean, var = Batch(z, valid, None, Draws(Clock())).moments()
    assert mean.item() == pytest.approx(exact.mean().item(), abs=3e-4)
    assert var.item() == pytest.approx(exact.var(correction=0).item(), abs=1e-5)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_one_pass_gives_the_moments_of_two(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    z = 10 + torch.randn(n, 3, dtype=torch.float64)
    two = Batch(z, None, None, Draws(Clock())).moments()
    monkeypatch.setattr(batches, "_SLOW_AT_ONE_PASS", ())
    for one, other in zip(Batch(z, None, None, Draws(Clock())).moments(), two, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
