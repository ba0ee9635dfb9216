"""Resets: what happens to codes that nothing is assigned to."""

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from straightvq.nn.batch import Batch
from straightvq.nn.part import Part, can_ask, check_choice, check_float, check_int, setting
from straightvq.nn.ranks import num_ranks
from straightvq.nn.slots.updates import Table

Measure = Literal["spread", "norm"]

# Noise is at least this many units in the last place of the mean, or it would be rounded away.
_UNITS = 16


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
    def due(self, batch: Batch, table: Table) -> tuple[Tensor, Tensor] | None:
        """Codes to rewrite: rows Bool (k,) and effective vectors (k, d); None if surely none.

        Args:
            batch: the step's vectors, not yet assigned.
            table: the codebook.
        """

    @abstractmethod
    def forget(self, rows: Tensor | None) -> None:
        """Starts over for these rows (None: all), because somebody rewrote them."""


class DeadCodeReset(Reset):
    """Moves codes that have been unused for a while onto embeddings of the current batch.

    A code is dead when no vector was assigned to it in ``patience`` training steps (where the codebook's update
    searches for itself: by the last search on which it moved the codes). A batch with fewer vectors than
    codes counts as N/K of a step: in one such batch most codes of a healthy codebook are unused. A dead code becomes
    ``v + noise * spread * N(0, Id)`` for a vector ``v`` of the batch (of all ranks, no vector twice), longest unused
    first, at most as many codes per step as there are vectors. It is written through the parametrization's inverse,
    and the state that belonged to the old row (EMA weight, inner momentum, and the moments of optimizers given to
    ``attach_optimizer``) starts over.

    The spread is the standard deviation of each channel over the vectors of all ranks. Where there is none (equal
    vectors, or a single one), the noise is a few units in the last place: no two codes become equal.

    Args:
        patience: steps without use, at least 1. The authors use 20.
        noise: standard deviation, relative to what ``relative_to`` says; 0 puts codes onto the vectors themselves.
        relative_to: ``"spread"``, or ``"norm"`` for the authors' rule ``v + noise * ||v|| * N(0, Id)``, which moves
            a code by ``noise * sqrt(dim)`` of the vector's norm.

    Source: arXiv 2305.08842, code replacement (least recently used). Deviations: the authors count steps whatever
    the batch, which wipes healthy codes when it is small; their noise is relative to the norm, which away from the
    origin is wider than the data: at dimension 256 and a mean of ten standard deviations in each channel it puts codes
    1.6 times the data's radius away, where no vector is nearest to them and they die again.
    """

    idle: Tensor

    patience: int = setting(check_int, minimum=1)
    noise: float = setting(check_float, minimum=0)
    relative_to: Measure = setting(check_choice, choices=get_args(Measure))

    def __init__(self, patience: int = 20, noise: float = 0.01, relative_to: Measure = "spread") -> None:
        super().__init__()
        self.patience = patience
        self.noise = noise
        self.relative_to = relative_to

    def _make(self, size: int, dim: int) -> None:
        self.size = size
        self.register_buffer("idle", torch.zeros(size))

    def record(self, counts: Tensor) -> None:
        self.idle.add_(counts.sum().clamp(max=self.size), alpha=1 / self.size).masked_fill_(counts > 0, 0)

    def due(self, batch: Batch, table: Table) -> tuple[Tensor, Tensor] | None:
        # The tolerance absorbs the rounding of a sum of N/K, so that K/N steps are exactly one.
        dead = self.idle >= self.patience - 1e-3
        # Not among several ranks: one may run a compiled graph, which cannot ask, while another does not.
        if can_ask(dead) and num_ranks(batch.group) == 1 and not dead.any():
            return None
        # Before the shares, which then travel along.
        deviation = self._deviation(batch) if self.noise and self.relative_to == "spread" else None
        room = batch.room()
        picks = batch.draws.distinct("reset vectors", self.size, room)
        rows = dead if batch.valid is None or not batch.is_uniform else dead & batch.valid[0]
        if not isinstance(room, int) or room < self.size:  # else there is a vector for every code
            turn = self._turns(room)
            picks, rows = picks[turn], rows & (turn < room)
        vectors = batch.pick(picks)
        if not self.noise:
            return rows, vectors
        if deviation is None:
            deviation = self.noise * vectors.norm(dim=1, keepdim=True)
        z = batch.z
        noise = batch.draws.normal("reset noise", (self.size, z.shape[1]), z.dtype)
        return rows, torch.addcmul(vectors, deviation, noise)

    def _turns(self, room: Tensor | int) -> Tensor:
        """In what order the codes take vectors, Int64 (k,): the longest unused first, unless there are enough."""
        number = torch.arange(self.size, device=self.idle.device)
        oldest = self.idle.argsort(descending=True, stable=True)  # the dead are the first
        turn = torch.empty_like(oldest).scatter_(0, oldest, number)
        return turn if isinstance(room, int) else torch.where(room < self.size, turn, number)

    def _deviation(self, batch: Batch) -> Tensor:
        """Standard deviation of the noise in each channel, (1, d)."""
        _, mean, var = batch.moments()
        info = torch.finfo(var.dtype)
        least = (_UNITS * info.eps) ** 2
        return torch.addcmul(self.noise**2 * var, mean, mean, value=least).add(info.tiny).sqrt()

    def forget(self, rows: Tensor | None) -> None:
        if rows is None:
            self.idle.zero_()
        else:
            self.idle.masked_fill_(rows, 0)

    def extra_repr(self) -> str:
        return f"patience={self.patience}, noise={self.noise}, relative_to={self.relative_to!r}"
