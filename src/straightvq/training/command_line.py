"""The training commands: Lightning's command line with run folders, checkpoints and recipes of ours."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor

import straightvq
from straightvq.errors import InvalidValueError
from straightvq.runs import deny_foreign_code, differences, find_sound, read_checkpoint
from straightvq.training.bar import RunBar
from straightvq.training.finite import StopOnNonFinite
from straightvq.training.log import MetricsLog
from straightvq.training.monitor import CodebookMonitor
from straightvq.training.resume import ExactResume, KeptCheckpoints, LastCheckpoint, WholeFiles

__all__ = ["TrainingCLI", "quiet", "run_directory"]

PREDICTIONS = "predictions.safetensors"


class TrainingCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` from YAML and command-line options.

    A run lives in ``<runs>/<name>``: ``config.yaml``, ``best.ckpt``, ``last.ckpt``, TensorBoard's files,
    ``metrics/version_*/metrics.csv``, and with ``--keep_every`` the folder ``checkpoints``. Training again without
    ``--ckpt_path`` takes a new folder, ``<name>-2`` and so on. ``--ckpt_path last`` and ``best`` mean those of the
    newest run of that name.

    Args:
        args: command line, the subcommand first.
        default_name: name of the run if ``--name`` is not given.
        command: what the user typed, for the header of the saved configuration.
    """

    def __init__(self, args: list[str], default_name: str, command: str) -> None:
        self.default_name = default_name
        deny_foreign_code()
        # Errors come back as exceptions, so that the caller can shorten them; a saved configuration says what made it.
        kwargs: dict[str, Any] = {"exit_on_error": False, "dump_header": _header(command)}
        super().__init__(
            lightning.LightningModule,
            lightning.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # The configuration in a run's folder is that of its training.
            save_config_callback=_SavedConfig if args[0] == "fit" else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [ExactResume()]},
            parser_kwargs={**kwargs, **{command: dict(kwargs) for command in self.subcommands()}},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="of the run; default: that of the recipe")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--save_every", type=int, default=500, help="steps between two writes of last.ckpt")
        parser.add_argument(
            "--keep_every",
            type=int | None,
            default=None,
            help="steps between checkpoints that are all kept, in checkpoints/, for `straightvq analyze`",
        )
        parser.add_argument(
            "--stop_on_non_finite",
            type=bool,
            default=True,
            help="stop the training when the loss, a gradient or a weight is NaN or infinite",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(CodebookMonitor, "monitor")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/mse",
                "checkpoint.mode": "min",
                "checkpoint.enable_version_counter": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses ``args`` and nothing else; Lightning would warn of what ``sys.argv`` holds."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Lightning's would take settings over from the checkpoint, before anybody has looked whether it is sound."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        config["name"] = config["name"] or self.default_name
        ckpt = config.get("ckpt_path")
        is_new = self.subcommand == "fit" and ckpt is None
        self.directory = run_directory(Path(config["runs"]), config["name"], is_new=is_new)
        if ckpt in ("last", "best"):
            file = self.directory / f"{ckpt}.ckpt"
            if not file.is_file():
                raise InvalidValueError(
                    f"`--ckpt_path {ckpt}`: there is no {file}. Train first, or pass a file or --name."
                )
            config["ckpt_path"] = str(file)
        elif ckpt is not None and not Path(ckpt).is_file():
            raise InvalidValueError(f"`--ckpt_path`: there is no file {ckpt!r}.")
        elif ckpt is None and not is_new:
            raise InvalidValueError(
                f"`straightvq {self.subcommand}` needs a trained model: --ckpt_path best, last or a file."
            )
        if config["weights_only"] is False:
            raise InvalidValueError(
                "`weights_only` must be true: a checkpoint that is loaded otherwise may run any code. Got false."
            )
        config["weights_only"] = True
        if config["ckpt_path"] is not None:
            self._check_checkpoint(Path(config["ckpt_path"]))
        checkpoint = config["checkpoint"]
        if checkpoint["dirpath"] is None:
            checkpoint["dirpath"] = str(self.directory)
        if checkpoint["save_on_train_epoch_end"] is None and str(checkpoint["monitor"]).startswith("val/"):
            # Lightning may wait for the end of the epoch, which comes behind last.ckpt.
            checkpoint["save_on_train_epoch_end"] = False

    def _check_checkpoint(self, file: Path) -> None:
        """Refuses a damaged or unsafe file before anything is built, and names the newest one that can be used."""
        try:
            read_checkpoint(file, "--ckpt_path")
        except ValueError as error:
            other = find_sound(file.parent, other_than=file)
            way_out = (
                f"Pass --ckpt_path {other.path}, the newest sound one there (step {other.step})"
                if other
                else "There is no other one beside it: leave --ckpt_path out to train anew"
            )
            raise InvalidValueError(f"{error} {way_out}.") from error.__cause__

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        options = self.config_init[self.subcommand]["trainer"]
        if options["logger"] in (None, True):
            board = TensorBoardLogger(self.directory.parent, name=self.directory.name, version="")
            kwargs["logger"] = [board, MetricsLog(self.directory, name="metrics")]
        if options["enable_model_summary"] is None:
            kwargs["enable_model_summary"] = False
        plugins = options["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, WholeFiles()]
        trainer = super().instantiate_trainer(**kwargs)
        callbacks = cast(Any, trainer).callbacks
        own = options["callbacks"] or []
        if not any(isinstance(part, ProgressBar) for part in (own if isinstance(own, list) else [own])):
            callbacks[:] = [RunBar() if type(part) is RichProgressBar else part for part in callbacks]
        if self.subcommand == "fit":
            options = self.config_init["fit"]
            if options["stop_on_non_finite"]:
                callbacks.append(StopOnNonFinite())
            if options["keep_every"] is not None:
                callbacks.append(KeptCheckpoints(self.directory / "checkpoints", options["keep_every"]))
            callbacks.append(LastCheckpoint(self.directory / "last.ckpt", options["save_every"]))  # behind all others
        return trainer

    def summary(self) -> str:
        """What there is now and where, for the terminal; empty on all ranks but the first."""
        if not self.trainer.is_global_zero or self.subcommand in ("validate", "test"):  # these show a table
            return ""
        files = sorted(item.name for item in self.directory.glob("*") if not item.name.startswith("events."))
        return f"{self.directory}{os.sep}: {', '.join(files)}\n"

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            path = self.config[subcommand]["ckpt_path"]
            found = path and differences(self.model, read_checkpoint(Path(path), "--ckpt_path")["state_dict"])
            if not found:
                raise
            raise InvalidValueError(
                f"`--ckpt_path`: {path!r} is of another network than the configuration describes: it {found}. Leave "
                "out the options that change the network, or train anew without --ckpt_path."
            ) from error

    def predict(self, **kwargs: Any) -> None:
        """Runs the prediction and writes ``predictions.safetensors`` into the run's folder.

        Raises:
            ValueError: on several processes, each of which would have a part of the predictions only.
        """
        if self.trainer.world_size > 1:
            raise InvalidValueError(
                "`straightvq predict` writes one file from one process: pass --trainer.devices 1. "
                f"Got {self.trainer.world_size} processes."
            )
        batches = self.trainer.predict(**{**kwargs, "return_predictions": True})
        if not self.trainer.is_global_zero or not batches:
            return
        from safetensors.torch import save_file

        names = cast(dict[str, Tensor], batches[0])
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.cat([cast(dict[str, Tensor], batch)[name] for batch in batches]) for name in names}
        save_file({name: value.contiguous() for name, value in tensors.items()}, self.directory / PREDICTIONS)


class _SavedConfig(SaveConfigCallback):
    """Writes the configuration when the training begins: one that is refused leaves that of the run as it is."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None: ...

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


def _header(command: str) -> list[str]:
    return [
        f"straightvq=={straightvq.__version__} torch=={torch.__version__} lightning=={lightning.__version__}",
        command,
    ]


def run_directory(runs: Path, name: str, *, is_new: bool) -> Path:
    """``runs/name`` or its newest successor ``runs/name-2``, ...; with ``is_new`` the next one that is free.

    Example:
        >>> run_directory(Path("nowhere"), "photos", is_new=True).name
        'photos'
    """
    newest, number = runs / name, 1
    taken = newest.exists()
    while (runs / f"{name}-{number + 1}").exists():
        number, taken = number + 1, True
        newest = runs / f"{name}-{number}"
    return runs / f"{name}-{number + 1}" if is_new and taken else newest


# What Lightning warns of and a user of these commands can neither act on nor learn from.
_NOISE = (
    "The '.*' does not have many workers",  # the sets are in memory: no workers is best
    "The number of training batches .* is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",  # resuming
    "Experiment logs directory .* exists and is not empty",
    "Total length of `list` across ranks is zero",  # a set without validation
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While it lasts Lightning announces neither hardware, nor tips, nor products; real warnings still show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=message)
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
