"""Equal rows of a table, in memory and time of its own size."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio: spreads the bits of a row's hash
_CHUNK = 1 << 16  # words hashed at a time on the CPU, which stay in its cache


def first_of_equals(rows: Tensor) -> Tensor:
    """For each row, Float (k, d), the lowest index of a row equal to it, Int64 (k,).

    Rows are sorted by a hash of 64 bits and neighbours compared in full. A copy may go unseen only where rows that
    differ share a hash: by chance once in 2^32 tables of 65,536 rows.

    Example:
        >>> first_of_equals(torch.tensor([[1.0], [0.0], [1.0], [-0.0]])).tolist()
        [0, 1, 0, 1]
    """
    key, order = _hash(rows).sort(stable=True)
    if key.device.type == "cpu" and not (key[1:] == key[:-1]).any():
        # No two are equal; elsewhere the question would wait for the device.
        return torch.arange(len(order), device=order.device)
    ordered = rows[order]
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(1)
    at = torch.arange(len(order), device=order.device)
    run = torch.where(starts, at, 0).cummax(0).values
    return torch.empty_like(order).scatter(0, order, order[run])


def _hash(rows: Tensor) -> Tensor:
    """Int64 (k,): equal for equal rows, -0 and 0 included."""
    rows = rows + 0.0
    if rows.dtype != torch.float64:
        rows = F.pad(rows.float(), (0, rows.shape[1] % 2))  # two numbers to each word of 64 bits
    bits = rows.contiguous().view(torch.int64)
    # Sums, because inductor multiplies what it has numbered itself in 32 bits on a GPU.
    odd = bits.new_full(bits.shape[1:], _ODD).cumsum(0) | 1
    step = max(1, _CHUNK // max(1, bits.shape[1])) if bits.device.type == "cpu" else max(1, len(bits))
    # A number of few digits ends in zeros; what it has is moved down to where a product carries it upwards.
    return torch.cat([((part ^ (part >> 20) ^ (part >> 41)) * odd).sum(1) for part in bits.split(step)])
