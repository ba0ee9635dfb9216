"""Accumulators over batches and ranks, as `torchmetrics` metrics.

Each keeps sums and computes at the end: the value is that of a single pass over the data set, for any batch size and
number of ranks, uneven and empty shards included. Call `update` and `compute` on every rank. Sums keep their precision
under `.half()`, `.to(dtype)` and `set_dtype`.

Vectors are channels-last, Float `(*batch, dim)`; a mask, Bool `(*batch)`, is True where a position takes part. Values
are Float32 `()` unless stated otherwise, nan until something was seen, and explained by the functions that the classes
name. Shapes that do not fit each other or earlier batches, and sizes below 1, raise `ValueError`; sizes and indices
that are not integers raise `TypeError`. What is refused changes nothing.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from straightvq.diagnostics import functional
from straightvq.diagnostics.exact import ExactMetric, PooledMoments, gather_wide
from straightvq.diagnostics.functional.gradients import gap_of_norms, step_misses
from straightvq.diagnostics.functional.vectors import check_codes, check_shape, shape_error, wide_dtype
from straightvq.errors import InvalidValueError
from straightvq.functional.nearest import Distance
from straightvq.nn.part import check_choice, check_int


class CodebookUsage(ExactMetric):
    """`usage`, `perplexity` and `dead_codes` of the summed counts; usage and perplexity of nothing are 0.

    Args:
        codebook_size: number of codes k.
        num_quantizers: number of codebooks when `indices` have a last axis for them (residual levels, product
            groups); every value then has one entry per codebook. None: one codebook, no such axis.

    Shape: indices: Int (*batch), or (*batch, num_quantizers). Negative ones, which mark masked positions, are ignored.
    Returns: `compute()`: {"usage", "perplexity", "dead_codes"}, each (), or (num_quantizers,).

    Example:
        >>> metric = CodebookUsage(codebook_size=4)
        >>> metric.update(torch.tensor([0, 0, 1]))
        >>> metric.update(torch.tensor([2, -1]))
        >>> metric.compute()
        {'usage': tensor(0.7500), 'perplexity': tensor(2.8284), 'dead_codes': tensor(1)}
    """

    counts: Tensor

    def __init__(self, codebook_size: int | Sequence[int], num_quantizers: int | None = None) -> None:
        super().__init__()
        if num_quantizers is not None:
            num_quantizers = check_int(self, "num_quantizers", num_quantizers, 1)
        if isinstance(codebook_size, Sequence):
            sizes = [check_int(self, "codebook_size", size, 1) for size in codebook_size]
            if num_quantizers not in (None, len(sizes)) or not sizes:
                raise InvalidValueError(
                    f"`CodebookUsage`: `codebook_size` must have a size for each of {num_quantizers} quantizers. "
                    f"Got {sizes}."
                )
            num_quantizers = len(sizes)
        else:
            sizes = [check_int(self, "codebook_size", codebook_size, 1)] * (num_quantizers or 1)
        self.sizes, self.num_quantizers = sizes, num_quantizers
        shape = (len(sizes), max(sizes))
        self.add_state("counts", torch.zeros(shape[num_quantizers is None :], dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Count a batch of indices."""
        levels = self.num_quantizers
        if levels is not None and (indices.ndim == 0 or indices.shape[-1] != levels):
            raise shape_error("CodebookUsage", f"`indices` must have a last axis of num_quantizers={levels}", indices)
        parts = [indices] if levels is None else indices.unbind(-1)
        counts = [functional.usage_counts(part, size) for part, size in zip(parts, self.sizes, strict=True)]
        for row, own in zip(self.counts.view(-1, max(self.sizes)), counts, strict=True):
            row[: len(own)] += own

    def compute(self) -> dict[str, Tensor]:
        sizes = torch.tensor(self.sizes, device=self.counts.device).view(self.counts.shape[:-1])
        dead = functional.dead_codes(self.counts) - (max(self.sizes) - sizes)
        usage = (sizes - dead) / sizes
        return {"usage": usage, "perplexity": functional.perplexity(self.counts), "dead_codes": dead}


