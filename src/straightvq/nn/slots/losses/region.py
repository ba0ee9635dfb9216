"""The region loss: codes that are used go to the mean of their vectors, and take codes that are not used along."""

import torch
from torch import Tensor

from straightvq.functional.sums import code_sums
from straightvq.nn.batch import Batch, Context
from straightvq.nn.part import check_int, setting
from straightvq.nn.ranks import sum_over_ranks
from straightvq.nn.slots.losses.base import Loss, needed

# Distances held at once.
_NUMBERS = 1 << 22


class RegionLoss(Loss):
    """Pulls active codes to the mean of their vectors, and inactive ones to the targets of active codes near them.

    A code is active if it got a vector in this step; its target is the mean of its ``n_k`` vectors. A code that got
    none in the last ``window`` steps is inactive. Of these codes M each active one with ``n_k > 1`` hands its target to
    the ``ceil(n_k |M| / sum n)`` that are nearest to it; one that is handed several takes their mean. The loss is the
    mean over the elements of all codes that have a target of ``(code - sg[target])^2``: only codes and their map get a
    gradient.

    In training vectors are counted over all ranks, and the loss is the same number on each. In evaluation they are this
    process's. A batch with fewer vectors than codes counts as N/K of a step. While no code is inactive nothing more
    than the sums of the assigned vectors is computed; otherwise distances between active and inactive codes are made
    tile by tile. On CUDA the host waits for the number of inactive codes.

    Args:
        weight: factor in ``QuantizerOutput.loss``. It stands in place of a ``CodebookLoss``.
        window: steps without a vector after which a code is inactive, at least 1.

    Raises:
        ValueError: from a layer whose codes take no gradient of a loss, such as those of ``EMAUpdate``.

    Source: StableVQ (2026), the region loss. Deviations: a mean over elements, where the paper's is over codes; the
    window's length is ours.

    Example:
        >>> import torch
        >>> from straightvq import Codebook, VectorQuantizer
        >>> layer = VectorQuantizer(1, Codebook(2), losses=[RegionLoss()])
        >>> layer.set_codes(torch.tensor([[0.0], [9.0]]))
        >>> layer(torch.tensor([[1.0], [3.0]])).terms["region"].item()  # target 2; the other code has none yet
        4.0
    """

    idle: Tensor

    name = "region"
    trains = "codes"
    takes_context = needs_codes = True

    window: int = setting(check_int, minimum=1)

    def __init__(self, weight: float = 1.0, window: int = 20) -> None:
        super().__init__(weight)
        self.window = window

    def bind(self, size: int, dim: int) -> None:
        self._bind_once()
        self.register_buffer("idle", torch.zeros(size))

    def reset_parameters(self) -> None:
        """Forgets which codes were used."""
        self.idle.zero_()

    def record(self, batch: Batch, indices: Tensor) -> None:
        size = len(self.idle)
        counts = sum_over_ranks(code_sums(batch.z[:, :0], indices, size)[0], batch.group)
        self.idle.add_(counts.sum().clamp(max=size), alpha=1 / size).masked_fill_(counts > 0, 0)

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None = None) -> Tensor:
        context = needed(self, context)
        codes = context.codes.detach()
        group = False if context.batch is None else context.batch.group
        # Differences keep their digits where the data are far from the origin.
        counts, sums = code_sums(z.detach() - code.detach(), context.indices, len(codes))
        both = sum_over_ranks(torch.cat([counts[:, None].to(sums.dtype), sums], 1), group)
        counts, sums = both[:, 0], both[:, 1:]
        active = counts > 0
        targets = codes + sums / counts.clamp(min=1)[:, None]
        inactive = (self.idle >= self.window - 1e-3) & ~active  # the tolerance absorbs the rounding of sums of N/K
        times, handed = torch.ops.straightvq.hand_over(codes, targets, counts, inactive)
        targets = torch.where(active[:, None], targets, handed / times.clamp(min=1)[:, None])
        weight = (active | (times > 0)).to(codes.dtype)
        return weight @ (context.codes - targets).square().mean(1) / weight.sum().clamp(min=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"


def region_quotas(counts: Tensor, inactive: int) -> Tensor:
    """How many inactive codes an active one takes along: ``ceil(n_k |M| / sum n)``, Int64 (k,), 0 for ``n_k < 2``.

    Args:
        counts: vectors of each code, Float or Int64 (k,), at least one in all.
        inactive: number of inactive codes.

    Example:
        >>> region_quotas(torch.tensor([6, 2, 1]), 4).tolist()
        [3, 1, 0]
    """
    counts = counts.long()
    total = counts.sum().clamp(min=1)
    return torch.where(counts > 1, (counts * inactive + total - 1) // total, 0)


# A custom operator, so that a graph does not ask how many codes are inactive.
@torch.library.custom_op("straightvq::hand_over", mutates_args=())
def _hand_over(codes: Tensor, targets: Tensor, counts: Tensor, inactive: Tensor) -> tuple[Tensor, Tensor]:
    """How often each inactive code is handed a target, Int64 (k,), and the sum of those, (k, d)."""
    takers = inactive.nonzero()[:, 0]
    quotas = region_quotas(counts, len(takers))
    givers = quotas.argsort(descending=True, stable=True)[: int((quotas > 0).sum())]  # alike ones in one tile
    handed, taken = [givers[:0]], [givers[:0]]
    for some in givers.split(max(1, _NUMBERS // max(1, len(takers)))) if len(givers) else ():
        near = torch.cdist(targets[some], codes[takers]).topk(int(quotas[some[0]]), largest=False).indices
        is_within = torch.arange(near.shape[1], device=near.device) < quotas[some, None]
        handed.append(some[:, None].expand_as(near)[is_within])
        taken.append(takers[near[is_within]])
    return code_sums(targets[torch.cat(handed)], torch.cat(taken), len(codes))


@_hand_over.register_fake
def _(codes: Tensor, targets: Tensor, counts: Tensor, inactive: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(counts, dtype=torch.int64), torch.empty_like(targets)
