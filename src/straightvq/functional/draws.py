"""Random numbers that depend on (seed, step, place) only.

A generator's state advances with every call, so ranks, a resumed run and a compiled graph would disagree. Here each
number is a hash of where it is used: the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood 2014), in plain integer
tensor operations that give the same bits on every device.
"""

import math

import torch
from torch import Tensor

# 23 primes in arithmetic progression (Frind, Jobling, Underwood 2004): a table would have to be copied to the device.
# With a step p coprime to n, (start + i * p) mod n visits n places without repeating one.
_FIRST_STRIDE, _STRIDE_DIFFERENCE, _NUM_STRIDES = 56211383760397, 44546738095860, 23


def _signed(x: int) -> int:
    """The int64 with the same low 64 bits."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def draw_integers(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], *, rows: Tensor | None = None
) -> Tensor:
    """Uniform integers in ``[0, 2^53)``: the same for the same (seed, step, stream, position)."""
    place = torch.arange(math.prod(shape), device=seed.device).view(shape)
    if rows is not None:
        width = math.prod(shape[1:])
        place = rows.view(-1, *(1 for _ in shape[1:])) * width + torch.arange(width, device=seed.device).view(shape[1:])
    key = _mix(_mix(_mix(seed + _GOLDEN) + step) + _signed(stream * _GOLDEN))
    return _shift(_mix(key + (place + 1) * _GOLDEN), 11)


def draw_uniform(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    bits, work = (53, torch.float64) if dtype == torch.float64 else (24, torch.float32)
    return (((draw_integers(seed, step, stream, shape, rows=rows) >> (53 - bits)).to(work) + 0.5) * 2.0**-bits).to(
        dtype
    )


def draw_gumbel(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    return -(-draw_uniform(seed, step, stream, shape, dtype, rows=rows).log()).log()


def draw_normal(
    seed: Tensor, step: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None
) -> Tensor:
    """Standard normal numbers (Box-Muller), a function of (seed, step, stream, position)."""
    u = draw_uniform(seed, step, stream, shape, dtype, rows=rows)
    v = draw_uniform(seed, step, stream + (1 << 61), shape, dtype, rows=rows)
    return ((-2 * u.log()).sqrt() * (2 * math.pi * v).cos()).to(dtype)


def draw_distinct(seed: Tensor, step: Tensor, stream: int, count: int, population: Tensor) -> Tensor:
    """``count`` places out of ``population``, without repetition among the first ``population`` of them.

    Args:
        count: how many places, below 2^31.
        population: Int64 scalar tensor below 2^31, the number of places; may be known on the device only.

    Returns:
        Int64 (count,) in ``[0, population)`` (zeros if the population is empty).
    """
    start, which = draw_integers(seed, step, stream, (2,)).unbind()
    stride = _FIRST_STRIDE + _STRIDE_DIFFERENCE * (which % _NUM_STRIDES)
    population = population.clamp(min=1)
    return (start + torch.arange(count, device=seed.device) * (stride % population)) % population
