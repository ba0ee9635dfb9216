"""A queue of recent embeddings, for losses that compare the codes with more than one batch."""

import torch
from torch import Tensor

from straightvq.nn.batch import Batch, Context
from straightvq.nn.part import Part

# Vectors that one step adds at most.
_PER_STEP = 4096


class RecentVectors(Part):
    """The last ``capacity`` vectors of training, the same on all ranks.

    A step adds its valid vectors of all ranks, or a random 4,096 of them where there are more, and the oldest leave.

    Args:
        capacity: vectors held, at least 1.

    Attributes:
        rows: Float (capacity, d).
        seen: Int64 scalar, number of vectors ever added.
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def bind(self, dim: int) -> None:
        self._bind_once()
        self.register_buffer("rows", torch.zeros(self.capacity, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Forgets all vectors."""
        self.rows.zero_()
        self.seen.zero_()

    def add(self, batch: Batch) -> None:
        count = min(self.capacity, _PER_STEP)
        new = batch.pick(batch.draws.distinct("recent vectors", count, batch.total()))
        number = torch.arange(count, device=new.device)
        is_new = number < batch.total()  # of fewer vectors some come twice, behind the others
        place = (self.seen + number) % self.capacity
        kept = torch.where(is_new[:, None], new.to(self.rows.dtype), self.rows[place])
        self.rows.index_copy_(0, place, kept)
        self.seen.add_(is_new.sum())

    def held(self, z: Tensor, valid: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """Vectors (m, d), detached, and which of them count, as 0 or 1 (m,): the queue in training, else ``z``."""
        if context.batch is None:
            return z.detach(), z.new_ones(len(z)) if valid is None else valid.to(z.dtype)
        weight = torch.arange(self.capacity, device=z.device) < self.seen
        return self.rows.to(z.dtype, copy=True), weight.to(z.dtype)

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}"