class SlidingUsage(ExactMetric):
    """The last entry of `sliding_usage` over all steps: the index collapse of a training, as it happens.

    An update is a step: call it once per step on every rank, with no indices where a rank has none. 0 before the first.

    Args:
        codebook_size: number of codes k.
        window: number of steps; enough to hold four vectors per code. The state has `window` rows of k counts.

    Shape: indices: Int (*batch); negative ones, which mark masked positions, are ignored.

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
        self.codebook_size = check_int(self, "codebook_size", codebook_size, 1)
        self.window = check_int(self, "window", window, 1)
        self.add_state("counts", torch.zeros(window, codebook_size, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("step", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, indices: Tensor) -> None:
        """Count the indices of one step, in the place of those that are `window` steps old."""
        self.counts[self.step % self.window] = functional.usage_counts(indices, self.codebook_size)
        self.step += 1

    def compute(self) -> Tensor:
        return functional.usage(self.counts.sum(0))


class QuantizationError(PooledMoments):
    """Quantization error, absolute and relative to the spread of z.

    Returns: `compute()`: {"mse": mean (z - q)^2 over all elements, "normalized": `normalized_quantization_error`}.

    Example:
        >>> metric = QuantizationError()
        >>> metric.update(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
        >>> metric.update(torch.tensor([[4.0], [6.0]]), torch.tensor([[5.0], [5.0]]))
        >>> metric.compute()  # error 1, variance 5
        {'mse': tensor(1.), 'normalized': tensor(0.2000)}
    """

    table: Tensor

    def __init__(self) -> None:
        super().__init__(table=4)

    def update(self, z: Tensor, quantized: Tensor, mask: Tensor | None = None) -> None:
        """Accumulate a batch of embeddings and what the quantizer made of them."""
        check_shape("QuantizationError", "quantized", quantized, "z", z)
        flat = self.select(z, mask)
        self.pool("table", flat, (flat - self.select(quantized, mask)).square().sum(0))

    def compute(self) -> dict[str, Tensor]:
        count, _, deviations, error = self.table.sum(-1)
        normalized = torch.where(count > 0, functional.ratio(error, deviations), torch.nan)
        return {"mse": (error / count).float(), "normalized": normalized.float()}


class MomentDistance(PooledMoments):
    """`moment_distance` between the embeddings and the codebook they met.

    Each update also takes the codes (k, dim) of that moment. In training, when they move, the codes of all updates are
    pooled as the embeddings are.

    Returns: `compute()`: {"mean", "std", "wasserstein"} in standard deviations of z and {"symmetric_kl"} in nats.
    """

    embeddings: Tensor
    codebook: Tensor

    def __init__(self) -> None:
        super().__init__(embeddings=3, codebook=3)

    def update(self, z: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        """Accumulate a batch of embeddings and the codes in force."""
        check_codes("MomentDistance", z, codes)
        self.pool("embeddings", self.select(z, mask))
        self.pool("codebook", self.select(codes))

    def compute(self) -> dict[str, Tensor]:
        # Without columns there is nothing to compare, although `all` of nothing is True.
        if not self.embeddings.shape[1] or not (self.embeddings[0] * self.codebook[0] > 0).all():
            nothing = self.embeddings.new_full((), torch.nan, dtype=torch.float32)
            return dict.fromkeys(functional.MomentGap._fields, nothing)
        (n, mean_z, deviations_z), (k, mean_codes, deviations_codes) = self.embeddings, self.codebook
        gap = functional.compare_moments(mean_z, deviations_z / n, mean_codes, deviations_codes / k)
        return {name: value.float() for name, value in gap._asdict().items()}


class CodebookDelay(PooledMoments):
    """`update_delay`: how far the codebook lags behind the encoder, pooled over batches and steps.

    Codes are assigned by ``distance``; see `straightvq.functional.nearest_code`.

    Returns: `compute()`: {"before", "aimed", "after", "delay"} over the variance of the embeddings before the step.
    """

    table: Tensor

    def __init__(self, *, distance: Distance = "euclidean") -> None:
        super().__init__(table=6)
        check_choice(self, "distance", distance, ("euclidean", "cosine"))
        self.distance = distance

    def update(self, z_before: Tensor, z_after: Tensor, codes_before: Tensor, codes_after: Tensor) -> None:
        """Take in vectors and codes around a step."""
        missed = step_misses("CodebookDelay", z_before, z_after, codes_before, codes_after, self.distance)
        self.pool("table", self.select(z_before), *(part.square().sum(0) for part in missed))

    def compute(self) -> dict[str, Tensor]:
        count, _, deviations, *errors = self.table.sum(-1)
        ratios = [torch.where(count > 0, functional.ratio(error, deviations), torch.nan) for error in errors]
        delay = functional.UpdateDelay(*ratios)
        return {name: value.float() for name, value in {**delay._asdict(), "delay": delay.delay}.items()}


class EstimatorGap(ExactMetric):
    """`gradient_gap` of all gradients put end to end; its norm therefore grows with their number.

    Shape: grad_at_z, grad_at_quantized: Float, any one shape, which may change between updates.
    Returns: `compute()`: {"norm", "relative", "cosine"}.
    """

    squares: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_wide)
        # Whether some were seen; squared norms of the difference and of both; their inner product.
        self.add_state("squares", torch.zeros(5), dist_reduce_fx="sum")

    def update(self, grad_at_z: Tensor, grad_at_quantized: Tensor) -> None:
        """Take in the gradients of one batch at the embeddings and at the quantized vectors."""
        check_shape("EstimatorGap", "grad_at_quantized", grad_at_quantized, "grad_at_z", grad_at_z)
        a = grad_at_z.detach().flatten().to(wide_dtype(grad_at_z))
        b = grad_at_quantized.detach().flatten().to(a.dtype)
        seen = torch.ones_like(a[:1]).sum()  # 0 for an empty shard
        self.squares = self.squares + torch.stack([seen, (a - b) @ (a - b), a @ a, b @ b, a @ b])

    def compute(self) -> dict[str, Tensor]:
        seen, apart, at_z, at_quantized, inner = self.squares
        norm_a, norm_b = at_z.sqrt(), at_quantized.sqrt()
        cosine = functional.ratio(functional.ratio(inner, norm_a), norm_b)
        gap = gap_of_norms(apart.sqrt(), norm_a, norm_b, cosine)
        return {name: torch.where(seen > 0, value, torch.nan).float() for name, value in gap._asdict().items()}


class GradientSparsity(ExactMetric):
    """`gradient_sparsity` of the codebook over steps.

    A mean over steps cannot tell a codebook whose codes take turns from one of which most never get anything; "ever"
    can. Ranks that hold equal gradients, as after a data-parallel backward, change neither.

    Shape: grad: Float (k, dim), the gradient of the code table, or its change in a step.
    Returns: `compute()`: {"per_step": mean fraction of codes with a gradient, "ever": fraction with one in any step}.
    """

    steps: Tensor
    with_gradient: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.codebook_size = check_int(self, "codebook_size", codebook_size, 1)
        self.add_state("steps", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("with_gradient", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, grad: Tensor) -> None:
        """Take in the gradient of one step."""
        if grad.ndim != 2 or len(grad) != self.codebook_size:
            rule = f"`grad` must have the shape (codebook_size={self.codebook_size}, dim)"
            raise shape_error("GradientSparsity", rule, grad)
        self.with_gradient += (grad.detach() != 0).any(-1)
        self.steps += 1

    def compute(self) -> dict[str, Tensor]:
        per_step = self.with_gradient.to(wide_dtype(self.with_gradient)).mean().float() / self.steps
        ever = torch.where(self.steps > 0, (self.with_gradient > 0).float().mean(), torch.nan)
        return {"per_step": per_step, "ever": ever}


class EstimatingError(ExactMetric):
    """`estimating_error` over the elements of all updates, each with the surrogate that was then in use.

    Shape: z: Float (*shape), which may change between updates and may be empty, in units of the half-width.
    Returns: `compute()`: the mean square.

    Example:
        >>> metric = EstimatingError()
        >>> metric.update(torch.tensor([0.5]), lambda x: x)
        >>> metric.update(torch.tensor([-1.0, 1.0, 1.0]), torch.sign)
        >>> metric.compute()
        tensor(0.0625)
    """

    total: Tensor
    elements: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_wide)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("elements", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, z: Tensor, surrogate: Callable[[Tensor], Tensor] | Tensor) -> None:
        """Take in values before the sign, and the function that stands for it or its values there."""
        if z.numel():
            error = functional.estimating_error(z, surrogate)
            self.total = self.total + error.to(wide_dtype(error)) * z.numel()
            self.elements += z.numel()

    def compute(self) -> Tensor:
        return (self.total / self.elements).float()


class GradientInstability(ExactMetric):
    """`gradient_instability` of single updates, averaged over them.

    Ranks that hold equal gradients, as after a data-parallel backward, do not change it.

    Shape: gradients: Float, one tensor or several of any shapes.
    Returns: `compute()`: the mean of the variances, in units of a squared gradient.

    Example:
        >>> metric = GradientInstability()
        >>> metric.update([torch.tensor([1.0, -3.0])])
        >>> metric.update([torch.tensor([2.0, -2.0])])
        >>> metric.compute()
        tensor(0.5000)
    """

    total: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_wide)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("steps", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, gradients: Tensor | Iterable[Tensor]) -> None:
        """Take in the gradients of one update."""
        variance = functional.gradient_instability(gradients)
        self.total = self.total + variance.to(wide_dtype(variance))
        self.steps += 1

    def compute(self) -> Tensor:
        return (self.total / self.steps).float()
