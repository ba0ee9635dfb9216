import importlib
import math
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import permutations

import pytest
import torch
from tests.launches import Launches
from torch import Tensor

from straightvq.functional import draw_distinct, draw_gumbel, draw_integers, draw_normal, draw_uniform

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def clock(seed: int, step: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(seed), torch.tensor(step)


FLOAT_DRAWS = [draw_uniform, draw_gumbel, draw_normal]
DRAWS: dict[str, Callable[..., Tensor]] = {"draw_integers": partial(draw_integers, *clock(1, 2), 3)} | {
    draw.__name__: partial(draw, *clock(1, 2), 3, dtype=torch.float32) for draw in FLOAT_DRAWS
}
draws = pytest.mark.parametrize("draw", list(DRAWS.values()), ids=list(DRAWS))


# --- what a draw depends on -----------------------------------------------------------------------------------------


def test_numbers_depend_on_seed_step_and_stream_only() -> None:
    first = draw_integers(*clock(1, 2), 3, (100,))
    torch.rand(7)
    assert torch.equal(first, draw_integers(*clock(1, 2), 3, (100,)))
    for other in (((2, 2), 3), ((1, 3), 3), ((1, 2), 4), ((1, 2), 3 + (1 << 32)), ((1, 2), 3 - (1 << 63))):
        assert (first == draw_integers(*clock(*other[0]), other[1], (100,))).sum() == 0


@draws
def test_a_place_gets_its_number_whatever_the_size_of_the_draw(draw: Callable[..., Tensor]) -> None:
    assert torch.equal(draw((10,)), draw((4, 5)).flatten()[:10])
    assert draw(()) == draw((1,))
    assert draw((0, 3)).shape == (0, 3)


@draws
@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 2, 3), (50, 0)])
def test_a_row_gets_its_numbers_whichever_rows_are_drawn(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    rows = torch.tensor([7, 0, 49, 7])
    assert torch.equal(draw((4, *shape[1:]), rows=rows), draw(shape)[rows])


def test_no_bit_of_seed_step_or_place_is_lost() -> None:
    """Flipping any bit of an argument flips each bit of a number half of the time."""
    num = 4096
    rows = torch.arange(num)
    first = draw_integers(*clock(9, 5), 1, (num,), rows=rows)
    for bit in range(64):
        mask = 1 << bit if bit < 63 else -1 << 63
        for seed, step, place in ((9 ^ mask, 5, rows), (9, 5 ^ mask, rows), (9, 5, rows ^ mask)):
            flipped = first ^ draw_integers(*clock(seed, step), 1, (num,), rows=place)
            share = ((flipped[:, None] >> torch.arange(53)) & 1).double().mean(0)
            # Seven standard deviations; 64 * 3 * 53 shares are looked at.
            assert (share - 0.5).abs().max() < 7 * 0.5 / num**0.5, bit


# --- how they are distributed ---------------------------------------------------------------------------------------


def chi_square(values: Tensor, cells: int) -> float:
    """Deviation of the counts from equal ones, in standard deviations of the statistic."""
    expected = values.numel() / cells
    statistic = (torch.bincount(values.flatten(), minlength=cells).double() - expected).square().sum() / expected
    return (float(statistic) - (cells - 1)) / (2 * (cells - 1)) ** 0.5


# Numbers one below the other that should know nothing of each other.
AXES = {
    "places": lambda: draw_integers(*clock(4, 1), 2, (2**18,)),
    "columns": lambda: draw_integers(*clock(4, 1), 2, (2**9, 2**9)).T.flatten(),
    "steps": lambda: draw_integers(torch.tensor(4), torch.arange(2**18), 2, (1,), rows=torch.zeros(1).long()),
    "seeds": lambda: draw_integers(torch.arange(2**18), torch.tensor(1), 2, (1,), rows=torch.zeros(1).long()),
    "streams": lambda: torch.cat([draw_integers(*clock(4, 1), stream, (16,)) for stream in range(2**12)]),
    "levels": lambda: torch.cat([draw_integers(*clock(4, 1), level << 32, (16,)) for level in range(2**12)]),
}


@pytest.mark.parametrize("axis", list(AXES))
def test_pairs_of_neighbours_fill_the_square_evenly(axis: str) -> None:
    x = AXES[axis]().flatten()
    assert x.min() >= 0
    assert x.max() < 2**53
    for shift in (0, 1, 21, 47):  # the lowest, middle and uppermost six bits
        six = (x >> shift) & 63
        for lag in (1, 2, 16):
            assert abs(chi_square(64 * six[lag:] + six[:-lag], 64**2)) < 5, (shift, lag)


def test_runs_of_five_are_ordered_in_every_way_equally_often() -> None:
    """A hash of one round fails here: differences of neighbours repeat."""
    x = draw_integers(*clock(0, 0), 5, (5 * 2**17,)).view(-1, 5)
    order = (x.argsort(1) * 5 ** torch.arange(5)).sum(1)
    numbers = sorted(sum(place * 5**i for i, place in enumerate(way)) for way in permutations(range(5)))
    assert abs(chi_square(torch.searchsorted(torch.tensor(numbers), order), 120)) < 5


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_numbers_lie_evenly_in_the_open_interval(dtype: torch.dtype) -> None:
    x = draw_uniform(*clock(5, 1), 0, (2**20,), dtype)
    assert x.dtype == dtype
    assert x.min() > 0
    assert x.max() < 1
    wide = x.double()
    assert abs(wide.mean().item() - 0.5) < 5 / (12 * 2**20) ** 0.5
    assert abs(chi_square((wide * 64).long(), 64)) < 5
    # The ends themselves: 0 and 2^53 - 1 of draw_integers.
    eps = torch.finfo(dtype).eps
    assert ((wide / eps - 0.5) % 1 == 0).all(), "midpoints of equal parts"


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_extreme_hashes_give_finite_numbers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("straightvq.functional.draws")
    extremes = torch.tensor([-(2**63), -1, 0, 1, 2**63 - 1])
    monkeypatch.setattr(module, "_hash", lambda *_: extremes.clone())
    monkeypatch.setattr(module, "_level", lambda x: x)
    u, x, g = (draw(*clock(0, 0), 0, (5,), dtype) for draw in (draw_uniform, draw_normal, draw_gumbel))
    eps = torch.finfo(dtype).eps
    assert u.tolist() == [eps / 2, 0.5 - eps / 2, 0.5 + eps / 2, 0.5 + eps / 2, 1 - eps / 2]
    assert torch.equal(x, -x.flip(0)) or dtype == torch.float64, "symmetric"
    assert 5.4 < x.max().item() < (8.3 if dtype == torch.float64 else 5.5)
    assert x.min() == -x.max()
    assert g.isfinite().all()
    assert g[2].item() == pytest.approx(54 * math.log(2), rel=eps), "large ones keep their digits"


@pytest.mark.parametrize("dtype", FLOATS)
def test_normal_numbers_are_normal(dtype: torch.dtype) -> None:
    x = draw_normal(*clock(5, 1), 0, (1000, 1000), dtype)
    assert x.dtype == dtype
    wide = x.double()
    moments = [(wide**power).mean().item() for power in range(1, 7)]
    deviations = [(math.prod(range(2 * p - 1, 0, -2)) / 10**6) ** 0.5 for p in range(1, 7)]  # at most
    for moment, want, deviation in zip(moments, [0, 1, 0, 3, 0, 15], deviations, strict=True):
        assert moment == pytest.approx(want, abs=5 * deviation)
    # Parts of equal probability.
    parts = torch.special.ndtr(wide).mul(64).long()
    if torch.finfo(dtype).eps < 1e-3:
        assert abs(chi_square(parts, 64)) < 5


def test_gumbel_numbers_choose_by_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    for dtype in (torch.float32, torch.float64):
        x = draw_gumbel(*clock(5, 1), 0, (100_000, 4), dtype)
        assert x.dtype == dtype
        assert x.mean().item() == pytest.approx(0.57722, abs=0.01)
        share = (logits + x).argmax(1).bincount(minlength=4) / 100_000
        torch.testing.assert_close(share, logits.softmax(0), rtol=0, atol=0.008)


@pytest.mark.parametrize("along", ["rows", "columns", "steps", "streams"])
def test_normal_numbers_of_neighbours_are_uncorrelated(along: str) -> None:
    def numbers(step: int, stream: int) -> Tensor:
        return draw_normal(*clock(5, step), stream, (500, 400), torch.float64)

    x = numbers(7, 0)
    pairs = {
        "rows": (x[1:], x[:-1]),
        "columns": (x[:, 1:], x[:, :-1]),
        "steps": (x, numbers(8, 0)),
        "streams": (x, numbers(7, 1)),
    }
    a, b = pairs[along]
    for f in (lambda v: v, lambda v: v**2 - 1, lambda v: v.abs() - (2 / math.pi) ** 0.5):
        product = f(a) * f(b)
        assert abs(product.mean().item()) < 5 * product.std().item() / product.numel() ** 0.5


# --- distinct places ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("population", [1, 2, 3, 16, 97, 255, 256, 257, 258, 1000, 4096])
@pytest.mark.parametrize("step", range(5))
def test_distinct_places_repeat_only_after_all_were_visited(population: int, step: int) -> None:
    for count in (1, population, population + 7):
        places = draw_distinct(*clock(11, step), 1, count, torch.tensor(population))
        assert places.shape == (count,)
        assert places.dtype == torch.int64
        assert len(places[:population].unique()) == min(count, population)
        assert places.min() >= 0
        assert places.max() < population


def test_distinct_places_of_an_empty_population_are_zeros() -> None:
    assert draw_distinct(*clock(1, 1), 1, 4, torch.tensor(0)).tolist() == [0, 0, 0, 0]
    assert draw_distinct(*clock(1, 1), 1, 0, torch.tensor(9)).shape == (0,)


@pytest.mark.parametrize("population", [2**31 - 1, 2**31 - 2, 223092870, 10**6, 20_257, 20_256, 10_001])
def test_distinct_places_of_a_large_population(population: int) -> None:
    for step in range(5):
        places = draw_distinct(*clock(3, step), 1, 10_000, torch.tensor(population))
        assert len(places.unique()) == 10_000
        assert places.min() >= 0
        assert places.max() < population
        assert abs(chi_square(places * 16 // population, 16)) < 5


@pytest.mark.parametrize("population", [4, 5])
def test_every_order_of_every_set_is_equally_likely(population: int) -> None:
    trials = 6_000
    found = Counter(
        tuple(draw_distinct(*clock(2, step), 9, 3, torch.tensor(population)).tolist()) for step in range(trials)
    )
    ways = list(permutations(range(population), 3))
    assert set(found) == set(ways)
    expected = trials / len(ways)
    statistic = sum((found[way] - expected) ** 2 / expected for way in ways)
    assert abs(statistic - (len(ways) - 1)) < 5 * (2 * (len(ways) - 1)) ** 0.5


@pytest.mark.parametrize("population", [300, 1000], ids=["listed", "drawn"])
def test_neighbouring_places_are_not_related(population: int) -> None:
    """Of a simple random sample: how often two given places are both picked, and the law of differences."""
    trials, count = 4000, 50
    picks = torch.stack([draw_distinct(*clock(2, step), 9, count, torch.tensor(population)) for step in range(trials)])
    assert abs(chi_square(picks, population)) < 5, "each place is picked equally often"
    differences = (picks[:, 1:] - picks[:, :-1]) % population
    assert abs(chi_square(differences - 1, population - 1)) < 5, "and so is each difference of successive picks"
    # An arithmetic progression has one difference only.
    assert (differences == differences[:, :1]).all(1).sum() == 0
    taken = torch.zeros(trials, population).scatter_(1, picks, 1.0)
    chance = count * (count - 1) / (population * (population - 1))
    for lag in (1, 2, 3, 10):
        both = (taken * taken.roll(lag, 1)).mean().item()
        assert both == pytest.approx(chance, abs=5 * (chance / (trials * population)) ** 0.5), lag


# --- on an accelerator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "draw"),
    [
        (11, lambda number: draw_integers(number, number, 5, (64, 8))),
        (13, lambda number: draw_uniform(number, number, 5, (64, 8), torch.float32)),
        (11, lambda number: draw_normal(number, number, 5, (64, 8), torch.float32)),
        (18, lambda number: draw_distinct(number, number, 5, 64, number)),
    ],
    ids=["integers", "uniform", "normal", "distinct"],
)
def test_a_draw_takes_few_launches_and_asks_the_device_nothing(most: int, draw: Callable[[Tensor], Tensor]) -> None:
    number = torch.zeros((), dtype=torch.int64, device="meta")
    with Launches() as launches:
        draw(number)
    assert len(launches.names) <= most, launches.names


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")),
    ],
)
def test_compiled_draws_give_the_same_bits(backend: str) -> None:
    def draw(seed: Tensor, step: Tensor, population: Tensor) -> tuple[Tensor, ...]:
        rows = torch.arange(3, 9)
        return (
            draw_integers(seed, step, 5 - (1 << 63), (6, 8), rows=rows),
            draw_uniform(seed, step, 3 << 32, (6, 8), torch.float32),
            draw_distinct(seed, step, 2, 8, population),
            draw_normal(seed, step, 2, (6, 8), torch.float32),
        )

    compiled = torch.compile(draw, fullgraph=True, backend=backend)
    for population in (5, 10_000):
        arguments = (*clock(-3, 4), torch.tensor(population))
        *found, x = compiled(*arguments)
        *want, y = draw(*arguments)
        assert all(map(torch.equal, found, want))
        torch.testing.assert_close(x, y)  # `erfinv` is the compiler's own
