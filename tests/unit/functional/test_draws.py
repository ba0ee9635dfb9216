import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from straightvq.functional import draw_distinct, draw_gumbel, draw_integers, draw_normal, draw_uniform, draws
from straightvq.functional.draws import _PRIME


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


def test_the_factor_is_a_prime_above_every_population() -> None:
    assert [n for n in range(60) if n > 1 and is_prime(n)] == [
        n for n in range(2, 60) if all(n % p for p in range(2, n))
    ]
    assert not is_prime(2047), "a pseudoprime to base 2"
    assert _PRIME > 2**31
    assert is_prime(_PRIME)


@pytest.mark.parametrize("population", [2**31 - 1, 2**31 - 2, 223092870, 10**6, 10_001, 10_000, 9_999])
def test_distinct_places_of_a_large_population(population: int) -> None:
    for step in range(5):
        places = draw_distinct(*clock(3, step), 1, 10_000, torch.tensor(population))
        assert len(places.unique()) == min(10_000, population)
        assert places.min() >= 0
        assert places.max() < population


def progression(count: int, population: int, step: int) -> torch.Tensor:
    """What a random start and a random stride give: different places as well."""
    start, stride = draw_integers(*clock(0, step), 9, (2,))
    return (start + torch.arange(count) * (stride % population)) % population


