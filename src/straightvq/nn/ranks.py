"""Collectives over data-parallel ranks; without a process group each is the identity.

The group is asked for at every call, so it may be created before or after the module. ``None`` stands for the
default group, a ``ProcessGroup`` for that one, and ``False`` switches synchronisation off.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from straightvq.errors import InvalidValueError

Group = dist.ProcessGroup | Literal[False] | None


def num_ranks(group: Group) -> int:
    """Number of processes that share a codebook; 1 without a process group."""
    if group is False or not dist.is_available() or not dist.is_initialized():
        return 1
    ranks = dist.get_world_size(group)
    if ranks < 1:
        raise InvalidValueError(
            "`process_group` must be None, False, or a group that this process belongs to. "
            f"Got one without rank {dist.get_rank()}."
        )
    return ranks


def rank(group: Group) -> int:
    return 0 if num_ranks(group) == 1 else dist.get_rank(None if group is False else group)


def sum_over_ranks(tensor: Tensor, group: Group) -> Tensor:
    """Sum over all ranks, bit-identical on all of them."""
    if num_ranks(group) == 1:
        return tensor
    tensor = tensor.contiguous().clone()
    dist.all_reduce(tensor, group=None if group is False else group)
    return tensor


def stack_over_ranks(tensor: Tensor, group: Group) -> Tensor:
    """``(ranks, *shape)``: every rank's tensor, which must have the same shape everywhere."""
    ranks = num_ranks(group)
    if ranks == 1:
        return tensor[None]
    flat = tensor.reshape(-1)  # compiled graphs cannot gather scalars
    out = [torch.empty_like(flat) for _ in range(ranks)]
    dist.all_gather(out, flat, group=None if group is False else group)
    return torch.stack(out).view(ranks, *tensor.shape)


def rows_over_ranks(rows: Tensor, group: Group) -> Tensor:
    """All ranks' rows one below the other; their numbers may differ or be zero. Waits for the host."""
    if num_ranks(group) == 1:
        return rows
    sizes = stack_over_ranks(torch.tensor([len(rows)], device=rows.device), group)[:, 0].tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:size] for part, size in zip(stack_over_ranks(padded, group), sizes, strict=True)])


def copy_from_first_rank(tensor: Tensor, group: Group) -> None:
    """Overwrites ``tensor`` on all ranks with the first rank's values."""
    if num_ranks(group) > 1:
        source = 0 if group is None or group is False else dist.get_global_rank(group, 0)
        dist.broadcast(tensor, source, group=None if group is False else group)


class Message:
    """What the ranks tell each other at one moment of the step, in one all-reduce.

    Args:
        group: the ranks that share the codebook.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._stacked: list[tuple[Tensor, Callable[[Tensor], None]]] = []

    def stack(self, tensor: Tensor, then: Callable[[Tensor], None]) -> None:
        """Has ``then`` called with ``(ranks, *shape)``, every rank's tensor, once the message has arrived."""
        # A sum of slots of which each rank fills its own, so that it can travel with what is to be summed.
        slots = tensor.new_zeros(num_ranks(self._group), *tensor.shape)
        slots[rank(self._group)] = tensor
        self._stacked.append((slots, then))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was stacked."""
        return not self._stacked

    def send(self, tensor: Tensor) -> Tensor:
        """Sum of ``tensor`` over all ranks; everything that was stacked arrives with it."""
        if self.is_empty:
            return sum_over_ranks(tensor, self._group)
        parts = [tensor, *(slots for slots, _ in self._stacked)]
        flat = sum_over_ranks(torch.cat([part.reshape(-1) for part in parts]), self._group)
        total, *arrived = flat.split([part.numel() for part in parts])
        for (slots, then), values in zip(self._stacked, arrived, strict=True):
            then(values.view_as(slots))
        return total.view_as(tensor)


class SharedGroup:
    """A process group on its way to a copy, which shares it."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedGroup":
        return self

    def __reduce__(self) -> tuple[type, tuple[Group]]:
        """No other process has the group: what is loaded there takes the default one."""
        return SharedGroup, (False if self.group is False else None,)
