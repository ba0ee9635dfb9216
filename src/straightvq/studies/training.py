"""One run of a study: `straightvq fit` with overlays, taken up where it was stopped, and measured."""

import gc
import hashlib
import math
import shlex
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from straightvq.errors import InvalidValueError, NonFiniteError
from straightvq.generation.generate import Sampling, generate
from straightvq.generation.task import Generation
from straightvq.io import write_text
from straightvq.runs import read_checkpoint
from straightvq.studies.results import Result
from straightvq.studies.run import FINAL, Run
from straightvq.training.command_line import TrainingCLI, quiet
from straightvq.training.monitor import CodebookWarning

__all__ = ["Check", "discard_checkpoints", "train"]

CHECKPOINTS = ("last.ckpt", "best.ckpt")
SAMPLES = 100  # drawn from a model of images
Show = Callable[[int, int], None]


def train(run: Run, place: Path, configs: Path, show: Show) -> Result:
    """Trains, or goes on from the last checkpoint, and measures; a model of images draws some, too.

    Args:
        run: what to train.
        place: its folder, made by the command line.
        configs: where the overlays are written, for this run and for people who repeat it.
        show: told the steps done and the steps planned.

    Returns:
        The result; of a training that broke off because its values were no longer finite, with an ``error``.
    """
    # A trainer and its callbacks refer to one another, so that the memory of the run before may still be held.
    gc.collect()
    words = _words(run, place, configs)
    watcher = _Watcher(show)
    with quiet(), warnings.catch_warnings():
        # A codebook that dies is a finding here, and is in the table.
        warnings.simplefilter("ignore", CodebookWarning)
        try:
            _fit(run, place, words, watcher)
        except NonFiniteError as error:
            if watcher.steps == 0:  # no training that broke off, but one that cannot begin
                raise
            return Result.of(run, watcher.seconds, {}, error=str(error).splitlines()[0])
        metrics = _measure(run, place, words)
    # The task's own values; a distance between distributions may well be infinite.
    broken = [name for name, value in metrics.items() if not math.isfinite(value) and "/codebook/" not in name]
    if broken:
        return Result.of(run, watcher.seconds, {}, error=f"{broken[0]} is not finite")
    return Result.of(run, watcher.seconds, {name: value for name, value in metrics.items() if math.isfinite(value)})


class Check:
    """Reads configurations as `train` will, and builds nothing."""

    def __init__(self) -> None:
        try:
            _ParserCLI(["fit"], "run", "")
        except _EndedError as ended:
            self._parser = ended.parser

    def __call__(self, run: Run, place: Path) -> None:
        """Refuses what is misspelt in the configuration of a run as the command line refuses it."""
        with quiet(), tempfile.TemporaryDirectory() as configs:
            self._parser.parse_args(["fit", *_words(run, place, Path(configs))])


class _EndedError(Exception):
    def __init__(self, parser: LightningArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class _ParserCLI(TrainingCLI):
    """Ends where the configuration would be read."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _EndedError(parser)


def discard_checkpoints(place: Path) -> None:
    """Removes those of a run whose result is written."""
    for name in CHECKPOINTS:
        (place / name).unlink(missing_ok=True)


def _words(run: Run, place: Path, configs: Path) -> list[str]:
    """The command line behind the subcommand."""
    words = []
    for name, overlay in run.overlays.items():
        content = yaml.safe_dump(overlay, sort_keys=False)
        # Names of two overlays may coincide, and another process may run another version of the study.
        file = configs / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}.yaml"
        write_text(file, content)
        words += ["--config", str(file)]
    return [*words, *run.options, "--runs", str(place.parent), "--name", place.name]


def _fit(run: Run, place: Path, words: list[str], watcher: "_Watcher") -> None:
    # The header of config.yaml tells whose checkpoint this is.
    command = f"{shlex.join(['straightvq', 'fit', *words])}  # settings {run.settings}"
    last = place / CHECKPOINTS[0]
    if last.is_file() and command.rpartition("#")[2] in _header(place):
        _refuse_damaged(last)
        words = [*words, "--ckpt_path", str(last)]
    else:
        shutil.rmtree(place, ignore_errors=True)
    _RunCLI(["fit", *words], command, watcher)


def _refuse_damaged(last: Path) -> None:
    try:
        read_checkpoint(last, "reproduce")
    except ValueError as error:
        raise InvalidValueError(
            f"{error} Remove the folder {str(last.parent)!r}, and the same command makes this run anew; finished runs "
            "are intact."
        ) from error.__cause__


def _header(place: Path) -> str:
    try:
        return "".join((place / "config.yaml").read_text(encoding="utf-8").splitlines(keepends=True)[:2])
    except OSError:
        return ""


def _measure(run: Run, place: Path, words: list[str]) -> dict[str, float]:
    command, stage = ("test", "test/") if run.kind == FINAL else ("validate", "val/")
    words = [*words, "--ckpt_path", str(place / CHECKPOINTS[0]), "--verbose", "false", "--trainer.logger", "false"]
    cli = _RunCLI([command, *words], "", None)
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
            trainer.callbacks.insert(0, self.watcher)  # type: ignore[attr-defined]
        return trainer


class _Watcher(Callback):
    """Counts the seconds of training, over interruptions, and reports the step."""

    def __init__(self, show: Show) -> None:
        self.show = show
        self.seconds = 0.0
        self.steps = 0
        self._total = 0
        self._since: float | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._total = int(total) if math.isfinite(total) else 0
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.steps = trainer.global_step
        self._read_clock()
        self.show(self.steps, self._total)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._read_clock()
        self._since = None

    def _read_clock(self) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now

    # Beside the callbacks' states: whoever loads the checkpoint without this callback is not asked for it.
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["study_seconds"] = self.seconds

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint["study_seconds"]
