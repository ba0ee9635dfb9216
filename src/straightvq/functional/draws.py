"""Random numbers that depend on (seed, step, stream, place) only.

A generator's state advances with every call, so ranks, a resumed run and a compiled graph would disagree. Here each
number is a hash of where it is used, in plain integer tensor operations that give the same bits on every device.

On an accelerator each operation is one launch, so the hash makes the most of few: products of the number with itself,
which carry low bits up (as in Widynski's Squares, arXiv 2004.06278, and RC6), and with its own upper half, which
carries high bits down. What depends on the stream only is computed on the host.
"""

import math

import torch
from torch import Tensor

# Of SplitMix64 (Steele, Lea, Flood 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

_ALL = (1 << 64) - 1
_LAST = (1 << 63) - 1


def draw_integers(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], *, rows: Tensor | None = None
) -> Tensor:
    """Uniform integers in ``[0, 2^53)``, a function of (seed, step, stream, place): Int64 of the given shape.

    The place is the position in the flattened ``shape``. With ``rows`` the first axis is numbered by them instead of
    0, 1, ...: a row's numbers depend on its number only, whichever other rows are drawn with it.

    Args:
        seed: any integer, Int64 () on the device of the result.
        step: any integer, likewise; draws of different steps are independent.
        stream: any integer of 64 bits; draws of different streams are independent.
        shape: of the result.
        rows: Int64 (shape[0],), or None for 0, 1, ....

    Example:
        >>> seed, step = torch.tensor(1), torch.tensor(0)
        >>> whole = draw_integers(seed, step, 7, (5, 2))
        >>> torch.equal(draw_integers(seed, step, 7, (2, 2), rows=torch.tensor([4, 0])), whole[[4, 0]])
        True
    """
    return (_level(_hash(seed, step, stream, _places(shape, rows, seed.device))) >> 11) & ((1 << 53) - 1)


