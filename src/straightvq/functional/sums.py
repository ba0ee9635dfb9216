"""Per-code sums: what EMA, the alternated step, k-means and the resets are made of."""

import torch
from torch import Tensor


def code_sums(z: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Number of vectors assigned to each code, and their sum.

    Vectors with a negative index (masked positions) belong to no code. No one-hot matrix is made.

    Args:
        z: vectors.
        indices: code of each vector; negative for none.
        num_codes: number of codes, k.

    Shape:
        z: Float (n, d); indices: Int64 (n,).

    Returns:
        counts Float (k,) and sums Float (k, d), in ``z``'s dtype, at least float32.

    Example:
        >>> z = torch.tensor([[1.0], [2.0], [5.0]])
        >>> counts, sums = code_sums(z, torch.tensor([1, 1, -1]), 2)
        >>> counts.tolist(), sums.tolist()
        ([0.0, 2.0], [[0.0], [3.0]])
    """
    _check(z, indices, num_codes)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    # Masked vectors go to a bucket of their own behind the last code: no data-dependent shape, no host sync.
    bucket = torch.where(indices < 0, num_codes, indices)
    counts = torch.zeros(num_codes + 1, dtype=torch.int64, device=z.device)
    counts = counts.scatter_add(0, bucket, torch.ones_like(bucket))
    sums = z.new_zeros(num_codes + 1, z.shape[1]).index_add(0, bucket, z)
    return counts[:num_codes].to(z.dtype), sums[:num_codes]


def _check(z: Tensor, indices: Tensor, num_codes: int) -> None:
    if not isinstance(num_codes, int) or isinstance(num_codes, bool):
        raise TypeError(f"`code_sums`: `num_codes` must be an integer >= 1. Got {num_codes!r}.")
    if num_codes < 1:
        raise ValueError(f"`code_sums`: `num_codes` must be an integer >= 1. Got {num_codes}.")
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"`code_sums`: `z` must be a floating-point tensor. Got {got}.")
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"`code_sums`: `indices` must be an integer tensor, int64 or int32. Got {got}.")
    if z.ndim != 2 or indices.shape != z.shape[:1]:
        raise ValueError(
            f"`code_sums`: `z` must be (n, d) and `indices` (n,). Got {tuple(z.shape)} and {tuple(indices.shape)}."
        )
    if torch.compiler.is_compiling() or indices.device.type != "cpu" or not len(indices):
        return  # out of range is an index error of the device there
    if int(indices.max()) >= num_codes:
        raise ValueError(
            f"`code_sums`: `indices` must be in [0, {num_codes}), or negative for none. Got {int(indices.max())}."
        )
