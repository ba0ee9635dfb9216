"""Accumulators of what reaches encoder and codes in a step, as `torchmetrics` metrics.

Like those of `straightvq.diagnostics.metrics` they keep sums, so that a value over many steps or batches is the one a
single pass over all of them gives, for any number of ranks. Update on every rank, call `compute` on every rank.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from straightvq.diagnostics import functional
from straightvq.diagnostics.metrics import _ExactMetric, _merge_tables, _PooledMoments, _selected, _table
from straightvq.errors import InvalidValueError


class EstimatorGap(_ExactMetric):
    """`gradient_gap` of the straight-through estimator over everything seen since the last `reset`.

    The values are those of all gradients put end to end. norm therefore grows with their number and depends on how
    each loss averages; relative (0 is exact) and cosine (1 is exact) are the ones to compare. All are nan until
    something was seen.

    Shape:
        grad_at_z, grad_at_quantized: Float, any one shape, which may change between updates.

    Returns:
        `compute()`: {"norm", "relative", "cosine"}, each Float32 (); see `gradient_gap` for zero gradients.

    Raises:
        ValueError: if the shapes differ.

    Source:
        The gradient gap of the paper's analysis of the straight-through estimator.

    Example:
        >>> metric = EstimatorGap()
        >>> metric.update(torch.tensor([3.0]), torch.tensor([0.0]))
        >>> metric.update(torch.tensor([4.0]), torch.tensor([4.0]))
        >>> metric.compute()  # ||(3, 0)|| over ||(3, 4)||
        {'norm': tensor(3.), 'relative': tensor(0.6000), 'cosine': tensor(0.8000)}
    """

    full_state_update = False
    squares: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=_gather_wide)
        # How many were seen; squared norms of the difference and of both; their inner product.
        self.add_state("squares", torch.zeros(5), dist_reduce_fx="sum")

    def update(self, grad_at_z: Tensor, grad_at_quantized: Tensor) -> None:
        """Take in the gradients of one batch at the embeddings and at the quantized vectors."""
        if grad_at_z.shape != grad_at_quantized.shape:
            raise InvalidValueError(
                f"`EstimatorGap`: `grad_at_quantized` must have the shape of `grad_at_z`, {tuple(grad_at_z.shape)}. "
                f"Got {tuple(grad_at_quantized.shape)}."
            )
        a = grad_at_z.detach().flatten().to(functional.vectors.wide_dtype(grad_at_z))
        b = grad_at_quantized.detach().flatten().to(a.dtype)
        seen = torch.ones_like(a[:1]).sum()  # 0 for an empty shard
        self.squares = self.squares + torch.stack([seen, (a - b) @ (a - b), a @ a, b @ b, a @ b])

    def compute(self) -> dict[str, Tensor]:
        """Return the gap of all gradients seen."""
        seen, apart, at_z, at_quantized, inner = self.squares
        norm = apart.sqrt()
        cosine = functional.ratio(functional.ratio(inner, at_z.sqrt()), at_quantized.sqrt()).clamp(-1, 1)
        cosine = torch.where((at_z == 0) & (at_quantized == 0), 1.0, cosine)
        values = {"norm": norm, "relative": functional.ratio(norm, at_z.sqrt()), "cosine": cosine}
        return {name: torch.where(seen > 0, value, torch.nan).float() for name, value in values.items()}


class GradientSparsity(_ExactMetric):
    """`gradient_sparsity` of the codebook over all steps since the last `reset`.

    A mean over steps cannot tell a codebook whose codes take turns from one of which most never get anything; the
    second value can. Both are nan until a step was seen. Ranks that hold equal gradients, as after a data-parallel
    backward, change neither.

    Args:
        codebook_size: number of codes k.

    Shape:
        grad: Float (k, dim), the gradient of the code table, or its change in a step.

    Returns:
        `compute()`: {"per_step": mean fraction of codes with a gradient, "ever": fraction that had one in any step},
        each Float32 ().

    Raises:
        ValueError: if `codebook_size` is below 1 or `grad` is not a table of that many rows.

    Example:
        >>> metric = GradientSparsity(codebook_size=4)
        >>> metric.update(torch.tensor([[1.0], [0.0], [0.0], [0.0]]))
        >>> metric.update(torch.tensor([[0.0], [2.0], [0.0], [0.0]]))
        >>> metric.compute()
        {'per_step': tensor(0.2500), 'ever': tensor(0.5000)}
    """

    full_state_update = False
    steps: Tensor
    with_gradient: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.codebook_size = _at_least_1("GradientSparsity", "codebook_size", codebook_size)
        self.add_state("steps", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("with_gradient", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, grad: Tensor) -> None:
        """Take in the gradient of one step."""
        if grad.ndim != 2 or len(grad) != self.codebook_size:
            raise InvalidValueError(
                f"`GradientSparsity`: `grad` must have the shape (codebook_size={self.codebook_size}, dim). "
                f"Got {tuple(grad.shape)}."
            )
        self.with_gradient += (grad.detach() != 0).any(-1)
        self.steps += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the two fractions."""
        per_step = self.with_gradient.double().mean().float() / self.steps
        ever = torch.where(self.steps > 0, (self.with_gradient > 0).float().mean(), torch.nan)
        return {"per_step": per_step, "ever": ever}