def draw_uniform(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    """Uniform numbers in the open interval ``(0, 1)``, by place as in ``draw_integers``: Float of the given shape.

    They are the midpoints of ``1 / eps`` equal parts, for ``dtype``'s eps: exact, and none is rounded to 0 or 1.

    Example:
        >>> x = draw_uniform(torch.tensor(1), torch.tensor(0), 7, (1000,), torch.float32)
        >>> bool((x > 0).all() and (x < 1).all())
        True
    """
    bits = -round(math.log2(torch.finfo(dtype).eps))
    x = _level(_hash(seed, step, stream, _places(shape, rows, seed.device))) >> (64 - bits)  # of both signs
    return x.to(dtype).add_(2.0 ** (bits - 1) + 0.5).mul_(2.0**-bits)


def draw_gumbel(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    """Standard Gumbel numbers ``-log(-log(1 - u))``, by place as in ``draw_integers``: Float of the given shape.

    Near 0, where large numbers come from, ``u`` keeps 53 bits in every dtype: they go up to 37. The logarithms are at
    least float32.

    Example:
        >>> x = draw_gumbel(torch.tensor(1), torch.tensor(0), 7, (100_000,), torch.float32)
        >>> abs(float(x.mean()) - 0.5772) < 0.02  # the mean is Euler's constant
        True
    """
    work = torch.promote_types(dtype, torch.float32)
    u = draw_integers(seed, step, stream, shape, rows=rows).to(work).add_(0.5).mul_(2.0**-53)
    u.clamp_(max=1 - torch.finfo(work).eps / 2)  # the uppermost are rounded to 1
    return u.neg_().log1p_().neg_().log_().neg_().to(dtype)


def draw_normal(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    """Standard normal numbers ``sqrt(2) erfinv(u)``, by place as in ``draw_integers``: Float of the given shape.

    ``u`` is uniform in (-1, 1), and what is computed at least float32. None is larger than 5.5, or 8.3 in float64.

    Example:
        >>> x = draw_normal(torch.tensor(1), torch.tensor(0), 7, (100, 100), torch.float32)
        >>> abs(float(x.mean())) < 0.05 and abs(float(x.std()) - 1) < 0.05
        True
    """
    work = torch.promote_types(dtype, torch.float32)
    x = _hash(seed, step, stream, _places(shape, rows, seed.device)).to(work)
    # In [-2^63, 2^63] after rounding: a hair less than 2^-63 keeps the ends off -1 and 1.
    scale = (1 - torch.finfo(work).eps / 2) * 2.0**-63
    return x.mul_(scale).erfinv_().mul_(math.sqrt(2)).to(dtype)


def draw_distinct(seed: Tensor, step: Tensor, stream: int, count: int, population: Tensor | int) -> Tensor:
    """``count`` places out of ``population`` in random order, Int64 (count,); zeros if the population is empty.

    A simple random sample without replacement: every set of places is equally likely, and so is every order. Where
    ``count`` is larger than the population, all places come first and then some of them again.

    Draws ``2 count + 256`` places with repetition, or lists a population that is no larger, and keeps one of each. Half
    are needed: fewer differ with a probability below ``e^-200``.

    Args:
        population: below 2^31: an integer, or Int64 () where only the device knows it. The first three arguments are
            those of ``draw_integers``.

    Example:
        >>> draw_distinct(torch.tensor(1), torch.tensor(0), 7, 4, torch.tensor(4)).sort().values
        tensor([0, 1, 2, 3])
    """
    num = 2 * count + 256
    place = torch.arange(num, device=seed.device)
    x = _hash(seed, step, stream, place)
    if isinstance(population, int):
        drawn = (_level(x) if population > num else place) % max(1, population)
    else:
        drawn = torch.where(population > num, _level(x), place).remainder_(population.clamp(min=1))
    drawn = drawn.sort().values  # equal ones are neighbours now
    # In what order the hashes came says nothing about the sorted places: they are shuffled by the hashes themselves.
    x[1:].masked_fill_(drawn[1:] == drawn[:-1], _LAST)
    return drawn[x.argsort(stable=True)[:count]]


def _places(shape: tuple[int, ...], rows: Tensor | None, device: torch.device) -> Tensor:
    """Number of each entry, Int64 of the given shape."""
    if rows is None:
        return torch.arange(math.prod(shape), device=device).view(shape)
    width = math.prod(shape[1:])
    return torch.add(torch.arange(width, device=device), rows.view(-1, 1), alpha=width).view(shape)


def _hash(seed: Tensor, step: Tensor, stream: int, place: Tensor) -> Tensor:
    """Uniform integers of 64 bits, of both signs; the upper 32 depend on every bit of the arguments.

    After a sum with odd weights each step is a product with an odd number, so that no bit gets lost.
    """
    of_step, of_place, *weights = (_odd(stream, number) for number in range(5))
    x = _weigh(torch.add(seed, step, alpha=of_step), place, of_place)
    x = _times(x, x, 2 * weights[0])
    x = _times(x, x >> 32, 2 * weights[1])
    return _times(x, x, 2 * weights[2])


def _weigh(x: Tensor, place: Tensor, weight: int) -> Tensor:
    """``x + weight * place`` for an odd weight."""
    if torch.compiler.is_compiling():  # inductor multiplies what it has numbered itself in 32 bits on a GPU
        return (place + x * _signed(pow(weight, -1, _ALL + 1))) * weight
    return torch.add(x, place, alpha=weight)


def _signed(x: int) -> int:
    """The integer of 64 bits with a sign that has the bits of ``x``."""
    return x - _ALL - 1 if x > _LAST else x


def _times(x: Tensor, y: Tensor, weight: int) -> Tensor:
    """``x * (1 + weight * y)``; may overwrite ``x``."""
    if torch.compiler.is_compiling():  # torch 2.13's inductor takes integers for floats in `addcmul`
        return x + x * y * weight
    return x.addcmul_(x, y, value=weight)


def _level(x: Tensor) -> Tensor:
    """Of a hash: makes its lower bits as good as the upper ones."""
    return x + (x >> 32)


def _odd(stream: int, number: int) -> int:
    """A hash, SplitMix64: odd, and below 2^52, where a backend that takes scalars for float64 does it no harm."""
    x = (stream + number * _GOLDEN) * _MIX_1 & _ALL
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        x = (x ^ x >> shift) * factor & _ALL
    return (x ^ x >> 31) >> 12 | 1
