import pytest
import torch

from straightvq.functional import draw_distinct, draw_integers, draw_normal
from straightvq.functional.draws import _FIRST_STRIDE, _NUM_STRIDES, _STRIDE_DIFFERENCE


def clock(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(seed), torch.tensor(step)


def test_numbers_depend_on_seed_step_and_stream_only() -> None:
    first = draw_integers(*clock(1, 2), 3, (100,))
    torch.rand(7)
    assert torch.equal(first, draw_integers(*clock(1, 2), 3, (100,)))
    for other in (((2, 2), 3), ((1, 3), 3), ((1, 2), 4)):
        assert (first == draw_integers(*clock(*other[0]), other[1], (100,))).sum() == 0


def test_a_place_gets_its_number_whatever_the_size_of_the_draw() -> None:
    assert torch.equal(draw_integers(*clock(1, 2), 0, (10,)), draw_integers(*clock(1, 2), 0, (4, 5)).flatten()[:10])


def test_integers_are_uniform_in_their_range() -> None:
    x = draw_integers(*clock(0, 0), 0, (40_000,))
    assert x.min() >= 0
    assert x.max() < 2**53
    counts = torch.bincount(x >> 49, minlength=16).double()
    assert (counts - 2500).abs().max() < 5 * 2500**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_have_the_moments_of_a_normal(dtype: torch.dtype) -> None:
    x = draw_normal(*clock(5, 1), 0, (200, 200), dtype)
    assert x.dtype == dtype
    assert x.isfinite().all()
    assert abs(x.mean().item()) < 0.03
    assert abs(x.std().item() - 1) < 0.03
    assert abs((x**4).mean().item() - 3) < 0.2


def test_normal_numbers_of_neighbouring_steps_are_uncorrelated() -> None:
    a, b = (draw_normal(*clock(5, step), 0, (20_000,), torch.float64) for step in (7, 8))
    assert abs((a * b).mean().item()) < 0.03


@pytest.mark.parametrize("population", [1, 2, 3, 16, 97, 1000, 4096])
@pytest.mark.parametrize("step", range(5))
def test_distinct_places_repeat_only_after_all_were_visited(population: int, step: int) -> None:
    places = draw_distinct(*clock(11, step), 1, population, torch.tensor(population))
    assert torch.equal(places.sort().values, torch.arange(population))


def test_distinct_places_of_an_empty_population_are_zeros() -> None:
    assert draw_distinct(*clock(1, 1), 1, 4, torch.tensor(0)).tolist() == [0, 0, 0, 0]


STRIDES = [_FIRST_STRIDE + _STRIDE_DIFFERENCE * number for number in range(_NUM_STRIDES)]


def is_prime(n: int) -> bool:
    """Miller-Rabin with the witnesses that decide every n below 3.3e24 (Sorenson, Webster 2015)."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        if n % witness == 0:
            return n == witness
        powers = [pow(witness, odd << number, n) for number in range(twos)]
        if powers[0] != 1 and n - 1 not in powers:
            return False
    return True


def test_strides_are_primes_above_every_population() -> None:
    assert [n for n in range(60) if n > 1 and is_prime(n)] == [
        n for n in range(2, 60) if all(n % p for p in range(2, n))
    ]
    assert not is_prime(2047), "a pseudoprime to base 2"
    assert all(stride > 2**31 and is_prime(stride) for stride in STRIDES)


def test_distinct_places_do_not_overflow() -> None:
    largest = 2**31 - 1
    assert 2**53 + (largest - 1) * (largest - 1) < 2**63, "start + (count - 1) * (stride % population)"
    assert max(STRIDES) < 2**63


@pytest.mark.parametrize("population", [2**31 - 1, 2**31 - 2, 223092870, 10**6])
def test_distinct_places_of_a_large_population(population: int) -> None:
    for step in range(5):
        places = draw_distinct(*clock(3, step), 1, 10_000, torch.tensor(population))
        assert len(places.unique()) == 10_000
        assert places.min() >= 0
        assert places.max() < population
