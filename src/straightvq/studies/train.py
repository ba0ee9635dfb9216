"""One run of a study: trained as `straightvq fit` trains, taken up where it was stopped, and measured."""

import gc
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from straightvq.errors import InvalidValueError, NonFiniteError
from straightvq.generation.generate import Sampling, generate
from straightvq.generation.task import Generation
from straightvq.io import write_text
from straightvq.runs import read_checkpoint
from straightvq.studies.results import FINAL, Result, Run
from straightvq.training.command_line import TrainingCLI, quiet
from straightvq.training.monitor import CodebookWarning

CHECKPOINTS = ("last.ckpt", "best.ckpt")
OWNER = "study_run.json"  # tells whose checkpoint is in a folder
SAMPLES = 100  # drawn from a model of images
Show = Callable[[int, int], None]


def train(run: Run, place: Path, show: Show | None = None) -> Result:
    """Trains in the folder ``place``, or resumes from the last checkpoint, and measures; a model of images draws some.

    ``show`` is told the steps done and the steps planned. A training that broke off because its values were no longer
    finite gives a result with an ``error``.
    """
    # A trainer and its callbacks refer to one another, so that the memory of the run before may still be held.
    gc.collect()
    watcher = _Watcher(run, place, show)
    with quiet(), warnings.catch_warnings():
        # A codebook that dies is a finding here, and is in the table.
        warnings.simplefilter("ignore", CodebookWarning)
        try:
            _fit(run, place, watcher)
        except NonFiniteError as error:
            if watcher.steps == 0:  # no training that broke off, but one that cannot begin
                raise
            return Result.of(run, watcher.seconds, {}, error=str(error).splitlines()[0])
        metrics = _measure(run, place)
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    # The task's own values; a distance between distributions may well be infinite.
    broken = [name for name in metrics if name not in finite and "/codebook/" not in name]
    if broken:
        return Result.of(run, watcher.seconds, {}, error=f"{broken[0]} is not finite")
    return Result.of(run, watcher.seconds, finite)


def words(run: Run, place: Path) -> list[str]:
    """The command line behind the subcommand."""
    options = [("--config", yaml.safe_dump(dict(overlay), sort_keys=False)) for overlay in run.overlays]
    options += [("--seed_everything", str(run.seed)), ("--data.init_args.seed", str(run.seed))]
    options += [] if run.source is None else [("--data.init_args.source", run.source)]
    options += [(f"--{name}", folder) for name, (folder, _) in run.upon.items()]
    options += [("--runs", str(place.parent)), ("--name", place.name)]
    return [word for option in options for word in option]


def discard_checkpoints(place: Path) -> None:
    """Removes those of a run whose result is written."""
    for name in CHECKPOINTS:
        (place / name).unlink(missing_ok=True)


class Check(TrainingCLI):
    """Reads configurations as `train` will, refuses what is misspelt as the command line does, and builds nothing."""

    def __init__(self) -> None:
        super().__init__(["fit"], "run", "")

    def __call__(self, run: Run, place: Path) -> None:
        with quiet():
            self.parser.parse_args(["fit", *words(run, place)])

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = Namespace(subcommand=None, seed_everything=False)

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


def _fit(run: Run, place: Path, watcher: "_Watcher") -> None:
    last, options = place / CHECKPOINTS[0], words(run, place)
    if last.is_file() and _owner(place) == run.settings:
        try:
            read_checkpoint(last, "reproduce")
        except ValueError as error:
            way_out = f"Remove the folder {str(place)!r}, and the same command makes this run anew"
            raise InvalidValueError(f"{error} {way_out}; finished runs are intact.") from error.__cause__
        options += ["--ckpt_path", str(last)]
    else:
        shutil.rmtree(place, ignore_errors=True)
    _RunCLI(["fit", *options], f"a run of `straightvq reproduce`: {run.title}", watcher)


def _owner(place: Path) -> str | None:
    """Fingerprint of the run whose checkpoints are in a folder."""
    try:
        content = json.loads((place / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("settings") if isinstance(content, dict) else None


def _measure(run: Run, place: Path) -> dict[str, float]:
    command, stage = ("test", "test/") if run.kind == FINAL else ("validate", "val/")
    options = ["--ckpt_path", str(place / CHECKPOINTS[0]), "--verbose", "false", "--trainer.logger", "false"]
    cli = _RunCLI([command, *words(run, place), *options], "", None)
    if run.kind == FINAL and isinstance(cli.model, Generation):
        generate(place, Sampling(num=SAMPLES), console=Console(quiet=True))
    return {name: float(v) for name, v in cli.trainer.callback_metrics.items() if name.startswith(stage)}


class _RunCLI(TrainingCLI):
    """The command line, with the study's display in place of Lightning's own."""

    def __init__(self, args: list[str], command: str, watcher: "_Watcher | None") -> None:
        self.watcher = watcher
        super().__init__(args, "run", command)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        trainer = super().instantiate_trainer(enable_progress_bar=False, **kwargs)
        if self.watcher is not None:
            # Before the callbacks that save, so that the clock is read when they do.
            # Lightning gives the trainer this list where no type checker sees it.
            cast(Any, trainer).callbacks.insert(0, self.watcher)
        return trainer


class _Watcher(Callback):
    """Counts the seconds of training, over interruptions, reports the step, and leaves word whose folder it is."""

    def __init__(self, run: Run, place: Path, show: Show | None) -> None:
        self.run, self.place, self.show = run, place, show
        self.seconds, self.steps, self.total, self._start = 0.0, 0, 0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        write_text(self.place / OWNER, json.dumps({"run": self.run.title, "settings": self.run.settings}) + "\n")
        total = trainer.estimated_stepping_batches
        self.total = int(total) if math.isfinite(total) else 0
        self._start = time.perf_counter() - self.seconds

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.steps, self.seconds = trainer.global_step, time.perf_counter() - self._start
        if self.show is not None:
            self.show(self.steps, self.total)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._start

    # Beside the callbacks' states: whoever loads the checkpoint without this callback is not asked for it.
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["study_seconds"] = self.seconds

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint["study_seconds"]
