"""Collectives over data-parallel ranks; without a process group each is the identity.

The group is asked for at every call, so it may be created before or after the module. ``None`` stands for the
default group, a ``ProcessGroup`` for that one, and ``False`` switches synchronisation off.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | Literal[False] | None


def num_ranks(group: Group) -> int:
    """Number of processes that share a codebook; 1 without a process group."""
    if group is False or not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size(group)


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
    out = [torch.empty_like(tensor) for _ in range(ranks)]
    dist.all_gather(out, tensor.contiguous(), group=None if group is False else group)
    return torch.stack(out)


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
