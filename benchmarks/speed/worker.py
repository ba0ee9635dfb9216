"""One row in a process of its own: reads "go", does the work once, answers with what it cost."""

import ctypes
import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.methods import METHODS, Method, Problem

_WARM = 256  # vectors and codes of a first call that loads libraries and starts threads


def _status(field: str) -> int:
    """Bytes from /proc: VmRSS is what the process holds, VmHWM the most it held, VmData its private memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class _Memory:
    """The most that was held at once beyond what was held before."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device == "cuda"
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed is not held
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts over
            self.before = _status("VmRSS")

    def extra(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.on_cuda else _status("VmHWM")) - self.before


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _seconds(once: Any, device: str) -> float:
    start = time.perf_counter()
    own = once()
    if device == "cuda":
        torch.cuda.synchronize()
    return own if isinstance(own, float) else time.perf_counter() - start


def serve(method: Method, problem: Problem, memory_limit: int) -> None:
    if not method.is_warm:
        small = problem._replace(vectors=min(_WARM, problem.vectors), codes=min(_WARM, problem.codes))
        method.make(small)()
    if problem.device == "cpu":
        most = _status("VmData") + memory_limit
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    once = method.make(problem)
    _say({"ready": True})
    memory = _Memory(problem.device)
    for line in sys.stdin:
        assert line == "go\n"
        _say({"seconds": _seconds(once, problem.device), "extra": memory.extra()})


def main() -> None:
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    try:
        serve(METHODS[order["kind"]][order["method"]], Problem(*order["problem"]), order["memory_limit"])
    except ModuleNotFoundError as error:
        _say({"failed": f"not installed: {error.name}"})
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error)
        reason = f"over {order['memory_limit'] / 1e9:g} GB" if is_memory else str(error).splitlines()[0][:80]
        _say({"failed": reason})


if __name__ == "__main__":
    main()
