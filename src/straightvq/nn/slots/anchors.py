"""A reset that moves every code as far as it is unused."""

from typing import Literal, get_args

import torch
from torch import Tensor

from straightvq.functional.nearest import nearest_code
from straightvq.nn.batch import Batch
from straightvq.nn.part import can_ask, check_choice, check_float, setting
from straightvq.nn.ranks import num_ranks, rank, stack_over_ranks, sum_over_ranks
from straightvq.nn.slots.resets import Reset
from straightvq.nn.slots.updates import Table

Anchor = Literal["closest", "random"]

# A code that would go less than this share of the way stays where it is.
_LEAST = 1e-3
# Noise on a moved code, in units in the last place of its length: codes with the same anchor would become equal.
_UNITS = 16


class AnchoredReset(Reset):
    """Moves rarely used codes onto vectors of the batch; the less they are used, the further.

    ``p <- decay * p + (1 - decay) * n / N`` is the running usage, of all ranks, with n of the N vectors assigned to the
    code. Before each assignment a code moves the share ``a`` of the way to its anchor:

        code <- (1 - a) * code + a * anchor,   a = exp(-10 K p / (1 - decay) - 1e-3)

    With K codes a = 0.999 for a code that was never used, 0.37 for one at a thousandth of the mean usage 1/K, and 0 at
    the mean. The move goes through the parametrization's inverse, and the state that belonged to the old row (EMA
    weight, inner momentum, and the moments of optimizers given to ``attach_optimizer``) starts over; the usage does
    not. A moved code gets noise of some units in the last place, or codes with the same anchor would become equal.
    Nothing moves before a first batch was assigned, or in one without vectors. In evaluation nothing changes.

    Args:
        decay: weight of the old usage, in [0, 1).
        anchor: ``"closest"``: the vector closest to the code in Euclidean distance, over all ranks. Codes far from the
            data may all have the same one; they then lie a thousandth of their former distances apart, and which of
            them gets a vector is up to rounding. ``"random"``: a vector drawn from those of all ranks, no vector twice
            while there are enough.

    Source: arXiv 2307.15139 (CVQ-VAE), equations for the running usage and the moved codes. Deviations: the usage is
    that of the steps before, because codes move before they are read; moves of less than a thousandth of the way are
    left out, or each step would clear the optimizer's state of healthy codes; no contrastive loss.

    Example:
        >>> AnchoredReset(anchor="random")
        AnchoredReset(decay=0.99, anchor='random')
    """

    usage: Tensor
    decay: float = setting(check_float, minimum=0, maximum=1, open_maximum=True)
    anchor: Anchor = setting(check_choice, choices=get_args(Anchor))

    def __init__(self, decay: float = 0.99, anchor: Anchor = "closest") -> None:
        super().__init__()
        self.decay = decay
        self.anchor = anchor

    def _make(self, size: int, dim: int) -> None:
        self.size = size
        self.register_buffer("usage", torch.zeros(size))

    def record(self, counts: Tensor) -> None:
        counts = counts.to(self.usage.dtype)
        total = counts.sum()
        usage = self.decay * self.usage + (1 - self.decay) * counts / total.clamp(min=1)
        self.usage.copy_(torch.where(total > 0, usage, self.usage))

    def due(self, batch: Batch, table: Table) -> tuple[Tensor, Tensor] | None:
        way = (-self.usage * (self.size * 10 / (1 - self.decay)) - 1e-3).exp()
        rows = (way >= _LEAST) & (self.usage.sum() > 0)
        # Not among several ranks: one may run a compiled graph, which cannot ask, while another does not.
        if can_ask(rows) and num_ranks(batch.group) == 1 and not rows.any():
            return None
        codes = table.codes()
        if self.anchor == "closest":
            anchors, is_found = _closest(batch, codes)
        else:
            room = batch.room()
            anchors = batch.pick(batch.draws.distinct("anchors", self.size, room)).to(codes.dtype)
            is_found = batch.total() > 0
        moved = torch.lerp(codes, anchors, way.to(codes.dtype)[:, None])
        info = torch.finfo(moved.dtype)
        deviation = _UNITS * info.eps * moved.norm(dim=1, keepdim=True) + info.tiny**0.5
        noise = batch.draws.normal("anchor noise", (self.size, moved.shape[1]), moved.dtype)
        return rows & is_found, torch.addcmul(moved, deviation, noise)

    def forget(self, rows: Tensor | None) -> None:
        """Starts over for all rows together only: a code that was moved is as little used as before."""
        if rows is None:
            self.usage.zero_()

    def extra_repr(self) -> str:
        return f"decay={self.decay}, anchor={self.anchor!r}"


def _closest(batch: Batch, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The valid vector of all ranks closest to each code, (k, d), and whether there is one, Bool (k,)."""
    z, valid, group = batch.z.to(codes.dtype), batch.valid, batch.group
    if len(z):
        if valid is not None:  # a vector that is valid, if any is, stands in for the others
            z = torch.where(valid[:, None], z, z.index_select(0, valid.int().argmax().view(1)))
        own = z.index_select(0, nearest_code(codes, z))
        distance = (own - codes).square().sum(1)
        if valid is not None:
            distance = torch.where(valid.any(), distance, torch.inf)
    else:
        own, distance = torch.zeros_like(codes), torch.full_like(codes[:, 0], torch.inf)
    shortest, owner = stack_over_ranks(distance, group).min(0)
    anchors = sum_over_ranks(torch.where((owner == rank(group))[:, None], own, 0), group)
    return anchors, shortest.isfinite()
