"""k-means in bounded memory, with k-means++ seeding."""

from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError, NonFiniteError
from straightvq.functional.copies import first_of_equals
from straightvq.functional.nearest import nearest_code
from straightvq.functional.sums import add_compensated, code_sums

# Seeds proposed in one pass over the vectors; the pairs among them are compared, so this squared is held.
_PROPOSALS = 512
# Entries of one chunk of vectors: 4 MB in float32, so that what is made of a chunk stays in the cache.
_CHUNK = 1 << 20
# Relative to the data's spread: what tells apart two codes that would otherwise be the same vector, and still does
# after rounding to bfloat16.
_JITTER = 1e-2


def kmeans(
    z: Tensor,
    num_codes: int,
    *,
    iterations: int,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    trials: int = 1,
) -> Tensor:
    """Cluster centres of ``z``: k-means++ seeding, then Lloyd or mini-batch iterations.

    A centre that loses all its vectors moves to the vector that is worst served. With fewer (distinct) vectors than
    codes, jittered copies fill the table, which never shrinks and never holds two equal rows.

    With ``batch_size`` an iteration sees that many vectors, drawn in random order without repetition until all were
    drawn (the last batch before that may be smaller), and a centre becomes the mean of all vectors it was given so far:
    ``c += (mean(batch) - c) * n_batch / n_seen``. Once all were drawn, a centre without any moves to the worst-served
    vector of the batch.

    Time: the seeding compares each vector with each seed once; an iteration compares ``n``, or ``batch_size``, vectors
    with all centres. Memory beside ``z``: O(n + k d), or O(batch_size d); no ``n x k`` matrix and no copy of ``z``.

    Args:
        z: vectors, Float (n, d) with n >= 1.
        num_codes: number of centres, k.
        iterations: iterations after the seeding; 0 returns the seeds.
        generator: CPU generator for the seeding and the batches; None takes torch's global one.
        batch_size: vectors per iteration; None, or n and more, takes all of them in each.
        trials: draws per seed, of which the one that lowers the error most is kept. Several end 1 to 2 % lower. The
            seeding then goes seed by seed, slow for many thousands, and holds a copy of ``z``.

    Returns:
        Float (k, d), in ``z``'s dtype, at least float32.

    Raises:
        ValueError, TypeError: for an empty ``z``, values that are not finite, or impossible counts.

    Source: Lloyd 1982; k-means++, Arthur and Vassilvitskii 2007, with several seeds per pass by rejection sampling,
    which keeps their distribution (Cohen-Addad et al., arXiv 2012.11891; here with exact distances), or the best of
    several draws ("greedy", section 5.4 of Arthur's thesis, 2009); mini-batches, Sculley 2010 (here in shuffled order,
    and centres without vectors are moved).

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> kmeans(points, 2, iterations=5).sort(0).values.tolist()
        [[0.5], [10.5]]
    """
    _check(z, num_codes, iterations, batch_size, trials)
    z = z.detach()
    if len(z) <= num_codes:  # every vector is a centre
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return spread_out(z, num_codes, z, generator)
    centres = _seed(z, num_codes, generator) if trials == 1 else _seed_greedily(z, num_codes, generator, trials)
    if batch_size is None or batch_size >= len(z):
        for _ in range(iterations):
            centres = _lloyd(z, centres)
    else:
        centres = _mini_batches(z, centres, batch_size, iterations, generator)
    return spread_out(centres, num_codes, centres, generator)


def _check(z: Tensor, num_codes: int, iterations: int, batch_size: int | None, trials: int) -> None:
    counts = [("num_codes", num_codes, 1), ("iterations", iterations, 0), ("trials", trials, 1)]
    if batch_size is not None:
        counts.append(("batch_size", batch_size, 1))
    for name, value, least in counts:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InvalidTypeError(f"`kmeans`: `{name}` must be an integer. Got {value!r}.")
        if value < least:
            raise InvalidValueError(f"`kmeans`: `{name}` must be >= {least}. Got {value}.")
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise InvalidTypeError(f"`kmeans`: `z` must be a floating-point tensor. Got {got}.")
    if z.ndim != 2 or z.numel() == 0:
        raise InvalidValueError(f"`kmeans`: `z` must be (n, d) with n >= 1 and d >= 1. Got {tuple(z.shape)}.")
    # The extremes hold any NaN or infinity, and need no mask of z's size.
    if not torch.stack(z.detach().aminmax()).isfinite().all():
        raise NonFiniteError("`kmeans`: `z` must be finite. Got NaN or infinity.")


