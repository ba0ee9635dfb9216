"""Accumulators of the diagnostics over batches and ranks, as `torchmetrics` metrics.

Each keeps sufficient statistics and computes at the end, so that the value over a data set is the one a
single pass
over all of it gives: for any batch size, any number of ranks, uneven and empty shards. Update on every rank,
call `compute` on every rank. Statistics keep their precision under `.half()`, `.to(dtype)` and `set_dtype`.

Vectors are channels-last, `(*batch, dim)`; a mask is True where a position takes part.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from straightvq.diagnostics import functional
from straightvq.errors import InvalidValueError


class _ExactMetric(Metric):
    """A metric whose states never change dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Module:
        # torchmetrics guards its states against `.half()`, but not against `.to(torch.half)`, which is what
        # true half-precision training calls, nor against `set_dtype`. Devices still change.
        def keep_dtype(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(keep_dtype, *args, **kwargs)


class CodebookUsage(_ExactMetric):
    """Usage, perplexity and dead codes over everything seen since the last `reset`.

    The state is the int64 sum of `usage_counts`; the values are those of the summed counts, never a mean of
    batch values, and do not depend on batch size or number of ranks. Until something was counted, usage and
    perplexity are 0. See `usage`, `perplexity` and `dead_codes` for units and what is normal.

    Args:
        codebook_size: number of codes k, the maximum of the perplexity.
        num_quantizers: number of codebooks when `indices` have a last axis for them (residual levels, product
            groups); every value then has one entry per codebook. None: one codebook, no such axis.

    Shape:
        indices: Int (*batch), or (*batch, num_quantizers). Negative ones, which mark masked positions, are
        ignored.

    Returns:
        `compute()`: {"usage", "perplexity", "dead_codes"}, each (), or (num_quantizers,).

    Raises:
        ValueError: on impossible sizes, an index out of range or a last axis of another length.
        TypeError: if `indices` are not integers.

    Example:
        >>> metric = CodebookUsage(codebook_size=4)
        >>> metric.update(torch.tensor([0, 0, 1]))
        >>> metric.update(torch.tensor([2, -1]))
        >>> metric.compute()
        {'usage': tensor(0.7500), 'perplexity': tensor(2.8284), 'dead_codes': tensor(1)}
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int, num_quantizers: int | None = None) -> None:
        super().__init__()
        if codebook_size < 1:
            raise InvalidValueError(f"`CodebookUsage`: `codebook_size` must be an integer >= 1. Got {codebook_size}.")
        if num_quantizers is not None and num_quantizers < 1:
            raise InvalidValueError(
                f"`CodebookUsage`: `num_quantizers` must be an integer >= 1 or None. Got {num_quantizers}."
            )
        self.codebook_size = codebook_size
        self.num_quantizers = num_quantizers
        shape = (codebook_size,) if num_quantizers is None else (num_quantizers, codebook_size)
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Count a batch of indices."""
        if self.num_quantizers is None:
            self.counts += functional.usage_counts(indices, self.codebook_size)
            return
        if indices.ndim == 0 or indices.shape[-1] != self.num_quantizers:
            raise InvalidValueError(
                f"`CodebookUsage`: `indices` must have a last axis of num_quantizers={self.num_quantizers}. "
                f"Got the shape {tuple(indices.shape)}."
            )
        levels = [functional.usage_counts(level, self.codebook_size) for level in indices.unbind(-1)]
        self.counts += torch.stack(levels)

    def compute(self) -> dict[str, Tensor]:
        """Return the values of the summed counts."""
        return {
            "usage": functional.usage(self.counts),
            "perplexity": functional.perplexity(self.counts),
            "dead_codes": functional.dead_codes(self.counts),
        }


class _PooledMoments(_ExactMetric):
    """Base of metrics built on means and variances that must survive an offset.

    A state is one float64 table `(rows, dim)`: count, mean, sum of squared deviations from that mean, and
    further rows that simply add. Sums of squares would cancel far from the origin, and states that are
    reduced one by one cannot be merged without them; one table per distribution can, by Chan's pairwise
    formula, in one collective.

    The width is known at the first batch; until then a state has no columns. Metric code that stacks states
    of two
    shapes is therefore replaced: `forward` by its full form, `merge_state` and the gathering below.
    """

    full_state_update = True

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=_gather_tables)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in what another metric of this class, or its `metric_state`, has accumulated."""
        if isinstance(incoming_state, Metric):
            if not isinstance(incoming_state, type(self)):
                raise InvalidValueError(
                    f"`{type(self).__name__}`: `incoming_state` must be of the same class. "
                    f"Got {type(incoming_state).__name__}."
                )
            incoming_state = {name: getattr(incoming_state, name) for name in self._defaults}
        for name in self._defaults:
            self._take_in(name, incoming_state[name])
        # As after an update: no cached value, and no warning that there was none.
        self._computed = None
        self._update_count += 1

    def _take_in(self, name: str, table: Tensor) -> None:
        state = getattr(self, name)
        if state.shape[1] == 0:
            setattr(self, name, table)
        elif table.shape[1] not in (0, state.shape[1]):
            raise InvalidValueError(
                f"`{type(self).__name__}`: vectors must have dim={state.shape[1]} as before. Got {table.shape[1]}."
            )
        elif table.shape[1]:
            setattr(self, name, _merge_tables(torch.stack([state, table.to(state)])))


class QuantizationError(_PooledMoments):
    """Quantization error over everything seen since the last `reset`, absolute and relative to the spread of
    z.

    mse = mean (z - q)^2 over all unmasked elements, in squared units of z, as in the losses;
    normalized = mean ||z - q||^2 / mean ||z - mean z||^2 with the mean of *all* z seen; see
    `normalized_quantization_error` for what is normal. Both are nan until a vector was seen.

    Shape:
        z, quantized: Float (*batch, dim).
        mask: Bool (*batch), True where a position takes part.

    Returns:
        `compute()`: {"mse", "normalized"}, each Float32 ().

    Raises:
        ValueError: if shapes do not fit each other or earlier batches.

    Example:
        >>> metric = QuantizationError()
        >>> metric.update(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
        >>> metric.update(torch.tensor([[4.0], [6.0]]), torch.tensor([[5.0], [5.0]]))
        >>> metric.compute()  # error 1, variance 5
        {'mse': tensor(1.), 'normalized': tensor(0.2000)}
    """

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("table", torch.zeros(4, 0), dist_reduce_fx=_merge_tables)

    def update(self, z: Tensor, quantized: Tensor, mask: Tensor | None = None) -> None:
        """Accumulate a batch of embeddings and what the quantizer made of them."""
        if z.shape != quantized.shape:
            raise InvalidValueError(
                f"`QuantizationError`: `quantized` must have the shape of `z`, {tuple(z.shape)}. "
                f"Got {tuple(quantized.shape)}."
            )
        flat = _selected(z, mask, "QuantizationError")
        error = (flat - _selected(quantized, mask, "QuantizationError")).square().sum(0, keepdim=True)
        self._take_in("table", torch.cat([_table(flat), error]))

    def compute(self) -> dict[str, Tensor]:
        """Return the two errors over all vectors seen."""
        count, _, deviations, error = self.table.sum(-1)
        nothing = torch.full_like(count, torch.nan)
        normalized = torch.where(count > 0, functional.ratio(error, deviations), nothing)
        return {"mse": (error / count).float(), "normalized": normalized.float()}


class MomentDistance(_PooledMoments):
    """`moment_distance` between the embeddings seen since the last `reset` and the codebook they met.

    Each update also takes the codes of that moment, so the metric needs no hold on the quantizer. In
    evaluation the codebook stands still and the values are those of `moment_distance` on all embeddings at
    once. In training the codes of all updates are pooled just as the embeddings are. All values are nan until
    both were seen.

    Shape:
        z: Float (*batch, dim).
        codes: Float (codebook_size, dim), effective codes.
        mask: Bool (*batch), True where a position takes part.

    Returns:
        `compute()`: {"mean", "std", "wasserstein"} in standard deviations of z and {"symmetric_kl"} in nats,
        each Float32 ().

    Raises:
        ValueError: if shapes do not fit each other or earlier batches.

    Example:
        >>> metric = MomentDistance()
        >>> codes = torch.tensor([[2.0], [6.0]])
        >>> metric.update(torch.tensor([[-1.0]]), codes)
        >>> metric.update(torch.tensor([[1.0]]), codes)
        >>> metric.compute()["symmetric_kl"]
        tensor(11.1250)
    """

    embeddings: Tensor
    codebook: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", torch.zeros(3, 0), dist_reduce_fx=_merge_tables)
        self.add_state("codebook", torch.zeros(3, 0), dist_reduce_fx=_merge_tables)

    def update(self, z: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        """Accumulate a batch of embeddings and the codes in force."""
        if z.ndim == 0 or codes.ndim != 2 or z.shape[-1] != codes.shape[-1]:
            raise InvalidValueError(
                f"`MomentDistance`: `codes` must have the shape (codebook_size, dim) with the last axis "
                f"of `z`, {tuple(z.shape)}. Got {tuple(codes.shape)}."
            )
        flat = _selected(z, mask, "MomentDistance")
        self._take_in("embeddings", _table(flat))
        self._take_in("codebook", _table(_selected(codes, None, "MomentDistance")))

    def compute(self) -> dict[str, Tensor]:
        """Return the distances between the pooled moments."""
        nothing = self.embeddings.new_full((), torch.nan, dtype=torch.float32)
        # Without columns there is also nothing to compare: `all` of nothing is True, hence the width.
        seen = self.embeddings.shape[1] > 0 and bool((self.embeddings[0] * self.codebook[0] > 0).all())
        if not seen:
            return dict.fromkeys(functional.MomentGap._fields, nothing)
        (n, mean_z, deviations_z), (k, mean_codes, deviations_codes) = self.embeddings, self.codebook
        gap = functional.compare_moments(mean_z, deviations_z / n, mean_codes, deviations_codes / k)
        return {name: value.float() for name, value in gap._asdict().items()}


def _selected(x: Tensor, mask: Tensor | None, owner: str) -> Tensor:
    """Flatten to the unmasked vectors `(n, dim)`, wide; n may be 0."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise InvalidValueError(f"`{owner}`: vectors must have the shape (*batch, dim). Got {tuple(x.shape)}.")
    wide = x.detach().to(functional.vectors.wide_dtype(x))
    if mask is None:
        return wide.reshape(-1, x.shape[-1])
    if mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
        raise InvalidValueError(
            f"`{owner}`: `mask` must be boolean of the shape {tuple(x.shape[:-1])}. "
            f"Got {mask.dtype} of {tuple(mask.shape)}."
        )
    return wide[mask]


def _table(flat: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of `(n, dim)`: `(3, dim)`, zeros for n = 0."""
    if not len(flat):
        return flat.new_zeros(3, flat.shape[1])
    mean, centred = functional.vectors.deviations(flat)
    return torch.stack([torch.full_like(mean, len(flat)), mean, centred.square().sum(0)])


def _merge_tables(tables: Tensor) -> Tensor:
    """Merge `(parts, rows, dim)` to `(rows, dim)` as if all vectors had been in one part."""
    return functools.reduce(functional.vectors.merge_tables, tables.unbind())


def _gather_tables(table: Tensor, group: Any | None = None) -> list[Tensor]:
    """Gather the tables of all ranks in one shape; a rank that saw nothing contributes zeros, which count
    nothing."""
    gathered = gather_all_tensors(table.to(functional.vectors.wide_dtype(table)), group)
    width = max(part.shape[1] for part in gathered)
    return [part if part.shape[1] == width else part.new_zeros(len(part), width) for part in gathered]
