"""Hands out shards: to this process, to those of `torchrun`, or to workers of Ray's. A shard is always the same."""

import errno
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Literal, Protocol, get_args

from tqdm import tqdm

from straightvq.encoding.folder import ShardFolder
from straightvq.encoding.opening import ranks
from straightvq.errors import InvalidValueError
from straightvq.executors import RayWorkers
from straightvq.nn.part import check_choice, check_int

Engine = Literal["here", "ray"]


class Work(Protocol):
    """What makes shards.

    Attributes:
        folder: where they go.
        kind: what a row is called.
    """

    folder: ShardFolder
    kind: str

    def do(self, numbers: Sequence[int], tell: Callable[[int], object]) -> None:
        """Makes the shards of these numbers; ``tell`` is called with how many rows are finished since the last call."""


class Job(Protocol):
    """All that another process needs to do the same work."""

    @property
    def owner(self) -> str: ...

    def open(self, device: str | None = None) -> Work:
        """Opens what is read and written, on the job's own device or another."""

    def __hash__(self) -> int: ...


def hand_out(job: Job, engine: Engine, workers: int) -> dict[str, Any]:
    """Makes those shards that are missing and this process's to make; returns what ``metadata.json`` holds."""
    check_choice(job.owner, "engine", engine, get_args(Engine))
    check_int(job.owner, "workers", workers, 1)
    rank, world = ranks(job.owner)
    if engine == "here" and workers > 1:
        raise InvalidValueError(
            f'`{job.owner}`: `workers` must be 1 without Ray. Got {workers}. Pass engine="ray", or start '
            "several processes with `torchrun`."
        )
    if engine == "ray" and world > 1:
        raise InvalidValueError(
            f'`{job.owner}`: `engine` must be "here" under `torchrun`, one process of which does not know of the '
            f'others\' workers. Got "ray" and WORLD_SIZE={world}.'
        )
    pool = RayWorkers(workers) if engine == "ray" else None
    try:
        work = job.open(None if pool is None else "cpu")
        folder = work.folder
        folder.prepare()
        due = [number for number in range(rank, len(folder.sizes), world) if not folder.is_complete(number)]
        total = sum(folder.sizes[number] for number in due)
        # `disable=None`: no bar where nobody watches; those of several processes would overwrite each other.
        with tqdm(total=total, desc=job.owner, unit=f" {work.kind}", disable=None if rank == 0 else True) as bar:
            if pool is None:
                work.do(due, bar.update)
            else:
                _on_ray(pool, 2 * workers, job, [(number, folder.sizes[number]) for number in due], bar.update)
        return folder.finish()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.add_note("What is complete stays as it is: make room, and the same command goes on.")
        raise
    finally:
        if pool is not None:
            pool.shutdown()


def _on_ray(
    pool: RayWorkers, most: int, job: Job, due: Sequence[tuple[int, int]], tell: Callable[[int], object]
) -> None:
    """Does the shards, each given by its number and its rows, ``most`` of them under way at a time."""
    running: dict[Future[None], int] = {}
    left = iter(due)
    while True:
        while len(running) < most and (shard := next(left, None)) is not None:
            running[pool.submit(_do_one, job, shard[0])] = shard[1]
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            tell(running.pop(future))


def _do_one(job: Job, number: int) -> None:
    _opened(job).do([number], lambda rows: None)


@functools.lru_cache(maxsize=1)
def _opened(job: Job) -> Work:
    """The network is loaded once in each worker."""
    return job.open()
