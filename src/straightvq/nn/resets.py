"""Resets: what happens to codes that nothing is assigned to."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from straightvq.functional.draws import draw_distinct, draw_normal
from straightvq.nn.part import Part, check_float, check_int
from straightvq.nn.ranks import Group, rank, stack_over_ranks, sum_over_ranks

_PICK, _NOISE = 1, 2  # streams of random draws


class Clock(NamedTuple):
    """What random draws inside the layer may depend on: Int64 scalars, equal on all ranks."""

    seed: Tensor
    step: Tensor


class Reset(Part):
    """Required: ``record`` and ``due``."""

    def bind(self, size: int, dim: int) -> None:
        self._bind_once()
        self._make(size, dim)

    def _make(self, size: int, dim: int) -> None:
        """Makes buffers; called once."""

    @abstractmethod
    def record(self, counts: Tensor) -> None:
        """Sees how many vectors of all ranks each code got in this step: counts (k,)."""

    @abstractmethod
    def due(self, z: Tensor, valid: Tensor | None, clock: Clock, group: Group) -> tuple[Tensor, Tensor] | None:
        """Codes to rewrite: rows Bool (k,) and effective vectors (k, d); None if surely none."""

    @abstractmethod
    def forget(self, rows: Tensor | None) -> None:
        """Starts over for these rows (None: all), because somebody rewrote them."""


class DeadCodeReset(Reset):
    """Moves codes that have been unused for a while onto embeddings of the current batch.

    A code is dead when no vector was assigned to it in ``patience`` training steps. A batch with fewer vectors than
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

    def __init__(self, patience: int = 20, noise: float = 0.01) -> None:
        super().__init__()
        self.patience = check_int(self, "patience", patience, 1)
        self.noise = check_float(self, "noise", noise, minimum=0)

    def _make(self, size: int, dim: int) -> None:
        self.size = size
        self.register_buffer("idle", torch.zeros(size))

    def record(self, counts: Tensor) -> None:
        step = (counts.sum() / self.size).clamp(max=1)
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + step))

    def due(self, z: Tensor, valid: Tensor | None, clock: Clock, group: Group) -> tuple[Tensor, Tensor] | None:
        # The tolerance absorbs the rounding of a sum of N/K, so that K/N steps are exactly one.
        dead = self.idle >= self.patience - 1e-3
        if not torch.compiler.is_compiling() and dead.device.type == "cpu" and not dead.any():
            return None  # the same on all ranks; on an accelerator the question would wait for the device
        local = torch.ones(len(z), dtype=torch.bool, device=z.device) if valid is None else valid
        shares = stack_over_ranks(local.sum(), group)
        total = shares.sum()
        oldest = torch.where(dead, self.idle, -1).argsort(descending=True, stable=True)
        place = torch.empty_like(oldest)
        place[oldest] = torch.arange(self.size, device=z.device)
        rows = dead & (place < total)
        picks = draw_distinct(clock.seed, clock.step, _PICK, self.size, total)[place]
        vectors = sum_over_ranks(self._own(z, local, picks, shares[: rank(group)].sum()), group)
        noise = draw_normal(clock.seed, clock.step, _NOISE, (self.size, z.shape[1]), z.dtype)
        return rows, vectors + self.noise * vectors.norm(dim=1, keepdim=True) * noise

    @staticmethod
    def _own(z: Tensor, valid: Tensor, picks: Tensor, offset: Tensor) -> Tensor:
        """The picked vectors that live on this rank, zeros for the others."""
        if len(z) == 0:
            return z.new_zeros(len(picks), z.shape[1])
        here = (picks >= offset) & (picks < offset + valid.sum())
        order = (~valid).to(torch.uint8).argsort(stable=True)  # valid rows first, in their order
        chosen = z[order[(picks - offset).clamp(0, len(z) - 1)]]
        return torch.where(here[:, None], chosen, 0)

    def forget(self, rows: Tensor | None) -> None:
        if rows is None:
            self.idle.zero_()
        else:
            self.idle.masked_fill_(rows, 0)

    def extra_repr(self) -> str:
        return f"patience={self.patience}, noise={self.noise}"
