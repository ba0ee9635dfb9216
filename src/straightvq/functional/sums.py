"""Per-code sums: what EMA, the alternated step, k-means and the resets are made of."""

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError

# Vectors of one code that are added one after another, unless there are more codes; numbers in one launch, which on a
# CPU stay in its cache.
_IN_TURN, _NUMBERS, _NUMBERS_ACCELERATOR = 1024, 1 << 20, 1 << 24


def code_sums(z: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Number of vectors assigned to each code, Int64 (k,), and their sum, Float (k, d).

    No one-hot matrix is made. At most 1,024 vectors, or as many as there are codes, are added one after another, and
    those sums in pairs.

    Args:
        z: vectors, Float (n, d); the sums are in their dtype, at least float32.
        indices: code of each vector, Int64 (n,); negative, as at masked positions, for none.
        num_codes: number of codes, k.

    Example:
        >>> z = torch.tensor([[1.0], [2.0], [5.0]])
        >>> counts, sums = code_sums(z, torch.tensor([1, 1, -1]), 2)
        >>> counts.tolist(), sums.tolist()
        ([0, 2], [[0.0], [3.0]])
    """
    _check(z, indices, num_codes)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    # Masked vectors go to a bucket of their own behind the last code: no data-dependent shape, no host sync.
    bucket = torch.where(indices < 0, num_codes, indices)
    counts = torch.zeros(num_codes + 1, dtype=torch.int64, device=z.device)
    counts = counts.scatter_add(0, bucket.long(), torch.ones_like(bucket, dtype=torch.int64))
    return counts[:num_codes], _sums(z, bucket, num_codes + 1)[:num_codes]


def _sums(z: Tensor, bucket: Tensor, num: int) -> Tensor:
    """Sum of the vectors of each bucket, (num, d)."""
    n, d = z.shape
    in_turn = max(num, _IN_TURN)  # so that what is held beside z is no larger than it is
    if n <= in_turn:
        return z.new_zeros(num, d).index_add_(0, bucket, z)
    most = _NUMBERS if z.device.type == "cpu" else _NUMBERS_ACCELERATOR
    if n * d > most and n > 2 * in_turn:
        half = n // 2
        return _sums(z[:half], bucket[:half], num) + _sums(z[half:], bucket[half:], num)
    # Each part of the vectors has buckets of its own.
    parts = -(-n // in_turn)
    place = torch.arange(n, device=z.device) // in_turn * num + bucket
    return z.new_zeros(parts * num, d).index_add_(0, place, z).view(parts, num, d).sum(0)


def add_compensated(total: Tensor, lost: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """``total + part`` rounded, and ``lost`` plus what the rounding took from it.

    ``total + lost`` of many parts is as near to their sum as if rounded once or twice. Source: Knuth, The Art of
    Computer Programming 2, 4.2.2, theorem B.

    Example:
        >>> total, lost = torch.tensor(2.0**24), torch.tensor(0.0)
        >>> for _ in range(4):
        ...     total, lost = add_compensated(total, lost, torch.tensor(1.0))
        >>> (total + lost - 2**24).item()
        4.0
    """
    new = total + part
    added = new - total
    return new, lost + ((total - (new - added)) + (part - added))


def _check(z: Tensor, indices: Tensor, num_codes: int) -> None:
    if not isinstance(num_codes, int) or isinstance(num_codes, bool):
        raise InvalidTypeError(f"`code_sums`: `num_codes` must be an integer >= 1. Got {num_codes!r}.")
    if num_codes < 1:
        raise InvalidValueError(f"`code_sums`: `num_codes` must be an integer >= 1. Got {num_codes}.")
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise InvalidTypeError(f"`code_sums`: `z` must be a floating-point tensor. Got {got}.")
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise InvalidTypeError(f"`code_sums`: `indices` must be an integer tensor, int64 or int32. Got {got}.")
    if z.ndim != 2 or indices.shape != z.shape[:1]:
        raise InvalidValueError(
            f"`code_sums`: `z` must be (n, d) and `indices` (n,). Got {tuple(z.shape)} and {tuple(indices.shape)}."
        )
    if torch.compiler.is_compiling() or indices.device.type != "cpu" or not len(indices):
        return  # out of range is an index error of the device there
    if int(indices.max()) >= num_codes:
        raise InvalidValueError(
            f"`code_sums`: `indices` must be in [0, {num_codes}), or negative for none. Got {int(indices.max())}."
        )
