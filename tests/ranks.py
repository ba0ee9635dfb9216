"""Real processes with gloo on this machine, for tests of what several ranks do together."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Body = Callable[[int, Callable[[], None]], Any]


def run_on_ranks(body: Body, ranks: int = 2) -> list[Any]:
    """What ``body(rank, join)`` returns on each rank; ``join()`` makes the process group.

    ``body`` is a module's function, and its result something that ``torch.load`` takes.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, args=(ranks, folder, body), nprocs=ranks)
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
