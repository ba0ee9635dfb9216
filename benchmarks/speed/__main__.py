"""Speed and memory of the layer beside its peers.

    make bench                                    # the sizes behind the documentation's figures, under 30 minutes
    python -m benchmarks.speed --full             # every vectors x codes x width of the grid: hours
    python -m benchmarks.speed --vectors 16384 --codes 1024 8192 --widths 64 --kinds search

Every row (a method at a size) is a process of its own, with a limit on memory and on the time of one repetition; a row
that exceeds one says so. The processes of one size take turns, one repetition each, so that their ratios do not depend
on what else the machine did in between. Rows are kept in a CSV file; sizes that are in it are not repeated with
`--resume`.
"""

import argparse
import csv
import datetime
import itertools
import json
import math
import os
import selectors
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.methods import METHODS, Kind, Problem
from benchmarks.speed.report import CODES as K
from benchmarks.speed.report import PRODUCT, QUERY, RESIDUAL, SHARE_OF, START, write_report
from benchmarks.speed.report import VECTORS as N
from benchmarks.speed.report import WIDTH as D
from tqdm import tqdm

VECTORS, CODES, WIDTHS = (4096, 16384, 65536, 262144), (512, 1024, 8192, 65536, 262144), (8, 32, 64, 256)
# Along each axis through the middle of the grid.
LINES = (
    [(N, k, D) for k in (512, 1024, 8192, 16384, 32768, 65536)]
    + [(n, K, D) for n in (4096, 32768, 65536, 262144)]
    + [(N, K, d) for d in (8, 32, 256)]
    + [(65536, 262144, 32)]
)
# Seconds before each turn, in which the threads of the row before it stop spinning.
PAUSE = 0.03
PREPARATION = 300.0  # seconds at most until a row is ready
GROWTH_TURNS = 21
FIELDS = ["kind", "method", "vectors", "codes", "width", "device", "threads", "seconds", "fastest", "slowest",
          "repetitions", "extra_mb", "outcome", "date"]  # fmt: skip


class Worker:
    """The parent's end of one row."""

    def __init__(self, kind: Kind, method: str, problem: Problem, options: argparse.Namespace) -> None:
        self.method, self.limit = method, options.time_limit
        self.times: list[float] = []
        self.extra = 0
        self.outcome = ""
        order = {"kind": kind, "method": method, "problem": problem, "threads": options.threads,
                 "memory_limit": int(options.memory_limit * 1e9)}  # fmt: skip
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        environment.pop("OMP_WAIT_POLICY", None)  # as in a program of one's own
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next answer, or why there is none."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return {"failed": f"over {seconds:g} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": f"died with exit status {self.process.wait()}"}

    def begin(self) -> None:
        self._fail(self.hear(PREPARATION))

    def _fail(self, answer: dict[str, Any]) -> None:
        self.outcome = answer.get("failed", "")
        if self.outcome:
            self.process.kill()  # or it would go on working beside the others

    def turn(self) -> None:
        assert self.process.stdin is not None
        time.sleep(PAUSE)
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        answer = self.hear(self.limit)
        self._fail(answer)
        if not self.outcome:
            self.times.append(answer["seconds"])
            self.extra = max(self.extra, answer["extra"])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def measure(kind: Kind, problem: Problem, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows of one size."""
    names = [name for name, method in METHODS[kind].items() if problem.device in method.devices]
    workers = [Worker(kind, name, problem, options) for name in names]
    try:
        for worker in workers:
            worker.begin()
        # The growth is a quotient of its rows, and close to its limit: all of them take all turns.
        repetitions, seconds = (GROWTH_TURNS, math.inf) if kind == "growth" else (options.repetitions, options.seconds)
        for turn in range(repetitions + 1):
            for worker in workers:
                # The first repetition warms up, and is the only one where it is long.
                done = turn > 1 and sum(worker.times) > seconds
                long = turn == 1 and worker.times and worker.times[0] > seconds
                if not (worker.outcome or done or long):
                    worker.turn()
    finally:
        for worker in workers:
            worker.close()
    for worker in workers:
        times = worker.times[1:] or worker.times
        good = not worker.outcome
        yield {
            **dict(kind=kind, method=worker.method, device=problem.device, threads=options.threads),
            **dict(vectors=problem.vectors, codes=problem.codes, width=problem.width),
            **dict(seconds=statistics.median(times) if good else "", fastest=min(times) if good else ""),
            **dict(slowest=max(times) if good else "", repetitions=len(times)),
            **dict(extra_mb=round(worker.extra / 1e6, 1) if good else "", outcome=worker.outcome or "ok"),
            "date": datetime.date.today().isoformat(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole grid instead of lines through its middle")
    parser.add_argument("--vectors", type=int, nargs="+", help="with --codes and --widths: a grid of your own")
    parser.add_argument("--codes", type=int, nargs="+")
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--kinds", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repetitions", type=int, default=9, help="at most, after one that warms up")
    parser.add_argument("--seconds", type=float, default=4.0, help="aimed at per row")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for one repetition")
    parser.add_argument("--memory-limit", type=float, default=6.0, help="GB beyond what an idle process holds")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results")
    options = parser.parse_args()
    given = [options.vectors, options.codes, options.widths]
    if any(given) and (options.full or not all(given)):
        parser.error("give --vectors, --codes and --widths together, and without --full")

    sizes = list(itertools.product(*given)) if all(given) else LINES
    if options.full:
        sizes = list(itertools.product(VECTORS, CODES, WIDTHS))
    # Kinds that are measured at a size of their own.
    own = {
        "query": QUERY, "residual": RESIDUAL, "product": PRODUCT, "start": START, "growth": (N, K, D),
        "share": SHARE_OF[options.device],
    }  # fmt: skip
    todo: list[tuple[Kind, Problem]] = [
        (kind, Problem(*size, options.device))
        for kind in options.kinds
        if any(options.device in method.devices for method in METHODS[kind].values())
        for size in ([own[kind]] if kind in own else sizes)
    ]

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"speed-{options.device}.csv"
    rows = list(csv.DictReader(path.open())) if options.resume and path.exists() else []
    known = {(row["kind"], int(row["vectors"]), int(row["codes"]), int(row["width"])) for row in rows}
    todo = [(kind, problem) for kind, problem in todo if (kind, *problem[:3]) not in known]
    with path.open("a" if rows else "w", newline="") as file, tqdm(todo, unit="size") as bar:
        writer = csv.DictWriter(file, FIELDS)
        if not rows:
            writer.writeheader()
        for kind, problem in bar:
            bar.set_postfix_str(f"{kind} {problem.vectors} x {problem.codes} x {problem.width}")
            for row in measure(kind, problem, options):
                writer.writerow(row)
            file.flush()
    print(f"written: {', '.join(str(p) for p in write_report(path, ' '.join(sys.argv[1:])))}")


if __name__ == "__main__":
    if not torch.cuda.is_available() and "cuda" in sys.argv:
        raise SystemExit("--device cuda: this machine has no CUDA device.")
    main()
