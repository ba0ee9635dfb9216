"""Which codes are used, and how evenly.

Add up counts over batches, ranks and epochs: measured on the sum, the values are exact for any batch size.
"""

import torch
from torch import Tensor

from straightvq.diagnostics.functional.vectors import ratio, shape_error, wide_dtype
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.part import check_int


def usage_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """Number of vectors assigned to each code: Int64 (k,).

    Args:
        indices: of one codebook, Int (*batch). Negative ones mark masked positions and are ignored.
        codebook_size: number of codes k.

    Raises:
        TypeError: if `indices` are not integers.
        ValueError: if an index is `codebook_size` or more, or `codebook_size` is not positive.

    Example:
        >>> usage_counts(torch.tensor([[0, 2, 2], [1, -1, 0]]), 4)
        tensor([2, 1, 2, 0])
    """
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise InvalidTypeError(f"`usage_counts`: `indices` must be integers. Got {indices.dtype}.")
    check_int("usage_counts", "codebook_size", codebook_size, 1)
    flat = indices.reshape(-1).long()
    if flat.numel() and (largest := int(flat.max())) >= codebook_size:
        raise InvalidValueError(f"`usage_counts`: `indices` must be integers below {codebook_size=}. Got {largest}.")
    # A spare slot collects the masked positions: no data-dependent selection.
    slots = torch.where(flat < 0, codebook_size, flat)
    counts = torch.zeros(codebook_size + 1, dtype=torch.int64, device=flat.device)
    return counts.scatter_add_(0, slots, torch.ones_like(slots))[:codebook_size]


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes: exp(-sum_k p_k log p_k), p = counts / sum(counts).

    From 1 (one code takes everything) to k (all equally frequent); 0 where nothing was counted. A trained codebook of
    about a thousand codes reaches several hundred; a collapsed one stays near ten. It cannot exceed the number of
    vectors counted, so count many per code. Counts are Int or Float (*levels, k), the result Float (*levels).

    Source: the paper's tables, over the test set, without the `+ 1e-10` in the logarithm: p log p is 0 at p = 0.

    Example:
        >>> perplexity(torch.tensor([2, 1, 1, 0]))  # exp(1/2 log 2 + 1/2 log 4) = 2 * sqrt(2)
        tensor(2.8284)
    """
    wide = counts.to(wide_dtype(counts))
    total = wide.sum(-1, keepdim=True)
    entropy = torch.special.entr(ratio(wide, total)).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0).float()


def usage(counts: Tensor) -> Tensor:
    """Fraction of the codes assigned at least once: the paper's "active %", divided by 100; 0 if nothing was counted.

    0.9 and more is normal over a data set with resets or a well-conditioned codebook; a few percent means collapse. It
    grows with the number of vectors counted: state the set with the value. Counts are Int or Float (*levels, k), the
    result Float (*levels).

    Example:
        >>> usage(torch.tensor([2, 1, 1, 0]))
        tensor(0.7500)
    """
    return (counts > 0).float().mean(-1)


def dead_codes(counts: Tensor) -> Tensor:
    """Number of codes never assigned, Int64 (*levels), of counts Int or Float (*levels, k).

    Example:
        >>> dead_codes(torch.tensor([2, 1, 1, 0]))
        tensor(1)
    """
    return (counts <= 0).sum(-1)


def sliding_usage(counts: Tensor, window: int) -> Tensor:
    """`usage` of the counts of the last `window` steps, for every step; the first steps look back on fewer.

    It falls when a codebook collapses in the course of training, which usage over all steps so far cannot.

    Args:
        counts: `usage_counts` of each step, Int or Float (steps, k); the result is Float (steps,).
        window: number of steps, at least 1; enough to hold four vectors per code.

    Raises: ValueError if `counts` is not a table or `window` is below 1.
    Source: "The set of assigned code-vectors continuously shrinks", the paper's index collapse.

    Example:
        >>> sliding_usage(torch.tensor([[3, 1], [4, 0], [4, 0], [4, 0]]), window=2)
        tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """
    if counts.ndim != 2 or not counts.shape[1]:
        raise shape_error("sliding_usage", "`counts` must have the shape (steps, k), k >= 1", counts)
    check_int("sliding_usage", "window", window, 1)
    # In how many of the steps so far each code was assigned: a window is the difference of two of these.
    seen = (counts > 0).long().cumsum(0)
    before = torch.cat([torch.zeros_like(seen[:1]).expand(min(window, len(seen)), -1), seen[:-window]])
    return (seen > before).float().mean(1)
