import importlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tests.reference import naive
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from straightvq.functional import draws, kmeans, nearest, nearest_code
from straightvq.functional.kmeans import _assign, _draw_by_weight, _lloyd, _mini_batches, _unrivalled, spread_out
from straightvq.functional.nearest import Distance

module = importlib.import_module("straightvq.functional.kmeans")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distortion(z: Tensor, centres: Tensor) -> float:
    """Mean squared distance to the nearest centre."""
    return (z - centres[nearest_code(z, centres)]).square().sum(1).mean().item()


def test_counts_may_be_integers_of_numpy() -> None:
    z = torch.randn(20, 2, generator=generator())
    plain, other = (kmeans(z, n, iterations=n, generator=generator()) for n in (3, np.int64(3)))
    assert torch.equal(plain, other)


@pytest.mark.parametrize("seed", range(5))
def test_finds_well_separated_points_exactly(seed: int) -> None:
    torch.manual_seed(seed)
    points = 100 * torch.eye(7)
    z = points.repeat(5, 1)[torch.randperm(35)]
    found = kmeans(z, 7, iterations=10, generator=generator(seed))
    assert torch.equal(nearest_code(points, found).sort().values, torch.arange(7))
    assert torch.cdist(points, found).min(1).values.max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outlier", [None, 1e6])
def test_lloyd_equals_the_naive_iterations(outlier: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = torch.randn(301, 3, dtype=dtype)
    if outlier is not None:  # a centre of its own, which spoils no other
        z[0] = outlier
    centres = z[:7]
    for _ in range(4):
        centres = _lloyd(z, centres)
    want = torch.from_numpy(naive.lloyd(z.double().numpy(), z[:7].double().numpy(), 4))
    torch.testing.assert_close(centres.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("empty", "moved"), [([99.0], [10.0]), ([98.0, 99.0], [10.0, 8.0])])
def test_empty_centres_move_to_the_worst_served_vectors_by_hand(empty: list[float], moved: list[float]) -> None:
    # All three vectors choose the centre 0; the others get none and go to 10, and then to 8.
    z = torch.tensor([[0.0], [8.0], [10.0]])
    assert _lloyd(z, torch.tensor([0.0, *empty])[:, None]).flatten().tolist() == [6.0, *moved]


def test_iterations_reduce_the_distortion() -> None:
    torch.manual_seed(0)
    z = torch.randn(400, 3)
    errors = [distortion(z, kmeans(z, 16, iterations=i, generator=generator())) for i in (0, 1, 9)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("n", "k"), [(1, 2), (1, 8), (3, 4), (30, 100), (27, 100), (300, 1000)])
def test_fewer_vectors_than_codes_keeps_all_rows_without_duplicates(n: int, k: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(n, 5)
    centres = kmeans(z, k, iterations=3, generator=generator())
    assert centres.shape == (k, 5)
    assert len(centres.unique(dim=0)) == k
    assert torch.cdist(z, centres).min(1).values.max() < 0.01, "every vector must have a code"


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0, 1e6])
@pytest.mark.parametrize("n", [1, 5])
def test_equal_vectors_give_no_duplicates_wherever_they_are(n: int, offset: float) -> None:
    centres = kmeans(torch.full((n, 4), offset), 8, iterations=3, generator=generator())
    assert len(centres.unique(dim=0)) == 8
    assert (centres - offset).abs().max() <= 5e-2 * max(1.0, offset)


@pytest.mark.parametrize(("iterations", "batch_size"), [(5, None), (20, 50)])
def test_far_from_the_origin_equals_near_it(iterations: int, batch_size: int | None) -> None:
    torch.manual_seed(0)
    z = torch.randn(500, 4, dtype=torch.float64)
    near, far = (
        kmeans(x, 8, iterations=iterations, generator=generator(), batch_size=batch_size) for x in (z, z + 1000)
    )
    torch.testing.assert_close(far - 1000, near, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 30])
