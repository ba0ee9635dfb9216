"""Kills `straightvq encode` at random moments and restarts it with other numbers of processes: nothing may differ.

    python benchmarks/encode_kills.py /path/to/cifar10/train.parquet           # 50,000 pictures, 10 kills
    python benchmarks/encode_kills.py folder --kills 3 --most 500 --recipe photos

One job is left alone. A second one is killed with SIGKILL again and again, and goes on with 1, 2 and 4 processes and,
where Ray is installed, with two workers of Ray, in turn; the last start ends it. A third is made by Ray alone. All
shards are compared byte for byte, and their keys with those of the source: none lost, none twice. The memory is the
peak of a process of the job that was left alone, beside that of a job of a tenth of the pictures.
"""

import argparse
import contextlib
import datetime
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from encode import trained
from straightvq.io import write_text
from straightvq.studies.results import hardware

STARTS = ("1", "2", "4", "ray")


class Job:
    """The processes of one start of the command.

    Args:
        words: options of `straightvq encode`.
        start: number of processes, or ``"ray"`` for two workers of Ray.
    """

    def __init__(self, words: Sequence[str], start: str) -> None:
        command = [sys.executable, "-m", "straightvq", "encode", *words]
        if start == "ray":
            places: list[dict[str, str]] = [{}]
            command += ["--engine", "ray", "--workers", "2"]
        elif start == "1":
            places = [{}]
        else:
            places = [{"RANK": str(rank), "WORLD_SIZE": start} for rank in range(int(start))]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the processes are gone
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1", **place},
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                start_new_session=True,
            )
            for place in places
        ]

    def kill(self, folder: Path, new: int, seconds: float) -> bool:
        """Some seconds after so many new shards; whether any process was still at work."""
        wanted = len(shards(folder)) + new
        while len(shards(folder)) < wanted and any(process.poll() is None for process in self.processes):
            time.sleep(0.02)
        time.sleep(seconds)
        is_at_work = any(process.poll() is None for process in self.processes)
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.errors.close()
        return is_at_work

    def end(self) -> int:
        """Waits; the largest memory of a process, in bytes."""
        peak = 0
        for process in self.processes:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                time.sleep(0.05)
            if status:
                self.errors.seek(0)
                raise SystemExit(self.errors.read().decode())
            process.returncode = 0
            peak = max(peak, usage.ru_maxrss * 1024)
        self.errors.close()
        return peak


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in shards(folder)}


def keys(folder: Path) -> list[str]:
    return [key for file in shards(folder) for key in pq.read_table(file)["key"].to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Parquet file of pictures")
    parser.add_argument("--most", type=int, default=50_000, help="pictures of the source that take part")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--recipe", default="photos", help="of an autoencoder of colour pictures")
    parser.add_argument("--rows-per-shard", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="file for the figures; by default they are only shown")
    args = parser.parse_args()
    has_ray = importlib.util.find_spec("ray") is not None
    starts = [start for start in STARTS if start != "ray" or has_ray]
    draws = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = trained(folder / "runs", args.recipe, 64)
        given = pq.read_table(args.source)
        sources = {}
        for name, count in (("all", args.most), ("tenth", args.most // 10)):
            sources[name] = folder / f"{name}.parquet"
            pq.write_table(given.slice(0, count), sources[name], row_group_size=1000)
        count = min(args.most, len(given))

        def words(source: str, out: str) -> list[str]:
            options = ["--run", run, "--source", sources[source], "--out", folder / out, "--device", "cpu"]
            return [*map(str, options), "--rows-per-shard", str(args.rows_per_shard)]

        small = Job(words("tenth", "tenth"), "1").end()
        large = Job(words("all", "whole"), "1").end()
        most = len(shards(folder / "whole")) // (args.kills + 1)
        killed = 0
        for number in tqdm(range(args.kills), "Kills"):
            job = Job(words("all", "killed"), starts[number % len(starts)])
            killed += job.kill(folder / "killed", draws.randint(0, most), draws.uniform(0, 0.5))
        left = len(shards(folder / "killed"))
        Job(words("all", "killed"), starts[args.kills % len(starts)]).end()
        if has_ray:
            Job(words("all", "ray"), "ray").end()
        whole = content(folder / "whole")
        names = keys(folder / "whole")
        if len(names) != count or len(set(names)) != count:
            raise SystemExit(f"{count} pictures gave {len(names)} rows, {len(set(names))} of them different.")
        for other in ("killed", *(["ray"] if has_ray else [])):
            if content(folder / other) != whole:
                raise SystemExit(f"The shards of the job {other!r} are not those of the job that was left alone.")

    machine = f"{hardware('cpu')}, torch {torch.__version__}"
    options = f"--kills {args.kills} --most {args.most} --rows-per-shard {args.rows_per_shard} --seed {args.seed}"
    page = "\n".join(
        [
            "# Encoding that is killed and restarted\n",
            f"{datetime.date.today()}, {machine}; "
            f"`python benchmarks/encode_kills.py {args.source.parent.name}/{args.source.name} {options}`.\n",
            f"- {count:,} pictures in {len(whole)} shards; {killed} kills, restarted in turn with "
            f"{', '.join(starts)} {'(two workers of Ray)' if has_ray else 'processes'}; "
            f"{left} shards were there after the last kill.",
            f"- All {len(whole)} shards equal those of the job that was left alone, byte for byte"
            f"{', and so do those made by Ray alone' if has_ray else '; Ray was not installed'}; "
            f"{count:,} different keys.",
            f"- Peak memory of a process: {large / 2**20:,.0f} MB; for a tenth of the pictures "
            f"{small / 2**20:,.0f} MB.",
        ]
    )
    print(page)
    if args.page is not None:
        write_text(args.page, page + "\n")


if __name__ == "__main__":
    main()
