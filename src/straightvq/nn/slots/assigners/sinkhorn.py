"""Balanced assignment by optimal transport."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from straightvq.functional.nearest import nearest_code
from straightvq.nn.batch import Batch
from straightvq.nn.part import check_float, check_int, setting
from straightvq.nn.ranks import stack_over_ranks, sum_over_ranks
from straightvq.nn.slots.assigners.base import Assigner

# Entries of one tile: a few of them stay in a CPU's cache; an accelerator wants fewer, larger launches.
_TILE, _TILE_ACCELERATOR = 1 << 16, 1 << 22


class Sinkhorn(Assigner):
    """In training codes are assigned so that all are used about equally; in evaluation a vector gets the nearest code.

    The plan is ``Q_nk = exp((f_n + g_k - cost_nk) / temperature)``, the cost a squared distance, brought to mean 0 and
    standard deviation 1 over all pairs. Each iteration sets the scalings ``g`` so that every code receives the same
    share of the vectors, then ``f`` so that every vector is given away once; a vector gets the code of its largest
    entry. Vectors of all ranks count together; masked ones take no part. In the log domain nothing overflows, and the
    matrix of all pairs is made tile by tile in each of ``iterations + 2`` sweeps, never held.

    Evaluation does otherwise, so that what a vector gets does not depend on its batch. Where codes have converged the
    two agree for most vectors.

    Args:
        temperature: of the plan, in standard deviations of the cost, positive; 0.1 is the authors' ``exp(-10 cost)``.
            Small ones stay near the nearest code and want more iterations.
        iterations: sweeps of balancing, at least 1.

    Source: arXiv 2412.15195 (OptVQ); arXiv 1306.0895. Deviation: the authors balance in evaluation too.

    Example:
        >>> codes = torch.tensor([[0.0], [10.0]])
        >>> layer = Sinkhorn()
        >>> layer(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), codes).tolist()  # in training the last two get code 1
        [0, 0, 0, 0]
    """

    temperature: float = setting(check_float, minimum=0, open_minimum=True)
    iterations: int = setting(check_int, minimum=1)

    def __init__(self, temperature: float = 0.1, iterations: int = 5) -> None:
        super().__init__()
        self.temperature = temperature
        self.iterations = iterations

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(z, codes)

    def training_rule(self, batch: Batch, codes: Tensor) -> Tensor:
        # Distances do not depend on the origin; products keep more digits near it.
        middle = codes.mean(0)
        z, codes, valid = batch.z - middle, codes - middle, batch.valid
        weight = z.new_ones(len(z)) if valid is None else valid.to(z.dtype)
        # The term of a vector alone moves none of its entries against each other, and ``f`` takes it up.
        number, total = sum_over_ranks(torch.stack([weight.sum(), weight @ z.square().sum(1)]), batch.group)
        pairs = (number * len(codes)).clamp(min=1)
        mean = (total * len(codes) + number * codes.square().sum()) / pairs - 2 * (
            sum_over_ranks(weight @ z, batch.group) @ codes.sum(0)
        ) / pairs
        around = torch.ops.straightvq.sinkhorn_spread(z, codes, weight, mean)
        variance = sum_over_ranks(around, batch.group) / pairs
        # Where all costs are equal any scale will do.
        scale = 1 / (self.temperature * torch.where(variance > 0, variance, 1).sqrt())
        log_weight = weight.log()
        scaling = torch.zeros_like(codes[:, 0])
        for number_of_sweep in range(self.iterations):
            own = torch.ops.straightvq.sinkhorn_sweep(z, codes, log_weight, scaling, scale, number_of_sweep == 0)
            scaling = -stack_over_ranks(own, batch.group).logsumexp(0)
            scaling = torch.where(scaling.isfinite(), scaling, 0)  # there are no vectors
        indices: Tensor = torch.ops.straightvq.sinkhorn_pick(z, codes, scaling, scale)
        return indices

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, iterations={self.iterations}"


def _tiles(z: Tensor, codes: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows, and their squared distances to all codes."""
    rows = max(16, (_TILE if z.device.type == "cpu" else _TILE_ACCELERATOR) // len(codes))
    bias = codes.square().sum(1)
    for start in range(0, len(z), rows):
        part = z[start : start + rows]
        squares = torch.addmm(bias, part, codes.T, alpha=-2) + part.square().sum(1, keepdim=True)
        yield slice(start, start + rows), squares


# Custom operators, so that a compiled graph neither unrolls the tiles nor keeps them.


@torch.library.custom_op("straightvq::sinkhorn_spread", mutates_args=())
def _spread(z: Tensor, codes: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """Sum over pairs of the squared deviations of their costs from the mean."""
    total = z.new_zeros(())
    for rows, squares in _tiles(z, codes):
        total += weight[rows] @ (squares - mean).square().sum(1)
    return total


@torch.library.custom_op("straightvq::sinkhorn_sweep", mutates_args=())
def _sweep(z: Tensor, codes: Tensor, log_weight: Tensor, scaling: Tensor, scale: Tensor, is_first: bool) -> Tensor:
    """Log of what each code receives (k,), once every vector is given away (not yet in the first sweep)."""
    received = torch.full_like(scaling, -math.inf)
    for rows, squares in _tiles(z, codes):
        entries = squares * -scale
        of_vector = log_weight[rows, None]
        if not is_first:
            of_vector = of_vector - (entries + scaling).logsumexp(1, keepdim=True)
        received = torch.logaddexp(received, (entries + of_vector).logsumexp(0))
    return received


@torch.library.custom_op("straightvq::sinkhorn_pick", mutates_args=())
def _pick(z: Tensor, codes: Tensor, scaling: Tensor, scale: Tensor) -> Tensor:
    indices = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for rows, squares in _tiles(z, codes):
        indices[rows] = (scaling - squares * scale).argmax(1)
    return indices


@_spread.register_fake
def _(z: Tensor, codes: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    return z.new_empty(())


@_sweep.register_fake
def _(z: Tensor, codes: Tensor, log_weight: Tensor, scaling: Tensor, scale: Tensor, is_first: bool) -> Tensor:
    return torch.empty_like(scaling)


@_pick.register_fake
def _(z: Tensor, codes: Tensor, scaling: Tensor, scale: Tensor) -> Tensor:
    return z.new_empty(len(z), dtype=torch.int64)