def test_same_generator_gives_the_same_distinct_centres_and_spares_the_global_one(batch_size: int | None) -> None:
    z = torch.randn(5, 3, generator=generator()).repeat(40, 1)  # fewer distinct vectors than centres
    before = torch.get_rng_state()
    first, second = (kmeans(z, 12, iterations=9, generator=generator(4), batch_size=batch_size) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == 12
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_seeds_are_distributed_as_if_drawn_one_by_one(trials: int) -> None:
    # No two subsets leave the same error: equals would be told apart by rounding.
    z = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.0, 2.0], [4.0, 1.3]], dtype=torch.float64)
    law, draws, runs = naive.seeding_law(z.numpy(), 3, trials), generator(), 2000
    assert sum(law.values()) == pytest.approx(1)
    every = (kmeans(z, 3, iterations=0, trials=trials, generator=draws) for _ in range(runs))
    found = Counter(tuple(nearest_code(seeds, z).tolist()) for seeds in every)
    assert found.keys() <= law.keys()
    for seeds, chance in law.items():
        # Four standard deviations of a binomial share, and two draws for those that are rare.
        assert found[seeds] / runs == pytest.approx(chance, abs=4 * (chance * (1 - chance) / runs) ** 0.5 + 2 / runs)


def test_the_best_of_several_draws_ends_lower_than_one() -> None:
    torch.manual_seed(0)
    means = 10 * torch.randn(64, 4)
    z = (means[:, None] + torch.randn(64, 20, 4)).flatten(0, 1)
    errors = [
        sum(float((z - c[nearest_code(z, c)]).square().sum()) for c in every)
        for every in ([kmeans(z, 64, iterations=9, trials=n, generator=generator(s)) for s in range(5)] for n in (1, 4))
    ]
    assert errors[1] < 0.9 * errors[0]


def test_equal_vectors_far_from_the_origin_are_not_seeded_twice_while_others_are_left() -> None:
    z = torch.tensor([[1e4], [1e4], [1e4 + 1], [1e4 + 2]]).repeat(5, 1)
    seeds = kmeans(z, 3, iterations=0, trials=4, generator=generator())
    assert sorted(seeds.flatten().tolist()) == [1e4, 1e4 + 1, 1e4 + 2]


def test_proposals_near_a_kept_one_are_dropped_by_hand() -> None:
    # 1 is nearer to 0 than its threshold; 3 is near to 1 only, which is not kept; the second 0 equals the first.
    z = torch.tensor([[0.0], [1.0], [3.0], [0.0]])
    assert _unrivalled(z, torch.tensor([1.0, 2.0, 5.0, 1e-9])).tolist() == [0, 2]


def test_seeding_finds_thousands_of_tight_clusters_of_unequal_size() -> None:
    torch.manual_seed(0)
    means, sizes = torch.randn(2000, 8), 1 + 6000 // torch.arange(1, 2001)
    z = means.repeat_interleave(sizes, 0)
    z = z + 0.01 * torch.randn_like(z)
    seeds = kmeans(z, 2000, iterations=0, generator=generator())
    found = len(nearest_code(seeds, means).unique())
    assert found > 0.97 * 2000, "as many vectors drawn at random find a third of them"
    assert len(seeds.unique(dim=0)) == 2000


@pytest.mark.parametrize("batch_size", [None, 2])
def test_no_more_vectors_than_codes_returns_each_as_it_is(batch_size: int | None) -> None:
    torch.manual_seed(0)
    z = torch.randn(30, 4) + 1000
    z[7] = z[3]
    centres = kmeans(z, 30, iterations=5, generator=generator(), batch_size=batch_size)
    kept = [i for i in range(30) if i != 7]
    assert torch.equal(centres[kept], z[kept])
    assert len(centres.unique(dim=0)) == 30


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(500, 4, dtype=torch.float64) + offset
    whole = kmeans(z, 8, iterations=5, generator=generator())
    monkeypatch.setattr(module, "_CHUNK", 4 * 33)
    torch.testing.assert_close(kmeans(z, 8, iterations=5, generator=generator()), whole, rtol=0, atol=1e-9)


def test_mini_batches_equal_the_naive_running_means() -> None:
    torch.manual_seed(0)
    z = torch.randn(100, 3, dtype=torch.float64)
    order = torch.cat([torch.randperm(100, generator=draws) for draws in [generator(1)] for _ in range(2)])
    # 100 vectors in batches of 30: three full ones and one of 10, then a new order.
    batches = [z[rows].numpy() for half in order.split(100) for rows in half.split(30)][:6]
    found = _mini_batches(z, z[:5], 30, 6, generator(1))
    torch.testing.assert_close(found, torch.from_numpy(naive.mini_batches(batches, z[:5].numpy())))


def test_mini_batches_move_a_centre_without_vectors_to_the_worst_served_by_hand() -> None:
    # Batches of one vector: the centre 0 takes all of 1, 2 and 6 and becomes their mean, 3. When all were drawn, 99 has
    # had none and goes to the last one drawn; what comes after that is nearer to one of the two.
    z = torch.tensor([[1.0], [2.0], [6.0]])
    centres = torch.tensor([[0.0], [99.0]])
    last = z[torch.randperm(3, generator=generator())[-1]]
    assert _mini_batches(z, centres, 1, 2, generator())[1] == 99
    assert _mini_batches(z, centres, 1, 3, generator()).flatten().tolist() == pytest.approx([3.0, last.item()])


