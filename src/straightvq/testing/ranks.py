"""Data-parallel ranks as threads of this process: collectives without processes, and no wait that never ends."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from straightvq.nn import ranks as collectives
from straightvq.testing.law import LawError

T = TypeVar("T")


class Ranks:
    """Runs one function on ``count`` ranks, which are threads.

    Ranks that wait for different messages, or for one that has left, raise instead of hanging.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count)
        self._slots: list[tuple[str, Tensor | None]] = [("", None)] * count
        self._own = threading.local()

    def run(self, body: Callable[[int], T]) -> list[T]:
        """What ``body(rank)`` returns on each rank. One call at a time in a process."""
        with self._in_place_of_torch(), ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(self._rank, number, body) for number in range(self.count)]
            for error in [future.exception() for future in futures]:
                # A broken barrier is that of a rank that waited for the one that failed.
                if error and not isinstance(error, threading.BrokenBarrierError):
                    raise error
            return [future.result() for future in futures]

    def _rank(self, number: int, body: Callable[[int], T]) -> T:
        self._own.rank = number
        try:
            result = body(number)
            self._exchange("the end", None)
            return result
        except BaseException:
            self._barrier.abort()
            raise

    def _exchange(self, kind: str, tensor: Tensor | None) -> list[Any]:
        shape = "" if tensor is None else f" of shape {tuple(tensor.shape)}"
        self._slots[self._own.rank] = (kind + shape, None if tensor is None else tensor.detach().clone())
        self._barrier.wait()
        slots = list(self._slots)
        self._barrier.wait()
        kinds = [kind for kind, _ in slots]
        if len(set(kinds)) > 1:
            raise LawError(f"expected all ranks to wait for the same message. Got {', '.join(kinds)}.")
        return [tensor for _, tensor in slots]

    @contextmanager
    def _in_place_of_torch(self) -> Iterator[None]:
        def all_reduce(tensor: Tensor, group: object = None) -> None:
            tensor.copy_(torch.stack(self._exchange("all_reduce", tensor)).sum(0))

        def all_gather(out: list[Tensor], tensor: Tensor, group: object = None) -> None:
            for slot, given in zip(out, self._exchange("all_gather", tensor), strict=True):
                slot.copy_(given)

        def broadcast(tensor: Tensor, source: int, group: object = None) -> None:
            tensor.copy_(self._exchange("broadcast", tensor)[source])

        pretended = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_world_size=lambda group=None: self.count,
            get_rank=lambda group=None: self._own.rank,
            all_reduce=all_reduce,
            all_gather=all_gather,
            broadcast=broadcast,
        )
        with mock.patch.object(collectives, "dist", pretended):
            yield
