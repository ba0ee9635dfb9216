"""Kills trainings at random moments and resumes them: each must end as if nobody had disturbed it, to the bit.

    python tests/kill_resume.py --kills 50

Trainings are forked from this process, which has imported everything, and killed from it by SIGKILL, at any moment
after their first checkpoint: in a step, in a validation, while a checkpoint or the log is written. Some are killed
again after they were resumed. What is compared: weights, optimizers, schedules, random states and callbacks of the last
checkpoint, the weights of the best one, and every value of the merged logs.
"""

import argparse
import contextlib
import importlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from straightvq.cli import main as command
from straightvq.runs import log_rows, read_log

SMALL = (
    "--config digits --config tiny --trainer.max_steps 30 --trainer.val_check_interval 7 --trainer.log_every_n_steps 2 "
    "--save_every 3 --keep_every 10 --monitor.every_n_steps 4"
)
RECIPES = {
    "digits": "",
    "workers": "--data.num_workers 2 --data.flip true --data.crop_padding 2 --data.num_train 90",
    "two phases": "--config plain_vq --model.alternate.phase codebook_and_encoder --data.crop_padding 1",
    "epochs": "--trainer.max_steps -1 --trainer.max_epochs 3 --trainer.val_check_interval 1.0 "
    "--trainer.check_val_every_n_epoch 1",
    "accumulation": "--config ema --trainer.accumulate_grad_batches 3 --trainer.max_steps 12 --data.flip true",
}
PATIENCE = 120  # seconds that a training may take


@dataclass
class Training:
    """One run of the command line in a process of its own."""

    recipe: str
    runs: Path
    pid: int = 0

    @property
    def folder(self) -> Path:
        return self.runs / "run"

    def start(self, *options: str) -> None:
        words = ["fit", *SMALL.split(), *RECIPES[self.recipe].split(), "--runs", str(self.runs), "--name", "run"]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setpgid(0, 0)
            with (self.runs / "output.txt").open("a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                code = command([*words, *options])
                sys.stdout.flush()
            (self.runs / "modules.txt").write_text("\n".join(sys.modules))
        finally:
            os._exit(code)

    def ended(self) -> bool:
        """Whether it has come to its end; a failure is an error."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return False
        if status != 0:
            raise RuntimeError(f"the training failed:\n{(self.runs / 'output.txt').read_text()[-3000:]}")
        return True

    def finish(self) -> None:
        for _ in until(PATIENCE):
            if self.ended():
                return
        raise RuntimeError(f"the training takes more than {PATIENCE} s")

    def wait_for_checkpoint(self) -> None:
        for _ in until(PATIENCE):
            if (self.folder / "last.ckpt").exists() or self.ended():
                return
        raise RuntimeError(f"no checkpoint after {PATIENCE} s")

    def kill(self) -> bool:
        """Kills it as it is; False if it had come to its end before."""
        if self.ended():
            return False
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its loading processes, which would notice after seconds
        return True

    def unfinished(self) -> list[str]:
        """Files that were being written, and are now forgotten."""
        found = sorted(self.folder.rglob(".*.tmp"))
        for file in found:
            file.unlink()
        return [file.name.strip(".").rpartition(".")[0].rpartition(".")[0] for file in found]


def until(seconds: float) -> Iterator[None]:
    """Comes back every few milliseconds, for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.002)


def undisturbed(recipe: str, runs: Path) -> tuple["Ending", float]:
    """The ending, and the seconds between the first checkpoint and the end."""
    runs.mkdir()
    training = Training(recipe, runs)
    training.start()
    training.wait_for_checkpoint()
    begin = time.monotonic()
    training.finish()
    seconds = time.monotonic() - begin
    for name in (runs / "modules.txt").read_text().split():  # so that the next ones need not import them
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return Ending.of(training.folder), seconds


@dataclass
class Ending:
    """What two runs must agree in."""

    parts: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Ending":
        last = torch.load(folder / "last.ckpt", weights_only=True)
        kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
        parts = {name: last[name] for name in kept}
        for name, state in last["callbacks"].items():
            # The paths in it are those of the run.
            parts[name] = state["best_model_score"] if name.startswith("ModelCheckpoint") else state
        for file in sorted([folder / "best.ckpt", *folder.glob("checkpoints/*.ckpt")]):
            parts[f"weights of {file.name}"] = torch.load(file, weights_only=True)["state_dict"]
        return cls({**parts, **log_of(folder)})

    def differences(self, other: "Ending") -> list[str]:
        names = sorted(self.parts.keys() | other.parts.keys())
        return [name for name in names if not identical(self.parts.get(name), other.parts.get(name))]


def log_of(folder: Path) -> dict[str, Any]:
    """Steps and values of every column, resumed parts laid over interrupted ones."""
    names = {name for row in log_rows(folder) for name in row if name}
    return {f"log of {name}": read_log(folder, name) for name in names - {"step"}}


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same and torch.equal(a.nan_to_num(3.25), b.nan_to_num(3.25))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and (a == b or a != a)


def disturbed(recipe: str, runs: Path, seconds: float, rng: random.Random) -> tuple[list[str], Ending]:
    """Kills once, sometimes twice, and resumes to the end: what happened, in words, and the ending."""
    runs.mkdir()
    training, story = Training(recipe, runs), []
    training.start()
    training.wait_for_checkpoint()
    for _ in range(rng.choice((1, 1, 2))):
        time.sleep(rng.uniform(0, seconds))
        if not training.kill():  # it was faster
            return story, Ending.of(training.folder)
        step = torch.load(training.folder / "last.ckpt", weights_only=True)["global_step"]
        written = ", ".join(training.unfinished())
        story.append(f"killed after step {step}" + (f", writing {written}" if written else ""))
        training.start("--ckpt_path", "last")
    training.finish()
    return story, Ending.of(training.folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="trainings to kill and compare (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="default: all, in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    rng, begin = random.Random(options.seed), time.monotonic()
    number, writing, different = 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        expected = {name: undisturbed(name, Path(place) / name) for name in options.recipes}
        attempts = 0
        while number < options.kills:
            recipe = options.recipes[number % len(options.recipes)]
            attempts += 1
            story, ending = disturbed(recipe, Path(place) / f"attempt-{attempts}", expected[recipe][1], rng)
            if not story:
                continue
            number += 1
            writing += any("writing" in line for line in story)
            bad = expected[recipe][0].differences(ending)
            different += bool(bad)
            verdict = f"DIFFERENT: {', '.join(bad)}" if bad else "same ending"
            passed = time.monotonic() - begin
            print(f"{number}/{options.kills}  {passed:.0f} s  {recipe}: {'; '.join(story)}: {verdict}", flush=True)
    print(f"{number} endings after kills, {writing} of them while a file was written: {different} different")
    return int(different > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
