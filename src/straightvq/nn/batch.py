"""The training batch: this rank's vectors, and what all ranks together know of theirs; and what parts may look at."""

from typing import NamedTuple

import torch
from torch import Tensor

from straightvq.nn.draws import Draws
from straightvq.nn.ranks import Group, num_ranks, rank, stack_over_ranks, sum_over_ranks

# A count travels among numbers of 32 bits, which hold 24 bits exactly: as two digits of this base.
_BASE = 1 << 22
# Where torch's one pass for mean and variance takes several times as long as two of sums.
_SLOW_AT_ONE_PASS = ("cpu",)


class Batch:
    """Vectors of one training step, with statistics over all ranks that travel at most once and only if asked for.

    Attributes:
        z: this rank's vectors, Float (n, d), detached.
        valid: Bool (n,), or None for all.
        is_uniform: whether the host knows that all vectors are valid, or none.
        group: the ranks that share the codebook.
        draws: the step's random numbers, equal on all ranks.
    """

    def __init__(self, z: Tensor, valid: Tensor | None, group: Group, draws: Draws) -> None:
        self.z, self.valid, self.group, self.draws = z, valid, group, draws
        # Whether all vectors or none are valid, as without a mask: a single flag on the device, expanded.
        self.is_uniform = valid is None or (len(z) > 0 and valid.stride() == (0,))
        self._shares: Tensor | None = None
        self._moments: tuple[Tensor, Tensor, Tensor] | None = None

    def rows(self) -> Tensor:
        """Number of each vector among the valid ones of all ranks, Int64 (n,): what its random draws depend on.

        Masked vectors repeat the number of a valid one.
        """
        if self.valid is None:
            own = torch.arange(len(self.z), device=self.z.device)
        else:
            own = self.valid.long().cumsum(0) - 1
            own = own.clamp(min=0)
        if num_ranks(self.group) == 1:
            return own
        return own + self.shares()[: rank(self.group)].sum()

    def shares(self) -> Tensor:
        """Number of valid vectors on each rank, Int64 (ranks,)."""
        if self._shares is None:
            self._shares = stack_over_ranks(self._count(), self.group)
        return self._shares

    def total(self) -> Tensor:
        """Number of valid vectors on all ranks, Int64 ()."""
        shares = self.shares()
        return shares[0] if len(shares) == 1 else shares.sum()

    def room(self) -> Tensor | int:
        """As ``total``, and a number of Python's where the host knows it, but for whether they are valid at all."""
        return self.z.shape[0] if self.is_uniform and num_ranks(self.group) == 1 else self.total()

    def pick(self, places: Tensor) -> Tensor:
        """Vectors (m, d) by their numbers among the valid ones of all ranks, Int64 (m,), on all ranks."""
        return sum_over_ranks(self._own_of(places), self.group)

    def _own_of(self, places: Tensor) -> Tensor:
        """Those that live on this rank, zeros for the others."""
        z, group = self.z, self.group
        valid = None if self.is_uniform else self.valid
        if len(z) == 0:
            return z.new_zeros(len(places), z.shape[1])
        if not (alone := num_ranks(group) == 1):
            shares, me = self.shares(), rank(group)
            places = places - shares[:me].sum()
            here = (places >= 0) & (places < shares[me])
        if valid is not None:  # the first row up to which there are more valid ones than that
            places = torch.searchsorted(valid.cumsum(0), places, right=True)
        if not alone or valid is not None:
            places = places.clamp(0, len(z) - 1)
        own = z.index_select(0, places)
        return own if alone else torch.where(here[:, None], own, 0)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Number Int64 (1, 1), mean and biased variance Float (1, d) of the valid vectors of all ranks.

        The shares travel along.
        """
        if self._moments is None:
            alone = num_ranks(self.group) == 1
            self._moments = self._own_moments(self.total()) if alone else self._pooled_moments()
        return self._moments

    def _own_moments(self, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of this rank's ``count`` vectors; zeros if it has none."""
        if self.is_uniform and len(self.z) and self.z.device.type not in _SLOW_AT_ONE_PASS:
            var, mean = torch.var_mean(self.z, 0, correction=0)
        else:
            divisor = count.clamp(min=1)
            mean = self._sum(self.z) / divisor
            var = self._sum((self.z - mean).square()) / divisor
        return count.view(1, 1), mean[None], var[None]

    def _pooled_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        count, mean, var = self._own_moments(self._count())
        digits = torch.cat([count // _BASE, count % _BASE], 1).to(mean.dtype)
        parts = stack_over_ranks(torch.cat([digits, mean, count * var], 1), self.group)
        self._shares = parts[:, 0, 0].long() * _BASE + parts[:, 0, 1].long()
        counts = self._shares.to(mean.dtype)[:, None, None]
        _, mean, var = pool_moments(torch.cat([counts, parts[..., 2:]], -1))
        return self._shares.sum().view(1, 1), mean, var

    def _count(self) -> Tensor:
        if self.valid is None:
            return torch.full((), self.z.shape[0], device=self.z.device)
        return self.valid[0] * self.z.shape[0] if self.is_uniform else self.valid.sum()

    def _sum(self, rows: Tensor) -> Tensor:
        return (rows if self.valid is None else torch.where(self.valid[:, None], rows, 0)).sum(0)


class Context(NamedTuple):
    """The table and the assignment, for estimators and losses with the class attribute ``takes_context``.

    Attributes:
        codes: effective codes (k, d), with the gradient that the part may send them; no rows where codes are signs.
        indices: Int64 (n,), -1 where masked.
        batch: the training batch, with its random draws; None in evaluation, where nothing is random, and where codes
            are signs.
        half_width: where codes are signs, the absolute value of their coordinates: the table, which nobody holds, is
            all combinations of it and its negative. For losses with ``takes_signs``.
        group: without a batch, the ranks whose vectors count; False for this process's.
    """

    codes: Tensor
    indices: Tensor
    batch: Batch | None
    half_width: float | None = None
    group: Group = False


def pool_moments(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (m, 1), mean and biased variance (m, d) of m sets of vectors, each spread over the ranks.

    Each rank takes moments about its own mean, and only then are they combined: unlike a sum of squares this keeps its
    digits far from the origin, and it is exact for uneven and empty shards.

    Args:
        parts: every rank's count, mean and sum of squared deviations, Float (ranks, m, 1 + 2 d).
    """
    counts, means, spreads = parts[..., :1], *parts[..., 1:].chunk(2, -1)
    count = counts.sum(0)
    share = counts / count.clamp(min=1)
    mean = (share * means).sum(0)
    var = (spreads / count.clamp(min=1) + share * (means - mean).square()).sum(0)
    return count, mean, var
