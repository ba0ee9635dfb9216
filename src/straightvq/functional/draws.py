"""Random numbers that depend on (seed, step, stream, place) only.

A generator's state advances with every call, so ranks, a resumed run and a compiled graph would disagree. Here each
number is a hash of where it is used: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) of a counter, in plain
integer tensor operations, as few as will do: on an accelerator each is a launch.
"""

import math

import torch
from torch import Tensor


def _signed(x: int) -> int:
    """The int64 with the same low 64 bits."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >= 1 << 63 else x


# What tells seeds, steps and places apart in the counter: multiples of them meet only by chance, once in 2^64.
_SEED, _STEP, _PLACE = map(_signed, (0xD1342543DE82EF95, 0xAF251AF3B0F025B5, 0x9E3779B97F4A7C15))
_MIX_1, _MIX_2 = map(_signed, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_PLACES = 44  # bits of the places of one stream
_PRIME = 56211383760397  # above every population, so that multiples of it, modulo the population, are all different


def _hash(seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], rows: Tensor | None) -> Tensor:
    """Int64 of ``shape``, of any sign, whose high bits are mixed well; the low ones are not."""
    width = math.prod(shape) if rows is None else math.prod(shape[1:])
    place = torch.arange(stream << _PLACES, (stream << _PLACES) + width, device=seed.device)
    if rows is not None:
        place = torch.add(place, rows[:, None], alpha=width)
    x = torch.add(torch.add(seed * _SEED, step, alpha=_STEP), place, alpha=_PLACE).view(shape)
    # The shifts copy the sign, where the source's fill in zeros: either can be undone, and so loses nothing.
    x = (x ^ (x >> 30)) * _MIX_1
    return (x ^ (x >> 27)) * _MIX_2


def draw_integers(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], *, rows: Tensor | None = None
) -> Tensor:
    """Uniform integers in ``[0, 2^53)``: the same for the same (seed, step, stream, place).

    Args:
        seed, step: Int64 scalars, on the device where the numbers are wanted.
        stream: tells apart different uses within one step; in ``[0, 2^19)``.
        shape: of the result. A number's place is where it stands when the result is flattened.
        rows: Int64 (n,), with a shape that begins with n: the numbers of the rows, which are 0, 1, ... if None. What
            a row is given depends on its number, not on where in the batch it stands. A number times the size of a
            row must be below 2^44.

    Example:
        >>> seed, step = torch.tensor(1), torch.tensor(2)
        >>> whole = draw_integers(seed, step, 0, (5, 3))
        >>> torch.equal(draw_integers(seed, step, 0, (2, 3), rows=torch.tensor([4, 1])), whole[[4, 1]])
        True
    """
    x = _hash(seed, step, stream, shape, rows)
    return (x ^ (x >> 31)) & ((1 << 53) - 1)


def draw_uniform(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    """Uniform numbers between 0 and 1, neither included: multiples of half the dtype's epsilon. Arguments as above."""
    work = torch.float64 if dtype == torch.float64 else torch.float32  # some devices have no float64
    digits = 1 - int(math.log2(torch.finfo(dtype).eps))  # odd numbers of so many, which every dtype holds
    x = (_hash(seed, step, stream, shape, rows) >> (65 - digits)).to(work)
    return (x * 2.0 ** (1 - digits) + (0.5 + 2.0**-digits)).to(dtype)


def draw_gumbel(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    """Standard Gumbel numbers, ``-log(-log(u))`` of uniform u. Arguments as above."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    return (-(-draw_uniform(seed, step, stream, shape, work, rows=rows).log()).log()).to(dtype)


def draw_normal(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    """Standard normal numbers, by the inverse of the normal distribution. Arguments as above.

    They reach 5.4 standard deviations, in float64 8.2.
    """
    work, digits = (torch.float64, 53) if dtype == torch.float64 else (torch.float32, 24)
    x = (_hash(seed, step, stream, shape, rows) >> (64 - digits)).to(work)
    # Slightly less than the power of two, so that the least of them is not -1, where the inverse is infinite.
    x = x * (2.0 ** (1 - digits) * (1 - 2.0**-digits))
    return (x.erfinv() * math.sqrt(2)).to(dtype)


def draw_distinct(seed: Tensor, step: Tensor, stream: int, count: int, population: Tensor) -> Tensor:
    """``count`` places out of ``population`` in random order, each once before any comes again.

    Random numbers ``y_i`` in ``[0, population - count]`` are ranked, ties in random order, and ``y_i + rank_i`` are
    different places. Multiplied by a prime and moved by a random number, modulo the population, these are the
    result: each place is as likely as any other, and those next to a chosen one are not rarer. With no more places
    than numbers it is a random permutation of all places, then another.

    Args:
        seed, step, stream: as for `draw_integers`.
        count: how many places, below 2^31.
        population: Int64 scalar tensor below 2^31, the number of places; may be known on the device only.

    Returns:
        Int64 (count,) in ``[0, population)`` (zeros if the population is empty).

    Example:
        >>> seed, step = torch.tensor(1), torch.tensor(2)
        >>> draw_distinct(seed, step, 0, 6, torch.tensor(3)).view(2, 3).sort().values.tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    x = _hash(seed, step, stream, (count + 1,), None)
    high = x >> 32
    place = torch.arange(count, device=seed.device)
    population = population.clamp(min=1)
    y = x[:count] % (population - (count - 1)).clamp(min=1)
    # High bits decide among equal y. Those past a whole population come behind it, as a population of their own.
    order = torch.add(high[:count], y + place // population, alpha=1 << 32).argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, place)
    return ((y + rank) * (_PRIME % population) + high[count]) % population
