"""Resets: what happens to codes that nothing is assigned to."""

from abc import abstractmethod

import torch
from torch import Tensor

from straightvq.nn.batch import Batch
from straightvq.nn.part import Part, can_ask, check_float, check_int, setting
from straightvq.nn.ranks import num_ranks, rank, sum_over_ranks


class Reset(Part):
    """Required: ``record`` and ``due``."""

    def bind(self, size: int, dim: int) -> None:
        self._bind_once()
        self._make(size, dim)

    def _make(self, size: int, dim: int) -> None:
        """Makes buffers; called once."""

    @abstractmethod
    def record(self, counts: Tensor) -> None:
        """Sees how many vectors of all ranks each code got in this step: counts (k,).

        They are those of the update's last search if it made one, else those of the forward's.
        """

    @abstractmethod
    def due(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Codes to rewrite: rows Bool (k,) and effective vectors (k, d); None if surely none."""

    @abstractmethod
    def forget(self, rows: Tensor | None) -> None:
        """Starts over for these rows (None: all), because somebody rewrote them."""


class DeadCodeReset(Reset):
    """Moves codes that have been unused for a while onto embeddings of the current batch.

    A code is dead when no vector was assigned to it in ``patience`` training steps (where the codebook's update
    searches for itself: by the last search on which it moved the codes). A batch with fewer vectors than
    codes counts as N/K of a step: in one such batch most codes of a healthy codebook are unused. A dead code becomes
    ``v + noise * ||v|| * N(0, Id)`` for a vector ``v`` of the batch (of all ranks, no vector twice), longest unused
    first, at most as many codes per step as there are vectors. It is written through the parametrization's inverse,
    and the state that belonged to the old row (EMA weight, inner momentum, and the moments of optimizers given to
    ``attach_optimizer``) starts over.

    Args:
        patience: steps without use, at least 1. The authors use 20.
        noise: relative to the vector's norm, per dimension: 0.01 moves the vector by 1 % of its norm times
            ``sqrt(dim)``.

    Source: arXiv 2305.08842, code replacement (least recently used). Deviation: the authors count steps whatever
    the batch, which wipes healthy codes when it is small.
    """

    idle: Tensor

    patience: int = setting(check_int, minimum=1)
    noise: float = setting(check_float, minimum=0)

    def __init__(self, patience: int = 20, noise: float = 0.01) -> None:
        super().__init__()
        self.patience = patience
        self.noise = noise

    def _make(self, size: int, dim: int) -> None:
        self.size = size
        self.register_buffer("idle", torch.zeros(size))

    def record(self, counts: Tensor) -> None:
        step = (counts.sum() / self.size).clamp(max=1)
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + step))

    def due(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        # The tolerance absorbs the rounding of a sum of N/K, so that K/N steps are exactly one.
        dead = self.idle >= self.patience - 1e-3
        # Not among several ranks: one may run a compiled graph, which cannot ask, while another does not.
        if can_ask(dead) and num_ranks(batch.group) == 1 and not dead.any():
            return None
        z, total = batch.z, batch.shares().sum()
        oldest = torch.where(dead, self.idle, -1).argsort(descending=True, stable=True)
        place = torch.empty_like(oldest)
        place[oldest] = torch.arange(self.size, device=z.device)
        rows = dead & (place < total)
        picks = batch.draws.distinct("reset vectors", self.size, total)[place]
        vectors = sum_over_ranks(self._own(batch, picks), batch.group)
        noise = batch.draws.normal("reset noise", (self.size, z.shape[1]), z.dtype)
        return rows, vectors + self.noise * vectors.norm(dim=1, keepdim=True) * noise

    @staticmethod
    def _own(batch: Batch, picks: Tensor) -> Tensor:
        """The picked vectors that live on this rank, zeros for the others."""
        z, valid, me = batch.z, batch.valid, rank(batch.group)
        if len(z) == 0:
            return z.new_zeros(len(picks), z.shape[1])
        place = picks - batch.shares()[:me].sum()
        here = (place >= 0) & (place < batch.shares()[me])
        place = place.clamp(0, len(z) - 1)
        if valid is not None:
            place = (~valid).to(torch.uint8).argsort(stable=True)[place]  # valid rows first, in their order
        return torch.where(here[:, None], z[place], 0)

    def forget(self, rows: Tensor | None) -> None:
        if rows is None:
            self.idle.zero_()
        else:
            self.idle.masked_fill_(rows, 0)

    def extra_repr(self) -> str:
        return f"patience={self.patience}, noise={self.noise}"
