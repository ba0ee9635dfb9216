"""Nearest-code search on one CUDA device: our kernel, its peers and the bare matrix product.

    PYTHONPATH=src python benchmarks/gpu_search.py --out results                      # the whole grid, under 8 minutes
    PYTHONPATH=src python benchmarks/gpu_search.py --out results --vectors 65536 --codes 8192 --widths 64

Times are medians of CUDA events after a warm-up, each repetition with the L2 cache overwritten before it. A method
that would not fit in memory, take too long, or fails has a row that says so.
"""

import argparse
import datetime
import gc
import importlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from straightvq.kernels.nearest import search

VECTORS, CODES, WIDTHS = (1 << 14, 1 << 16, 1 << 18, 1 << 20), (1 << 10, 1 << 13, 1 << 16, 1 << 18), (8, 32, 64, 256)
MODES = ("float32", "tf32x3", "tf32", "half")
# What the product that a method is compared with runs in; three TF32 products stand for one in float32.
PRODUCT_OF = {"float32": "float32", "tf32x3": "float32", "tf32": "tf32", "half": "half"}
SAMPLE = 256
Problem = tuple[Tensor, Tensor, Tensor]


class Timer:
    """Median seconds of a function on the device."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # aimed at per measurement
        self.flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")  # several times the L2 cache

    def once(self, function: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def __call__(self, function: Callable[[], Any]) -> tuple[float, int]:
        function()  # compiles and tunes
        first = self.once(function)
        repetitions = max(1, min(20, int(self.seconds / first)))
        # A single long repetition is its own warm-up.
        times = [self.once(function) for _ in range(repetitions)] if repetitions > 1 else [first]
        return statistics.median(times), len(times)


def matrix_product(z: Tensor, codes: Tensor, precision: str, timer: Timer) -> float:
    """FLOP/s of ``z @ codes.T`` written out, on as many vectors as give a matrix of 2 GB."""
    rows = max(1, min(len(z), (1 << 29) // len(codes)))
    dtype = torch.bfloat16 if precision == "half" else torch.float32
    a, b = z[:rows].to(dtype), codes.to(dtype).T
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        out = torch.empty(rows, len(codes), dtype=dtype, device="cuda")
        seconds, _ = timer(lambda: torch.mm(a, b, out=out))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    return 2 * rows * len(codes) * z.shape[1] / seconds


def cdist(z: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
    return torch.cdist(z, codes, compute_mode="use_mm_for_euclid_dist").argmin(1)


def flash_kmeans(dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The assignment step of flash-kmeans, casts and norms included, or None where it is not installed."""
    try:
        assign = importlib.import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    except ImportError:
        return None

    def run(z: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
        x, c = z[None].to(dtype), codes[None].to(dtype)
        return assign(x, c, x.float().square().sum(-1), c_sq=2 * bias[None])[0].long()

    return run


def methods() -> list[tuple[str, str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """(name, precision, function), ours first."""
    ours = [(f"straightvq {mode}", mode, lambda z, c, b, mode=mode: search(z, c, b, mode)) for mode in MODES]
    found: list[tuple[str, str, Any]] = [*ours, ("torch cdist + argmin", "float32", cdist)]
    for precision, dtype in (("tf32", torch.float32), ("half", torch.bfloat16)):
        if (function := flash_kmeans(dtype)) is not None:
            found.append((f"flash-kmeans {str(dtype).removeprefix('torch.')}", precision, function))
    return found


def check(z: Tensor, codes: Tensor, bias: Tensor, got: Tensor) -> dict[str, float]:
    """Agreement with float64 on a sample, and the largest loss of value as a fraction of sum |z_i c_i|."""
    rows = torch.linspace(0, len(z) - 1, min(SAMPLE, len(z)), device="cuda").long()
    found, zs, cs = got[rows], z[rows].double(), codes.double()
    values = bias.double() - zs @ cs.T
    best = values.argmin(1)
    lost = values.gather(1, found[:, None])[:, 0] - values.gather(1, best[:, None])[:, 0]
    size = (zs * cs[best]).abs().sum(1)
    return {"agree": (found == best).double().mean().item(), "lost": (lost / size).max().item()}


def measure(function: Callable[..., Tensor], problem: Problem, timer: Timer) -> dict[str, Any]:
    z, codes, _ = problem
    function(*problem)  # what compiling and tuning allocates is not the method's memory
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = function(*problem)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    seconds, repetitions = timer(lambda: function(*problem))
    flops = 2 * len(z) * len(codes) * z.shape[1] / seconds
    return {"ms": seconds * 1e3, "repetitions": repetitions, "tflops": flops / 1e12, "peak_mb": peak / 2**20} | check(
        *problem, got
    )


def why_not(name: str, n: int, k: int, d: int, limit: float, rates: dict[str, float], precision: str) -> str | None:
    """The reason to leave a method out, or None."""
    needed = 2 * 4 * n * k if name.startswith("torch") else 12 * n * d
    if needed > 0.8 * torch.cuda.mem_get_info()[0]:
        return f"needs {needed / 2**30:.0f} GB"
    # A search at a quarter of the product's rate, run three times at least.
    expected = 2 * n * k * d / (rates[PRODUCT_OF[precision]] / 4)
    return f"would take about {expected:.0f} s" if expected > limit else None


def attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """The function's result, or why it has none: a benchmark goes on after out-of-memory and after a peer's error."""
    try:
        return function(), None
    except torch.cuda.OutOfMemoryError:
        reason = "out of memory"
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
    # Outside the handler: the traceback, and the tensors in its frames, are gone.
    gc.collect()
    torch.cuda.empty_cache()
    return None, reason


def rows_of_cell(n: int, k: int, d: int, timer: Timer, limit: float, deadline: float) -> Iterator[dict[str, Any]]:
    cell = {"vectors": n, "codes": k, "width": d}
    generator = torch.Generator("cuda").manual_seed(n + k + d)
    made, reason = attempt(lambda: [torch.randn(rows, d, device="cuda", generator=generator) for rows in (n, k)])
    if made is None:
        yield cell | {"method": "all", "note": reason}
        return
    z, codes = made
    problem = (z, codes, codes.square().sum(1) / 2)
    rates: dict[str, float] = {}
    for precision in ("float32", "tf32", "half"):
        rate, reason = attempt(lambda precision=precision: matrix_product(z, codes, precision, timer))
        rates[precision] = rate or 1e13  # only to expect a time
        row = {"tflops": rate / 1e12} if rate else {"note": reason}
        yield cell | {"method": f"matrix product {precision}", "precision": precision} | row
    for name, precision, function in methods():
        row = cell | {"method": name, "precision": precision}
        note = why_not(name, n, k, d, limit, rates, precision)
        if time.monotonic() > deadline:
            note = "not reached: out of time"
        if note is None:
            result, note = attempt(lambda function=function: measure(function, problem, timer))
        if note is not None:
            yield row | {"note": note}
        else:
            yield row | result | {"share": result["tflops"] * 1e12 / rates[PRODUCT_OF[precision]]}


def line(row: dict[str, Any]) -> str:
    def cell(key: str, digits: str) -> str:
        return format(row[key], digits) if row.get(key) is not None else ""

    sizes = [f"{row['vectors']:,}", f"{row['codes']:,}", str(row["width"])]
    numbers = [
        cell("ms", ".3f"), cell("tflops", ".1f"), cell("share", ".0%"), cell("peak_mb", ".1f"), cell("agree", ".2%"),
        cell("lost", ".1e"),
    ]  # fmt: skip
    return "| " + " | ".join([*sizes, row["method"], *numbers, row.get("note") or ""]) + " |"


def report(rows: list[dict[str, Any]], facts: dict[str, Any], out: Path) -> None:
    """Written after every cell, so that a stopped run leaves what it has."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_search.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1))
    titles = [
        "vectors",
        "codes",
        "width",
        "method",
        "ms",
        "TFLOP/s",
        "of the product",
        "peak MB",
        "agree",
        "lost",
        "note",
    ]
    text = [
        "# Nearest-code search on a GPU",
        "",
        ", ".join(f"{key} {value}" for key, value in facts.items()) + ".",
        "",
        "Medians of CUDA events after a warm-up; the L2 cache is overwritten before every repetition. TFLOP/s counts "
        "2 x vectors x codes x width. *Of the product*: share of the rate of the bare matrix product in the same "
        "precision (float32 for tf32x3), which writes its matrix out, 2 GB of it at most. *Peak MB*: device memory "
        f"above the inputs, the result included. *Agree* and *lost*: against float64 on {SAMPLE} vectors, the share "
        "of equal indices and the largest loss of value as a fraction of sum |z_i c_i|.",
        "",
        "| " + " | ".join(titles) + " |",
        "|---" * len(titles) + "|",
        *map(line, rows),
    ]
    (out / "gpu_search.md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_search.md and gpu_search.json")
    parser.add_argument("--vectors", type=int, nargs="+", default=VECTORS)
    parser.add_argument("--codes", type=int, nargs="+", default=CODES)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--limit", type=float, default=1.0, help="longest search that is run, in seconds")
    parser.add_argument("--minutes", type=float, default=7.0, help="no method is started after so long")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    start = time.monotonic()
    timer = Timer(seconds=0.05)
    facts = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__, "date": str(datetime.date.today()),
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    cells = list(itertools.product(arguments.vectors, arguments.codes, arguments.widths))
    for n, k, d in sorted(cells, key=lambda sizes: sizes[0] * sizes[1] * sizes[2]):
        for row in rows_of_cell(n, k, d, timer, arguments.limit, start + 60 * arguments.minutes):
            rows.append(row)
            print(line(row), flush=True)
        report(rows, facts | {"minutes": round((time.monotonic() - start) / 60, 1)}, arguments.out)


if __name__ == "__main__":
    main()