def test_a_small_batch_takes_as_many_idle_centres_as_it_has_vectors() -> None:
    z = torch.randn(40, 2, generator=generator())
    centres = torch.full((30, 2), 99.0) + torch.arange(30)[:, None]
    # The first centre takes all vectors of the ten batches before all were drawn; then four move per batch.
    for iterations, away in ((9, 29), (10, 25), (11, 21), (20, 0)):
        found = _mini_batches(z, centres, 4, iterations, generator())
        assert (found > 90).all(1).sum() == away
        assert len(found.unique(dim=0)) == 30


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_mini_batches_come_close_to_full_iterations_at_a_fraction_of_the_vectors(offset: float) -> None:
    torch.manual_seed(0)
    z = (torch.randn(20, 6)[torch.randint(20, (20_000,))] + 0.3 * torch.randn(20_000, 6)) + offset
    full = kmeans(z, 64, iterations=10, generator=generator())
    fast = kmeans(z, 64, iterations=20, generator=generator(), batch_size=1000)
    seeds = kmeans(z, 64, iterations=0, generator=generator())
    assert distortion(z, fast) < 1.05 * distortion(z, full)
    assert distortion(z, seeds) > 1.2 * distortion(z, full), "the iterations must have had something to do"


@pytest.mark.parametrize("batch_size", [200, 201, 10_000])
def test_a_batch_of_all_vectors_is_the_full_iteration(batch_size: int) -> None:
    z = torch.randn(200, 3, generator=generator())
    full = kmeans(z, 9, iterations=4, generator=generator(1))
    assert torch.equal(kmeans(z, 9, iterations=4, generator=generator(1), batch_size=batch_size), full)


@pytest.mark.parametrize("batch_size", [None, 1000])
def test_memory_is_a_fraction_of_the_vectors(batch_size: int | None) -> None:
    z = torch.randn(200_000, 32)
    kmeans(z[:100], 4, iterations=1)
    with torch.profiler.profile(profile_memory=True) as profile:
        kmeans(z, 64, iterations=2, generator=generator(), batch_size=batch_size)
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert largest < 8 * 2**20, "a copy of the vectors would take 24 MB, all distances 49 MB"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_result_is_at_least_float32(dtype: torch.dtype, batch_size: int | None) -> None:
    for k in (3, 30):
        found = kmeans(torch.randn(20, 2).to(dtype), k, iterations=2, batch_size=batch_size)
        assert found.dtype == torch.promote_types(dtype, torch.float32)


def test_spread_out_leaves_distinct_rows_alone_and_jitters_copies_only() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    out = spread_out(rows, 5, torch.randn(50, 2), generator())
    assert torch.equal(out[:2], rows[:2])
    assert len(out.unique(dim=0)) == 5
    assert (out - rows[[0, 1, 2, 0, 1]]).abs().max() < 0.05


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e4])
def test_a_search_tells_the_copies_of_a_single_vector_apart(size: float, distance: Distance) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        z = size * torch.randn(1, 4)
        codes = spread_out(z, 16, z, generator(seed))
        assert torch.equal(nearest_code(codes, codes, distance=distance), torch.arange(16))


# --- no two rows equal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, -1e6, 1e30])
@pytest.mark.parametrize("d", [1, 2, 8])
def test_constant_data_fill_a_large_table_without_equal_rows(d: int, value: float, dtype: torch.dtype) -> None:
    z = torch.full((50, d), value, dtype=dtype)
    codes = kmeans(z, 4096, iterations=3, generator=generator())
    assert len(codes.unique(dim=0)) == 4096
    assert codes.isfinite().all()
    assert torch.equal(codes[0], z[0])
    assert (codes - z[0]).abs().max() <= 0.5 * max(abs(value), 1e-3)


@pytest.mark.parametrize("offset", [1e4, 3e7])
def test_nearly_constant_data_far_away_fill_a_table_without_equal_rows(offset: float) -> None:
    z = offset + torch.randint(2, (200, 1), generator=generator()) * 0.01
    codes = spread_out(z, 20_000, z, generator())
    assert len(codes.unique(dim=0)) == 20_000


