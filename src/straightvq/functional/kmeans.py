"""k-means in bounded memory, with k-means++ seeding."""

import torch
from torch import Tensor

from straightvq.functional.nearest import nearest_code
from straightvq.functional.sums import code_sums

# Seeds are drawn one by one up to this many; beyond it several are drawn between two updates of the distances.
_SEEDING_ROUNDS = 1024
# Relative to the data's spread: what tells apart two codes that would otherwise be the same vector.
_JITTER = 1e-3


def kmeans(z: Tensor, num_codes: int, *, iterations: int, generator: torch.Generator | None = None) -> Tensor:
    """Cluster centres of ``z``: k-means++ seeding, then Lloyd iterations.

    A centre that loses all its vectors moves to the vector that is worst served. With fewer vectors than codes
    (or fewer distinct ones) the rest of the table is filled with jittered copies, so it never shrinks and never
    holds two equal rows.

    Args:
        z: vectors, at least one.
        num_codes: number of centres, k.
        iterations: Lloyd iterations after the seeding; 0 returns the seeds.
        generator: CPU generator for the seeding; None takes torch's global one.

    Shape:
        z: Float (n, d).

    Returns:
        Float (k, d), in ``z``'s dtype, at least float32.

    Raises:
        ValueError: for an empty ``z``, or impossible counts.

    Source: Lloyd 1982; k-means++, Arthur and Vassilvitskii 2007 (above 1,024 codes seeds are drawn in blocks).

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> kmeans(points, 2, iterations=5).sort(0).values.tolist()
        [[0.5], [10.5]]
    """
    for name, value in (("num_codes", num_codes), ("iterations", iterations)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"`kmeans`: `{name}` must be an integer. Got {value!r}.")
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"`kmeans`: `z` must be a floating-point tensor. Got {got}.")
    if z.ndim != 2 or len(z) == 0:
        raise ValueError(f"`kmeans`: `z` must be (n, d) with n >= 1. Got {tuple(z.shape)}.")
    if num_codes < 1 or iterations < 0:
        raise ValueError(
            f"`kmeans`: `num_codes` must be >= 1 and `iterations` must be >= 0. Got {num_codes} and {iterations}."
        )
    if not torch.isfinite(z).all():
        raise ValueError("`kmeans`: `z` must be finite. Got NaN or infinity.")
    z = z.detach().to(torch.promote_types(z.dtype, torch.float32))
    origin = z.mean(0)
    z = z - origin
    centres = _seed(z, min(num_codes, len(z)), generator)
    for _ in range(iterations):
        centres = _lloyd(z, centres)
    return spread_out(centres + origin, num_codes, z, generator)


def _seed(z: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """k-means++: each next seed is drawn with probability proportional to its squared distance to the seeds so far."""
    draws = torch.rand(num, generator=generator, dtype=torch.float64).to(z.device)
    block = -(-num // _SEEDING_ROUNDS)
    # Written in place: many small results kept between large temporaries would leave holes in the heap.
    picks = torch.zeros(num, dtype=torch.int64, device=z.device)
    picks[:1] = (draws[:1] * len(z)).long()
    length = z.square().sum(1)
    error = torch.full_like(length, float("inf"))
    mass = torch.empty_like(length, dtype=torch.float64)
    done = 0
    for start in range(1, num, block):
        seeds = z[picks[done:start]]
        if len(seeds) > 1:
            seeds = seeds[nearest_code(z, seeds)]
            distance = (z - seeds).square().sum(1)
        else:
            distance = torch.addmv(length + length[picks[done]], z, seeds[0], alpha=-2).clamp(min=0)
        torch.minimum(error, distance, out=error)
        torch.cumsum(error, 0, dtype=torch.float64, out=mass)
        u = draws[start : start + block] * mass[-1]
        picks[start : start + block] = torch.searchsorted(mass, u, right=True).clamp(max=len(z) - 1)
        done = start
    return z[picks]


def _lloyd(z: Tensor, centres: Tensor) -> Tensor:
    """One iteration: assign, move to the means, send empty centres to the worst-served vectors."""
    indices = nearest_code(z, centres)
    counts, sums = code_sums(z, indices, len(centres))
    empty = counts == 0
    means = sums / counts.clamp(min=1)[:, None]
    error = (z - centres[indices]).square().sum(1)
    worst = error.argsort(descending=True, stable=True)
    rank = (empty.long().cumsum(0) - 1).clamp(min=0)
    return torch.where(empty[:, None], z[worst[rank]], means)


def spread_out(rows: Tensor, num: int, z: Tensor, generator: torch.Generator | None) -> Tensor:
    """``num`` rows, no two of them equal: ``rows`` as they are, copies of them jittered."""
    repeated = rows[torch.arange(num, device=rows.device) % len(rows)]
    # A copy is a row that some earlier row equals. Sorting by rows finds them without comparing all pairs.
    _, group = torch.unique(repeated, dim=0, return_inverse=True)
    order = group.argsort(stable=True)
    is_copy = torch.zeros(num, dtype=torch.bool, device=rows.device)
    is_copy[order[1:]] = group[order][1:] == group[order][:-1]
    # Far from the origin a small step would be rounded away: it is at least some units in the last place.
    ulp = torch.finfo(rows.dtype).eps * rows.abs().max()
    step = torch.maximum(_JITTER * z.std(0, unbiased=False).mean().clamp(min=1e-3), 64 * ulp)
    noise = torch.randn(repeated.shape, generator=generator, dtype=torch.float64)
    return repeated + is_copy[:, None] * (step * noise.to(repeated))