def _seed(z: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """k-means++: each next seed is drawn with probability proportional to its squared distance to the seeds so far.

    Each pass over the vectors proposes several, by the distances to the seeds of earlier passes. A proposal is kept
    with probability ``new / old``, its squared distance with and without the seeds kept before it in this pass: the
    seeds are distributed as if drawn one by one.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    error = torch.full((len(z),), float("inf"), dtype=dtype, device=z.device)
    fresh = torch.randint(len(z), (1,), generator=generator, device="cpu").to(z.device)
    picks = fresh
    while len(picks) < num:
        for rows, _, residual in _residuals(z, z[fresh].to(dtype)):
            torch.minimum(error[rows], residual.square().sum(1), out=error[rows])
        count = min(_PROPOSALS, num - len(picks))
        proposed = _draw_by_weight(error, count, generator)
        # Drawn in float32, so that they are the same in every dtype.
        level = torch.rand(count, generator=generator, device="cpu", dtype=torch.float32).to(error)
        fresh = proposed[_unrivalled(z[proposed].to(dtype), level * error[proposed])]
        picks = torch.cat([picks, fresh])
    return z[picks].to(dtype)


def _seed_greedily(z: Tensor, num: int, generator: torch.Generator | None, trials: int) -> Tensor:
    """k-means++ with ``trials`` draws for each seed, of which the one that leaves the smallest error is kept."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    rows = z.to(dtype) - z.to(dtype).mean(0)  # distances by products round least around the middle
    squares = rows.square().sum(1)
    picks = [torch.randint(len(z), (1,), generator=generator, device="cpu").to(z.device)]
    error = torch.full_like(squares, float("inf"))
    while True:
        drawn = picks[-1]
        # (n, trials); a vector's distance to itself is not 0 after rounding
        distance = (squares[:, None] + squares[drawn] - 2 * rows @ rows[drawn].T).clamp_(min=0)
        distance[drawn, torch.arange(len(drawn), device=z.device)] = 0
        left = torch.minimum(error[:, None], distance)
        best = left.sum(0).argmin()
        picks[-1], error = drawn[best, None], left[:, best]
        if len(picks) == num:
            return z[torch.cat(picks)].to(dtype)
        picks.append(_draw_by_weight(error, trials, generator))


def _draw_by_weight(weight: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Places, Int64 (count,), drawn with probability proportional to ``weight`` (n,), not negative.

    By exact sums of integers below 2^62, the same on every device; a weight below 2^-62 n of the largest counts as 0.
    """
    bits = 61 - len(weight).bit_length()
    most = weight.max().clamp(min=torch.finfo(weight.dtype).tiny)
    mass = (weight / most * 2.0**bits).long().cumsum(0)
    high, low = torch.randint(1 << 31, (2, count), generator=generator, device="cpu").to(weight.device)
    # A part of the whole, (2^31 high + low) / 2^62 of it: a product of 124 bits of which the upper 62 are wanted.
    whole_high, whole_low = mass[-1] >> 31, mass[-1] & ((1 << 31) - 1)
    level = whole_high * high + ((whole_high * low + whole_low * high) >> 31)
    return torch.searchsorted(mass, level, right=True).clamp(max=len(weight) - 1)


def _unrivalled(z: Tensor, threshold: Tensor) -> Tensor:
    """Places of the vectors kept, in turn: no earlier kept one is at a squared distance below their threshold."""
    # Differences, not a matrix product: equal vectors must be at distance 0.
    distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    rivals = (distance < threshold).cpu()
    excluded = torch.zeros(len(z), dtype=torch.bool, device="cpu")
    kept = []
    for i in range(len(z)):
        if not excluded[i]:
            kept.append(i)
            excluded |= rivals[i]
    return torch.tensor(kept, device=z.device)


def _lloyd(z: Tensor, centres: Tensor) -> Tensor:
    """One iteration: assign, move to the means, send empty centres to the worst-served vectors."""
    counts, sums, error = _assign(z, centres)
    means = centres + sums / counts.clamp(min=1)[:, None]
    return _relocate(means, counts == 0, z, error)[0]


def _mini_batches(
    z: Tensor, centres: Tensor, batch_size: int, iterations: int, generator: torch.Generator | None
) -> Tensor:
    """Sculley's iterations: every centre is the mean of the vectors that it was given so far."""
    seen = torch.zeros_like(centres[:, 0], dtype=torch.int64)
    batches = -(-len(z) // batch_size)  # until all vectors were drawn
    for i in range(iterations):
        turn = i % batches
        if turn == 0:
            order = torch.randperm(len(z), generator=generator, device="cpu")
        batch = z[order[turn * batch_size : (turn + 1) * batch_size].to(z.device)]
        counts, sums, error = _assign(batch, centres)
        seen += counts
        centres = centres + sums / seen.clamp(min=1)[:, None]
        if i + 1 >= batches:  # earlier, a seed of a small cluster may just not have met its vectors
            centres, moved = _relocate(centres, seen == 0, batch, error)
            seen += moved  # the vector that it stands on
    return centres


def _relocate(centres: Tensor, idle: Tensor, z: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Puts idle centres on the worst-served vectors, as far as there are vectors; also says which were moved."""
    worst = error.topk(min(len(centres), len(z))).indices
    rank = idle.long().cumsum(0) - 1
    moved = idle & (rank < len(worst))
    target = z[worst[rank.clamp(0, len(worst) - 1)]].to(centres.dtype)
    return torch.where(moved[:, None], target, centres), moved


def _assign(z: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per centre the number of its vectors, Int64, and the sum of their residuals; per vector its squared distance."""
    counts = torch.zeros_like(centres[:, 0], dtype=torch.int64)
    sums, lost = torch.zeros_like(centres), torch.zeros_like(centres)
    error = torch.empty_like(z[:, 0], dtype=centres.dtype)
    for rows, indices, residual in _residuals(z, centres):
        chunk_counts, chunk_sums = code_sums(residual, indices, len(centres))
        counts += chunk_counts
        sums, lost = add_compensated(sums, lost, chunk_sums)
        error[rows] = residual.square().sum(1)
    return counts, sums + lost, error


def _residuals(z: Tensor, centres: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Chunk by chunk: its rows, their nearest centres, and the vectors minus those.

    Sums of residuals keep their digits when the data are far from the origin, so ``z`` need not be centred.
    """
    step = max(len(centres), _CHUNK // z.shape[1])  # no fewer rows than centres: each chunk reads all of those
    for start in range(0, len(z), step):
        rows = slice(start, start + step)
        part = z[rows].to(centres.dtype)
        indices = nearest_code(part, centres)
        yield rows, indices, part - centres[indices]


def spread_out(rows: Tensor, num: int, z: Tensor, generator: torch.Generator | None) -> Tensor:
    """``num`` rows, no two of them equal: ``rows`` as they are, copies of them jittered."""
    out = rows[torch.arange(num, device=rows.device) % len(rows)]
    step = _jitter(rows, z)
    while True:
        is_copy = first_of_equals(out) != torch.arange(num, device=rows.device)
        if not is_copy.any():
            return out
        noise = torch.randn(out.shape, generator=generator, device="cpu", dtype=torch.float32).to(out)
        out = out + is_copy[:, None] * (step * noise)
        step = 2 * step  # a narrow table may have fewer places within a step than it has rows


def _jitter(rows: Tensor, z: Tensor) -> Tensor:
    """Standard deviation of what is added to copies: relative to the spread, or to the size where there is none.

    At least some units in the last place: far from the origin a smaller step would be rounded away.
    """
    most = rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)
    ulp = torch.finfo(rows.dtype).eps * most
    spread, size = z.std(0, unbiased=False).mean(), (rows / most).square().mean().sqrt() * most
    has_spread = (spread > 64 * ulp) & spread.isfinite()  # of values too large to be squared it is infinite
    size = torch.where(size > 0, size, 1e-3)
    return torch.maximum(_JITTER * torch.where(has_spread, spread, size), 64 * ulp)
