"""For tests of what several ranks do together: real processes with gloo on this machine, or pretended ones."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from straightvq.nn import ranks as collectives

Body = Callable[[int, Callable[[], None]], Any]


def run_on_ranks(body: Body, ranks: int = 2) -> list[Any]:
    """What ``body(rank, join)`` returns on each rank; ``join()`` makes the process group.

    ``body`` is a module's function, and its result something that ``torch.load`` takes.
    """
    # The ranks are copies of one process, which has imported everything.
    multiprocessing.set_forkserver_preload(["straightvq", "torch.distributed.fsdp", "pytest"])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_process, args=(ranks, folder, body), nprocs=ranks, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]


def _process(rank: int, ranks: int, folder: str, body: Body) -> None:
    torch.set_num_threads(1)

    def join() -> None:
        # Ranks meet in a file: a port that is free now can be taken a moment later.
        meeting = f"file://{folder}/meeting"
        dist.init_process_group("gloo", meeting, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))

    torch.save(body(rank, join), Path(folder) / f"{rank}.pt")
    dist.barrier()  # no rank leaves while another still talks to it
    dist.destroy_process_group()
    # Without the interpreter's shutdown, which can abort the process when it meets a thread of the library.
    os._exit(0)


def pretend_ranks(monkeypatch: pytest.MonkeyPatch, ranks: int = 2) -> list[str]:
    """Makes this process the first of several that all hold the same; returns the list of messages they then send."""
    sent: list[str] = []

    def all_reduce(tensor: Tensor, group: object) -> None:
        sent.append("all_reduce")
        tensor.mul_(ranks)

    def all_gather(out: list[Tensor], tensor: Tensor, group: object) -> None:
        sent.append("all_gather")
        for slot in out:
            slot.copy_(tensor)

    def broadcast(tensor: Tensor, source: int, group: object) -> None:
        sent.append("broadcast")

    pretended = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda group: ranks,
        get_rank=lambda group: 0,
        all_reduce=all_reduce,
        all_gather=all_gather,
        broadcast=broadcast,
    )
    monkeypatch.setattr(collectives, "dist", pretended)
    return sent
