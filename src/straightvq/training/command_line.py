"""The training commands: Lightning's command line with recipes, run folders, checkpoints and logs of ours."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor

import straightvq
from straightvq import checkpoints
from straightvq.checkpoints import BEST, KEPT, LAST, STEP
from straightvq.configuration import deny_foreign_code, explained, trees_of
from straightvq.errors import InvalidValueError
from straightvq.hub.states import differences
from straightvq.io import replacing, write_text
from straightvq.recipes import resolve
from straightvq.runs import CONFIG, LOGS, MetricsLog, run_directory
from straightvq.training.finite import StopOnNonFinite
from straightvq.training.monitor import CodebookMonitor
from straightvq.training.resume import ExactResume

PREDICTIONS = "predictions.safetensors"


class TrainingCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` from YAML and command-line options.

    A run lives in ``<runs>/<name>``: ``config.yaml``, ``best.ckpt``, ``last.ckpt``, TensorBoard's files,
    ``metrics/version_*/metrics.csv``, and with ``--keep_every`` the folder ``checkpoints``. Training again without
    ``--ckpt_path`` takes a new folder, ``<name>-2`` and so on; ``--ckpt_path last`` and ``best`` mean those of the
    newest.

    Args:
        args: command line, the subcommand first.
        default_name: name of the run without ``--name``.
        command: what the user typed, for the header of the saved configuration.

    Raises:
        ValueError: for a mistake in a configuration or an option, and for a checkpoint that does not fit.
    """

    def __init__(self, args: list[str], default_name: str, command: str) -> None:
        self.default_name = default_name
        self.commands: list[LightningArgumentParser] = []
        deny_foreign_code()
        versions = f"torch=={torch.__version__} lightning=={lightning.__version__}"
        header = [f"straightvq=={straightvq.__version__} {versions}", command]
        kwargs: dict[str, Any] = {"exit_on_error": False, "dump_header": header}
        kinds = lightning.LightningModule, lightning.LightningDataModule
        try:
            super().__init__(
                *kinds,
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=args,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                # The configuration in a run's folder is that of its training.
                save_config_callback=_SavedConfig if args[0] == "fit" else None,
                trainer_defaults={"callbacks": [ExactResume()]},
                parser_kwargs={**kwargs, **{command: dict(kwargs) for command in self.subcommands()}},
            )
        except RuntimeError as error:
            self._explain_other_network(error)
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        options: list[tuple[str, Any, Any, str]] = [
            ("--name", str | None, None, "name of the run (default: the recipe's)"),
            ("--runs", str, "runs", "folder of all runs"),
            ("--base", str | list[str] | None, None, "in a file: what it lies on"),
            ("--save_every", int, 500, f"steps between two writes of {LAST}.ckpt"),
            ("--keep_every", int | None, None, "steps between checkpoints that all stay, for `straightvq analyze`"),
            ("--stop_on_non_finite", bool, True, "stop when the loss, a gradient or a weight is NaN or infinite"),
        ]
        self.commands.append(parser)
        for name, kind, default, text in options:
            parser.add_argument(name, type=kind, default=default, help=text)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(CodebookMonitor, "monitor")
        best = {"filename": BEST, "monitor": "val/mse", "mode": "min", "enable_version_counter": False}
        parser.set_defaults({f"checkpoint.{name}": value for name, value in best.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses ``args`` and nothing else; Lightning would warn of what ``sys.argv`` holds."""
        if any(word.partition("=")[0] == "--base" for word in args):
            raise InvalidValueError("`--base` belongs in a recipe; on the command line, pass --config for each recipe.")
        words = resolve(args)
        own = (name for command in self.commands for name, _ in command.get_defaults().items())
        with explained(*trees_of(words), options=own):
            self.config = parser.parse_args(words)
        config = self.config[self.config["subcommand"]]
        # Lightning would take settings over from a checkpoint that may be damaged.
        self.ckpt_path, config["ckpt_path"] = config["ckpt_path"], None

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        config["name"], config["base"] = config["name"] or self.default_name, None
        is_new = self.subcommand == "fit" and self.ckpt_path is None
        self.directory = run_directory(Path(config["runs"]), config["name"], is_new=is_new)
        if config["weights_only"] is False:
            raise InvalidValueError("`weights_only` must be true: otherwise a checkpoint may run any code. Got false.")
        config["weights_only"] = True
        if not is_new:
            self.ckpt_path = config["ckpt_path"] = str(self._checkpoint_to_read())
        checkpoint = config["checkpoint"]
        if checkpoint["dirpath"] is None:
            checkpoint["dirpath"] = str(self.directory)
        if checkpoint["save_on_train_epoch_end"] is None and str(checkpoint["monitor"]).startswith("val/"):
            # Lightning may wait for the end of the epoch, which comes behind last.ckpt.
            checkpoint["save_on_train_epoch_end"] = False

    def _checkpoint_to_read(self) -> Path:
        """The file of ``--ckpt_path``. Refuses a bad one before anything is built, and names a sound one."""
        given = self.ckpt_path
        if given is None:
            raise InvalidValueError(
                f"`straightvq {self.subcommand}` needs a trained model: --ckpt_path {BEST}, {LAST} or a file."
            )
        is_name = given in (BEST, LAST)
        file = checkpoints.checkpoint_file(self.directory, given) if is_name else Path(given)
        if not file.is_file():
            hint = " Train first, or pass a file or --name." if is_name else ""
            raise InvalidValueError(f"`--ckpt_path {given}`: there is no file {str(file)!r}.{hint}")
        try:
            checkpoints.read_checkpoint(file, "--ckpt_path")
        except InvalidValueError as error:
            way_out = "There is no other one beside it: leave --ckpt_path out to train anew"
            if other := checkpoints.find_sound(file.parent, other_than=file):
                way_out = f"Pass --ckpt_path {other.path}, the newest sound one there (step {other.step})"
            raise InvalidValueError(f"{error} {way_out}.") from error.__cause__
        return file

    def _explain_other_network(self, error: RuntimeError) -> None:
        """Says in what the checkpoint is another network's, where torch could not load it."""
        path, model = getattr(self, "ckpt_path", None), getattr(self, "model", None)
        if path is None or model is None:
            return
        if found := differences(model, checkpoints.read_checkpoint(Path(path), "--ckpt_path")["state_dict"]):
            raise InvalidValueError(
                f"`--ckpt_path`: {path!r} is of another network than the configuration describes: it {found}. Leave "
                "out the options that change the network, or train anew without --ckpt_path."
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        options = self.config_init[self.subcommand]["trainer"]
        if options["logger"] in (None, True):
            board = TensorBoardLogger(self.directory.parent, name=self.directory.name, version="")
            kwargs["logger"] = [board, MetricsLog(self.directory, name=LOGS)]
        if options["enable_model_summary"] is None:
            kwargs["enable_model_summary"] = False
        plugins = _as_list(options["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, checkpoints.WholeFiles()]
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        if not any(isinstance(part, ProgressBar) for part in _as_list(options["callbacks"])):
            callbacks[:] = [RunBar() if type(part) is RichProgressBar else part for part in callbacks]
        if self.subcommand == "fit":
            callbacks[:] = self._in_order(callbacks)
        return trainer

    def _in_order(self, callbacks: list[Callback]) -> list[Callback]:
        """All callbacks of a training. Their order is a law: at the end of a step Lightning calls one after another."""
        options = self.config_init["fit"]
        every, kept = options["save_every"], options["keep_every"]
        last, step = (checkpoints.checkpoint_file(self.directory, name) for name in (LAST, f"{KEPT}/{STEP}"))
        # A checkpoint holds the state of all that measures, logs and remembers. `StopOnNonFinite` guards what is
        # written. The last checkpoint stands behind all others: a resumed run repeats nothing of its step.
        return [
            *(part for part in callbacks if not isinstance(part, Checkpoint)),
            *([StopOnNonFinite()] if options["stop_on_non_finite"] else []),
            *(part for part in callbacks if isinstance(part, Checkpoint)),
            *([] if kept is None else [checkpoints.StepCheckpoint(step, kept)]),
            checkpoints.LastCheckpoint(last, every),
        ]

    def predict(self, **kwargs: Any) -> None:
        """Writes ``predictions.safetensors`` into the run's folder. Several processes raise a ValueError."""
        if self.trainer.world_size > 1:
            how = f"pass --trainer.devices 1. Got {self.trainer.world_size} processes."
            raise InvalidValueError(f"`straightvq predict` writes one file from one process: {how}")
        batches = cast(list[dict[str, Tensor]], self.trainer.predict(**{**kwargs, "return_predictions": True}))
        if batches:
            from safetensors.torch import save_file

            tensors = {name: torch.cat([batch[name] for batch in batches]).contiguous() for name in batches[0]}
            with replacing(self.directory / PREDICTIONS) as unfinished:
                save_file(tensors, unfinished)

    def summary(self) -> str:
        """The values of the last validation or test, and the run's files; empty on all ranks but the first."""
        if not self.trainer.is_global_zero:
            return ""
        stage = "test/" if self.subcommand == "test" else "val/"
        values = "" if self.subcommand == "predict" else _values(self.trainer.callback_metrics, stage)
        if self.subcommand in ("validate", "test"):
            return f"{self.ckpt_path}: {values}\n"
        files = sorted(item.name for item in self.directory.glob("*") if not item.name.startswith("events."))
        last = f"Last validation: {values}\n" if values else ""
        return f"{last}{self.directory}{os.sep}: {', '.join(files)}\n"


class _SavedConfig(SaveConfigCallback):
    """Writes the configuration when the training begins, so that a refused one leaves the run's as it is."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None: ...

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = trainer.log_dir  # all ranks ask
        if trainer.is_global_zero and folder is not None:
            write_text(Path(folder) / CONFIG, self.parser.dump(self.config, skip_none=False))


class RunBar(RichProgressBar):
    """Lightning's progress bar with the values of the training; those of a validation are a line above it."""

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num" and not name.startswith("val/")}

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._name_epoch(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        self._name_epoch(trainer)  # a training that is resumed within an epoch has not started one

    def _name_epoch(self, trainer: lightning.Trainer) -> None:
        """Without ``max_epochs`` Lightning would name a last epoch, -2."""
        if self.progress is not None and self.train_progress_bar_id is not None and trainer.max_epochs == -1:
            name = f"Epoch {trainer.current_epoch}".ljust(len(self.validation_description))
            self.progress.update(self.train_progress_bar_id, description=name)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        values = _values(trainer.progress_bar_metrics, "val/")
        if self.progress is not None and values and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.progress.console.print(f"Step {trainer.global_step}: {values}", highlight=False, markup=False)


def _values(metrics: Mapping[str, Any], stage: str) -> str:
    """Names and values of one stage, without those of the monitor."""
    own = {name: float(value) for name, value in metrics.items() if name.startswith(stage) and name.count("/") == 1}
    return ", ".join(f"{name} {value:.4g}" for name, value in own.items())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


# Warnings of Lightning's that a user of these commands can neither act on nor learn from.
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
    """Shows each warning once, as one line without its place, and nothing else of Lightning's."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers], warnings.formatwarning
    said: set[str] = set()

    def line(message: Warning | str, *_: Any, **__: Any) -> str:
        text = f"warning: {message}\n"
        is_new = text not in said
        said.add(text)
        return text if is_new else ""

    try:
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=message)
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            warnings.formatwarning = line
            yield
    finally:
        levels, warnings.formatwarning = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
