"""Where work is done that comes in pieces: in this process, or on workers of Ray's."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from straightvq.errors import InvalidValueError

Value = TypeVar("Value")


def executor(workers: int) -> Executor:
    """One that does as many runs at a time; several need Ray."""
    return InProcess() if workers == 1 else RayWorkers(workers)


class InProcess(Executor):
    """Does at once what is submitted; Ctrl-C ends it as it ends any other code."""

    def submit(self, function: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        future: Future[Value] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class RayWorkers(Executor):
    """Ray's processes, each with its part of the processors and GPUs; they must see the same files as this one.

    They are on this machine, or on the cluster that ``RAY_ADDRESS`` names.
    """

    def __init__(self, workers: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise InvalidValueError(
                f"`workers` must be 1 where Ray is not installed. Got {workers}. Several need the extra: "
                'pip install "straightvq[cluster]".'
            ) from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        there = ray.cluster_resources()
        cpus, gpus = there.get("CPU", 1) / workers, min(1.0, there.get("GPU", 0) / workers)
        # Ray takes parts of one processor, and whole ones.
        self._options = {"num_cpus": cpus if cpus < 1 else int(cpus), "num_gpus": gpus, "max_retries": 0}

    def submit(self, function: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        future: Future[Value] = Future()

        def hand_on(done: Future[Value]) -> None:
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            else:
                future.set_exception(getattr(error, "cause", None) or error)  # Ray wraps what the function raised

        self._ray.remote(function).options(**self._options).remote(*args, **kwargs).future().add_done_callback(hand_on)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._ray.shutdown()