@pytest.mark.parametrize("population", [1000, 1500, 2000, 10_007, 2**31 - 1])
def test_distinct_places_are_no_progression(population: int) -> None:
    """Two differences of neighbours are equal as often as by chance, those of a progression always."""
    drawn, chance = draw_distinct(*clock(5, 7), 1, 1000, torch.tensor(population)), 999 * 998 / 2 / population

    def pairs(places: torch.Tensor) -> int:
        counts = (places.diff() % population).unique(return_counts=True)[1]
        return int((counts * (counts - 1) // 2).sum())

    assert abs(pairs(drawn) - chance) < 6 * chance**0.5 + 1
    assert pairs(progression(1000, population, 7)) > 0.9 * 999 * 998 / 2, "the statistic must see one"


@pytest.mark.parametrize("population", [200, 300, 1000, 5000])
def test_every_place_is_as_likely_in_every_turn(population: int) -> None:
    trials = 4000
    drawn = torch.stack([draw_distinct(*clock(1, step), 1, 200, torch.tensor(population)) for step in range(trials)])
    for column in (0, 1, 100, 199):
        counts = torch.bincount(drawn[:, column] * 20 // population, minlength=20).double()
        assert ((counts - trials / 20).square() / (trials / 20)).sum() < 60, "chi-square of 19 degrees: 60 in 1e-5"
    picked = torch.bincount(drawn.flatten(), minlength=population).double()
    expected = trials * 200 / population
    assert (picked - expected).abs().max() <= 6 * expected**0.5


@pytest.mark.parametrize("population", [250, 400, 1000])
def test_neighbours_of_a_picked_place_are_picked_as_often_as_others(population: int) -> None:
    both = dict.fromkeys((1, 2, 7), 0)
    for step in range(500):
        picked = torch.zeros(population, dtype=torch.bool)
        picked[draw_distinct(*clock(2, step), 1, 200, torch.tensor(population))] = True
        for distance in both:
            both[distance] += int((picked & picked.roll(distance)).sum())
    expected = 500 * 200 * 199 / (population - 1)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in both.values())


def test_orders_of_three_places_are_equally_frequent() -> None:
    orders = Counter(tuple(draw_distinct(*clock(4, step), 1, 3, torch.tensor(3)).tolist()) for step in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in orders.values())


# --- rows by number ---------------------------------------------------------------------------------------------------

DRAWS = {
    "integers": draw_integers,
    "uniform": functools.partial(draw_uniform, dtype=torch.float32),
    "normal": functools.partial(draw_normal, dtype=torch.float64),
    "gumbel": functools.partial(draw_gumbel, dtype=torch.float32),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_what_a_row_is_given_depends_on_its_number_only(
    draw: Callable[..., torch.Tensor], shape: tuple[int, ...]
) -> None:
    whole = draw(*clock(1, 2), 3, (20, *shape))
    rows = torch.tensor([7, 19, 0, 7])
    assert torch.equal(draw(*clock(1, 2), 3, (4, *shape), rows=rows), whole[rows])
    assert torch.equal(draw(*clock(1, 2), 3, (20, *shape), rows=torch.arange(20)), whole)
    assert draw(*clock(1, 2), 3, (0, *shape), rows=rows[:0]).shape == (0, *shape)


def test_rows_of_large_numbers_do_not_meet_other_rows_or_streams() -> None:
    rows = torch.tensor([0, 1, 2**31 - 1])
    some = [draw_integers(*clock(1, 2), stream, (3, 8192), rows=rows) for stream in (0, 1, 2)]
    assert len(torch.stack(some).unique()) == 9 * 8192


# --- uniform and Gumbel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_uniform_numbers_lie_between_0_and_1(dtype: torch.dtype) -> None:
    x = draw_uniform(*clock(5, 1), 0, (1000, 1000), dtype)
    assert x.dtype == dtype
    assert x.min() > 0
    assert x.max() < 1
    assert abs(x.double().mean().item() - 0.5) < 5 * (1 / 12 / 1e6) ** 0.5
    counts = torch.bincount((x.double() * 16).long().flatten(), minlength=16).double()
    assert (counts - 62_500).abs().max() < 5 * 62_500**0.5


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 53), (torch.float32, 24), (torch.bfloat16, 8)])
def test_the_outermost_uniform_numbers_are_inside(
    dtype: torch.dtype, digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = torch.tensor([-(2**63), 2**63 - 1])
    monkeypatch.setattr(draws, "_hash", lambda *_: ends)
    assert draw_uniform(*clock(0, 0), 0, (2,), dtype).tolist() == [2.0**-digits, 1 - 2.0**-digits]
    assert draw_normal(*clock(0, 0), 0, (2,), dtype).isfinite().all()
    assert draw_gumbel(*clock(0, 0), 0, (2,), dtype).isfinite().all()


def test_gumbel_numbers_have_the_moments_of_a_gumbel_and_choose_by_weight() -> None:
    x = draw_gumbel(*clock(5, 1), 0, (100_000, 3), torch.float32)
    assert abs(x.mean().item() - 0.5772) < 0.01
    assert abs(x.var().item() - math.pi**2 / 6) < 0.03
    weights = torch.tensor([0.2, 0.3, 0.5])
    shares = torch.bincount((weights.log() + x).argmax(1), minlength=3) / 100_000
    assert (shares - weights).abs().max() < 0.01


def test_draws_of_different_clocks_and_streams_are_uncorrelated() -> None:
    uses = itertools.product(range(6), range(6), range(4))
    x = torch.stack([draw_normal(*clock(s, t), r, (1000,), torch.float64) for s, t, r in uses])
    correlation = (x @ x.T / 1000).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / 1000**0.5


# --- cost on an accelerator -------------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts the operators that start work on the device: all but views and empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not func._schema.name.startswith("aten::empty"):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("draw", "most"), [("integers", 13), ("uniform", 14), ("normal", 15), ("gumbel", 18)])
def test_a_draw_takes_few_launches(draw: str, most: int) -> None:
    seed, step = torch.ones(2, dtype=torch.int64, device="meta").unbind()
    with Launches() as launches:
        DRAWS[draw](seed, step, 1, (9, 4))
    assert len(launches.names) <= most, launches.names


def test_distinct_places_take_few_launches_and_wait_for_nothing() -> None:
    seed, step, population = (torch.ones((), dtype=torch.int64, device="meta") for _ in range(3))
    with Launches() as launches:
        assert draw_distinct(seed, step, 1, 100, population).is_meta
    assert len(launches.names) <= 27, launches.names
