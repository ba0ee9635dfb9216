import pytest
import torch
from tests.reference import naive

from straightvq.functional import kmeans, nearest_code
from straightvq.functional.kmeans import _lloyd, spread_out


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_two_clusters_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert kmeans(points, 2, iterations=5).sort(0).values.tolist() == [[0.5], [10.5]]


@pytest.mark.parametrize("seed", range(5))
def test_finds_well_separated_points_exactly(seed: int) -> None:
    torch.manual_seed(seed)
    points = 100 * torch.eye(7)
    z = points.repeat(5, 1)[torch.randperm(35)]
    found = kmeans(z, 7, iterations=10, generator=generator(seed))
    assert torch.equal(nearest_code(points, found).sort().values, torch.arange(7))
    assert torch.cdist(points, found).min(1).values.max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lloyd_equals_the_naive_iterations(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = torch.randn(301, 3, dtype=dtype)
    centres = z[:7]
    for _ in range(4):
        centres = _lloyd(z, centres)
    want = torch.from_numpy(naive.lloyd(z.double().numpy(), z[:7].double().numpy(), 4))
    torch.testing.assert_close(centres.double(), want, rtol=1e-5, atol=1e-5)


def test_empty_centre_moves_to_the_worst_served_vector_by_hand() -> None:
    # Both vectors near 0 and the one at 10 choose the centre 0; the centre 99 gets none and goes to 10.
    z = torch.tensor([[0.0], [1.0], [10.0]])
    assert _lloyd(z, torch.tensor([[0.0], [99.0]])).flatten().tolist() == pytest.approx([11 / 3, 10.0])


def test_two_empty_centres_move_to_different_vectors() -> None:
    z = torch.tensor([[0.0], [8.0], [10.0]])
    assert _lloyd(z, torch.tensor([[0.0], [98.0], [99.0]])).flatten().tolist() == [6.0, 10.0, 8.0]


def test_iterations_reduce_the_distortion() -> None:
    torch.manual_seed(0)
    z = torch.randn(400, 3)
    errors = [
        naive.distortion(z.numpy(), kmeans(z, 16, iterations=i, generator=generator()).numpy()) for i in (0, 1, 9)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("n", "k"), [(1, 2), (1, 8), (3, 4), (30, 100), (27, 100), (300, 1000)])
def test_fewer_vectors_than_codes_keeps_all_rows_without_duplicates(n: int, k: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(n, 5)
    centres = kmeans(z, k, iterations=3, generator=generator())
    assert centres.shape == (k, 5)
    assert len(centres.unique(dim=0)) == k
    assert torch.cdist(z, centres).min(1).values.max() < 0.01, "every vector must have a code"


def test_fewer_distinct_vectors_than_codes_gives_no_duplicates() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(20, 1)
    assert len(kmeans(z, 8, iterations=3, generator=generator()).unique(dim=0)) == 8


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0, 1e6])
@pytest.mark.parametrize("n", [1, 5])
def test_equal_vectors_give_no_duplicates_wherever_they_are(n: int, offset: float) -> None:
    centres = kmeans(torch.full((n, 4), offset), 8, iterations=3, generator=generator())
    assert len(centres.unique(dim=0)) == 8
    assert (centres - offset).abs().max() <= 1e-2 * max(1.0, offset)


def test_far_from_the_origin_equals_near_it() -> None:
    torch.manual_seed(0)
    z = torch.randn(500, 4, dtype=torch.float64)
    near = kmeans(z, 8, iterations=5, generator=generator())
    far = kmeans(z + 1000, 8, iterations=5, generator=generator())
    torch.testing.assert_close(far - 1000, near, rtol=0, atol=1e-9)


def test_same_generator_gives_the_same_centres_and_spares_the_global_one() -> None:
    z = torch.randn(100, 3)
    before = torch.get_rng_state()
    first, second = (kmeans(z, 9, iterations=3, generator=generator(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_than_a_thousand_codes_are_seeded_in_blocks() -> None:
    torch.manual_seed(0)
    z = torch.randn(3000, 2)
    centres = kmeans(z, 1500, iterations=1, generator=generator())
    assert len(centres.unique(dim=0)) == 1500
    assert naive.distortion(z[:200].numpy(), centres.numpy()) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_result_is_at_least_float32(dtype: torch.dtype) -> None:
    assert kmeans(torch.randn(20, 2).to(dtype), 3, iterations=2).dtype == torch.promote_types(dtype, torch.float32)


def test_spread_out_leaves_distinct_rows_alone_and_jitters_copies_only() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    out = spread_out(rows, 5, torch.randn(50, 2), generator())
    assert torch.equal(out[:2], rows[:2])
    assert len(out.unique(dim=0)) == 5
    assert (out - rows[[0, 1, 2, 0, 1]]).abs().max() < 0.01