def test_a_table_with_fewer_places_within_a_step_than_rows_takes_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps of 64 units in the last place hold some hundred numbers.
    monkeypatch.setattr(module, "_JITTER", 0.0)
    z = torch.full((10, 1), 1e6)
    assert len(spread_out(z, 5000, z, generator()).unique(dim=0)) == 5000


# --- many vectors -----------------------------------------------------------------------------------------------------


def test_places_are_drawn_by_weight() -> None:
    weight = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0, 1e-30])
    drawn = torch.bincount(_draw_by_weight(weight, 80_000, generator()), minlength=6) / 10_000
    torch.testing.assert_close(drawn, weight, rtol=0, atol=5 * (4 / 10_000) ** 0.5)
    assert drawn[0] == drawn[3] == 0


def test_places_among_millions_are_drawn_by_weight() -> None:
    # A running sum in float32 stops at 2^24: nothing behind that would be drawn.
    n = 20_000_000
    weight = torch.ones(n)
    weight[n // 2 :] = 0.5
    drawn = _draw_by_weight(weight, 100_000, generator())
    shares = torch.bincount(drawn * 4 // n, minlength=4) / 100_000
    torch.testing.assert_close(shares, torch.tensor([2, 2, 1, 1]) / 6, rtol=0, atol=0.008)
    assert len(drawn.unique()) > 99_000


@pytest.mark.parametrize("weight", [torch.zeros(5), torch.full((5,), 1e-42), torch.full((5,), 3e38)])
def test_weights_of_any_size_give_places_in_range(weight: Tensor) -> None:
    drawn = _draw_by_weight(weight, 1000, generator())
    assert ((drawn >= 0) & (drawn < 5)).all()


def test_sums_over_many_chunks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2 * 16)
    z = torch.full((20_000, 2), 0.1)
    counts, sums, _ = _assign(z, torch.zeros(16, 2) - torch.arange(16)[:, None])
    assert counts.tolist() == [20_000] + [0] * 15
    torch.testing.assert_close(sums[0], torch.full((2,), 2000.0), rtol=2e-7, atol=0)


# --- what other devices refuse ----------------------------------------------------------------------------------------


class OtherDevice(TorchDispatchMode):
    """Refuses float64, which Apple's devices lack, and what CUDA refuses when it is asked to be deterministic."""

    REFUSED = ("cumsum", "cumprod", "scatter_add", "scatter_reduce", "bincount", "histc", "median", "kthvalue", "put_")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                assert value.dtype != torch.float64, f"{name} makes float64"
                assert not (value.is_floating_point() and name.startswith(self.REFUSED)), f"{name} of {value.dtype}"
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "batch_size"), [(300, None), (300, 40), (5, None)])
def test_all_steps_run_where_there_is_no_float64_and_results_must_repeat(
    n: int, batch_size: int | None, dtype: torch.dtype
) -> None:
    z = torch.randn(n, 4).to(dtype)
    z[1] = z[0]
    with OtherDevice():
        kmeans(z, 20, iterations=12, generator=generator(), batch_size=batch_size)
        spread_out(z, 2 * n, z, generator())
        nearest._search_among_few(z.float(), z[:30].float(), "euclidean", "tiled")
        nearest._search_among_few(z.float(), z[:30].float(), "cosine", "tiled")
        draws.draw_distinct(torch.tensor(1), torch.tensor(2), 3, 10, torch.tensor(20))
        draws.draw_normal(torch.tensor(1), torch.tensor(2), 3, (10, 2), dtype)
        draws.draw_gumbel(torch.tensor(1), torch.tensor(2), 3, (10, 2), dtype)


def test_float64_stays_float64_in_all_steps() -> None:
    with pytest.raises(AssertionError, match="makes float64"), OtherDevice():
        kmeans(torch.randn(30, 2, dtype=torch.float64), 3, iterations=1)


@pytest.mark.parametrize("batch_size", [None, 40])
def test_deterministic_algorithms_are_enough(batch_size: int | None) -> None:
    z = torch.randn(300, 4, generator=generator())
    want = kmeans(z, 20, iterations=3, generator=generator(), batch_size=batch_size)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(kmeans(z, 20, iterations=3, generator=generator(), batch_size=batch_size), want)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("batch_size", [None, 50])
def test_float32_and_float64_draw_the_same(batch_size: int | None) -> None:
    z = torch.randn(300, 3, generator=generator())
    z[200:] = z[0]
    for k in (20, 250):
        single, double = (
            kmeans(x, k, iterations=2, generator=generator(), batch_size=batch_size) for x in (z, z.double())
        )
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