class SlidingUsage(_ExactMetric):
    """`usage` of the codes within the last `window` steps: the index collapse of a training, as it happens.

    Usage over everything so far cannot shrink; this can. An update is a step: call it once per step on every rank,
    with no indices where a rank has none, so that the same steps are added up. Until a step was seen it is 0.

    Args:
        codebook_size: number of codes k.
        window: number of steps, at least 1. Choose it so that it holds at least four vectors per code. The state has
            `window` rows of k counts.

    Shape:
        indices: Int (*batch); negative ones, which mark masked positions, are ignored.

    Returns:
        `compute()`: Float32 (), the last entry of `sliding_usage` over all steps.

    Raises:
        ValueError: if a size is below 1 or an index out of range.
        TypeError: if `indices` are not integers.

    Source:
        "The set of assigned code-vectors continuously shrinks", the paper's index collapse.

    Example:
        >>> metric = SlidingUsage(codebook_size=2, window=2)
        >>> for indices in ([0, 1], [0, 0], [0, 0]):
        ...     metric.update(torch.tensor(indices))
        >>> metric.compute()
        tensor(0.5000)
    """

    full_state_update = True
    counts: Tensor
    step: Tensor

    def __init__(self, codebook_size: int, window: int) -> None:
        super().__init__()
        self.codebook_size = _at_least_1("SlidingUsage", "codebook_size", codebook_size)
        self.window = _at_least_1("SlidingUsage", "window", window)
        self.add_state("counts", torch.zeros(window, codebook_size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("step", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, indices: Tensor) -> None:
        """Count the indices of one step, in the place of those that are `window` steps old."""
        counts = functional.usage_counts(indices, self.codebook_size)
        self.counts[self.step % self.window] = counts
        self.step += 1

    def compute(self) -> Tensor:
        """Return the fraction of the codes that were assigned within the window."""
        return functional.usage(self.counts.sum(0))


class CodebookDelay(_PooledMoments):
    """`update_delay` over everything seen since the last `reset`: how far the codebook lags behind the encoder.

    Within one step, over many batches, the values are those of `update_delay` on all vectors at once. Over several
    steps vectors and errors are pooled in the same way. All are nan until a vector was seen.

    Args:
        distance: by which codes are assigned; see `straightvq.functional.nearest_code`.

    Shape:
        z_before, z_after: Float (*batch, dim), embeddings of the same inputs before and after a step.
        codes_before, codes_after: Float (k, dim), effective codes.

    Returns:
        `compute()`: {"before", "aimed", "after", "delay"} over the variance of the embeddings before the step, each
        Float32 ().

    Raises:
        ValueError: if shapes do not fit each other or earlier batches.

    Source:
        The paper: the codebook "is always delayed by a single iteration". The measure is ours.

    Example:
        >>> z, before, after = torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0]]), torch.tensor([[1.0]])
        >>> metric = CodebookDelay()
        >>> for one in z.split(1):
        ...     metric.update(one, one - 1, before, after)
        >>> metric.compute()
        {'before': tensor(5.), 'aimed': tensor(2.), 'after': tensor(5.), 'delay': tensor(3.)}
    """

    table: Tensor

    def __init__(self, *, distance: Literal["euclidean", "cosine"] = "euclidean") -> None:
        super().__init__()
        if distance not in ("euclidean", "cosine"):
            raise InvalidValueError(f"`CodebookDelay`: `distance` must be 'euclidean' or 'cosine'. Got {distance!r}.")
        self.distance = distance
        self.add_state("table", torch.zeros(6, 0), dist_reduce_fx=_merge_tables)

    def update(self, z_before: Tensor, z_after: Tensor, codes_before: Tensor, codes_after: Tensor) -> None:
        """Take in vectors and codes around a step."""
        missed = functional.gradients.step_misses(
            "CodebookDelay", z_before, z_after, codes_before, codes_after, self.distance
        )
        squares = torch.stack([part.square().sum(0) for part in missed])
        self._take_in("table", torch.cat([_table(_selected(z_before, None, "CodebookDelay")), squares]))

    def compute(self) -> dict[str, Tensor]:
        """Return the errors and the delay over all vectors seen."""
        count, _, deviations, *errors = self.table.sum(-1)
        before, aimed, after = (
            torch.where(count > 0, functional.ratio(error, deviations), torch.nan) for error in errors
        )
        values = {"before": before, "aimed": aimed, "after": after, "delay": after - aimed}
        return {name: value.float() for name, value in values.items()}


def _at_least_1(owner: str, name: str, value: int) -> int:
    if value < 1:
        raise InvalidValueError(f"`{owner}`: `{name}` must be an integer >= 1. Got {value}.")
    return value


def _gather_wide(state: Tensor, group: Any | None = None) -> list[Tensor]:
    """States of all ranks in one dtype: one that saw nothing has not been widened yet."""
    return gather_all_tensors(state.to(functional.vectors.wide_dtype(state)), group)
