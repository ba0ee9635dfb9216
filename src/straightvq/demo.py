"""`straightvq demo`: plain VQ and our recommendation, trained alike on two photographs, side by side."""

import csv
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from straightvq import VectorQuantizer, presets
from straightvq.data import Images
from straightvq.diagnostics import Arm, comparison, save, usage_counts
from straightvq.models import Autoencoder
from straightvq.nn.part import check_int
from straightvq.training.base import OptimizerSettings
from straightvq.training.command_line import quiet
from straightvq.training.monitor import CodebookMonitor, CodebookWarning
from straightvq.training.reconstruction import Reconstruction

Preset = Callable[..., VectorQuantizer]

# Name in the pictures, name of the checkpoint, and what makes the quantizer.
ARMS: tuple[tuple[str, str, Preset], ...] = (
    ("plain VQ", "plain", presets.vq_vae),
    ("straight", "straight", presets.straight),
)
COLUMNS = ["arm", "split", "step", "loss", "mse", "psnr", "usage", "codes_used", "perplexity"]
COLUMNS += ["quantization_error", "seconds"]
# Columns, and what the callback and the test call their values.
READ = {"usage": "usage", "perplexity": "perplexity", "quantization_error": "error"}
TESTED = {"mse": "mse", "psnr": "psnr", "usage": "codebook/usage", "codes_used": "codes_used"}
TESTED |= {"perplexity": "perplexity", "quantization_error": "codebook/error"}
SHOWN = 10  # images in the picture

FILES = """\
  {0}comparison.png: originals, reconstructions, usage over time, both codebooks
  {0}metrics.csv: losses and usage over training, test values
  {0}plain.ckpt, straight.ckpt: the trained models
Next:
  straightvq fit --config photos                    train ours for longer, with validation and TensorBoard
  straightvq fit --config photos --config ema       the same with an EMA codebook
  straightvq fit --config folder --data.source DIR  your own images"""


@dataclass(frozen=True)
class DemoSettings:
    """The settings of both arms; network and task are those of the recipe `photos`.

    Args:
        steps: optimizer steps of each arm, at least 2.
        codebook_size: codes of each arm, at least 2.
        dim: channels of the latent.
        hidden: channels inside the network.
        size: side of a crop in pixels, at most 128.
        batch_size: crops per step.
        lr: peak learning rate of the network and of codes trained by gradient.
        num_train: training crops, validation included.
        num_test: test crops, from another region of the photographs.
        window: steps over which usage in training is counted.
        seed: random seed of weights, codes, crops and order, the same for both arms.
    """

    steps: int = 500
    codebook_size: int = 512
    dim: int = 32
    hidden: int = 48
    size: int = 32
    batch_size: int = 64
    lr: float = 3e-3
    num_train: int = 8192
    num_test: int = 512
    window: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 2), ("codebook_size", 2), ("window", 1), ("seed", 0)):
            check_int(self, name, getattr(self, name), least)


@dataclass(frozen=True)
class ArmResult:
    """One trained arm: its place in the picture, its seconds of training, and its rows of ``metrics.csv``."""

    arm: Arm
    seconds: float
    rows: list[dict[str, Any]]


def run_demo(out: Path, settings: DemoSettings | None = None, console: Console | None = None) -> list[ArmResult]:
    """Trains both arms, writes checkpoints, metrics and the picture into ``out``, and shows a table on the console.

    Makes the folder, and replaces the files of an earlier demo. Returns one result per arm, the baseline first.
    """
    settings, console = settings or DemoSettings(), console or Console()
    out.mkdir(parents=True, exist_ok=True)
    console.print(
        f"Two quantizers with {settings.codebook_size} codes of {settings.dim} channels in the same autoencoder, "
        f"{settings.steps} steps each on crops of two photographs, seed {settings.seed}."
    )
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[loss]}"))
    with quiet(), warnings.catch_warnings(), Progress(*columns, console=console) as progress:
        warnings.simplefilter("ignore", CodebookWarning)  # a collapsing baseline is what the demo is about
        demo = _Demo(settings, out, progress)
        results = [demo.run(*arm) for arm in ARMS]
    with (out / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(row for result in results for row in result.rows)
    save(comparison(demo.images[demo.shown], [result.arm for result in results]), out / "comparison.png")
    console.print(_table(results))
    console.print(FILES.format(f"{out}{os.sep}"), soft_wrap=True, highlight=False, markup=False)
    return results


class _Demo:
    """What the arms share."""

    def __init__(self, settings: DemoSettings, out: Path, progress: Progress) -> None:
        self.settings, self.out, self.progress = settings, out, progress
        sizes = settings.size, settings.batch_size, settings.num_train, settings.num_test
        self.data = Images("photos", *sizes, seed=settings.seed, flip=True)
        self.data.setup("test")
        batches = [self.data.on_after_batch_transfer(batch, 0) for batch in self.data.test_dataloader()]
        self.images = torch.cat([batch["image"] for batch in batches])
        # The picture shows the busier half, in even steps: most of the others are bare sky or blur.
        order = self.images.flatten(1).std(1).argsort()
        self.shown = order[torch.linspace(len(order) // 2, len(order) - 1, min(SHOWN, len(order))).long()]

    def run(self, name: str, file: str, preset: Preset) -> ArmResult:
        """Trains and measures one arm, and saves its checkpoint."""
        settings = self.settings
        # Seeded twice: the networks start alike, however many numbers the quantizer draws for its codes.
        torch.manual_seed(settings.seed)
        quantizer = preset(settings.dim, settings.codebook_size, channel_dim=1)
        torch.manual_seed(settings.seed)
        model = Autoencoder(quantizer, hidden=settings.hidden)
        task = Reconstruction(model, optimizer=OptimizerSettings(lr=settings.lr, warmup_steps=50), loss_weight=16.0)
        monitor = CodebookMonitor(every_n_steps=settings.window, pictures_every=0)
        watch = _Watch(name, settings, monitor, self.progress)
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=settings.steps, max_epochs=-1, limit_val_batches=0, callbacks=[monitor, watch],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(task, datamodule=self.data)
        trainer.save_checkpoint(self.out / f"{file}.ckpt")
        (measured,) = trainer.test(task, datamodule=self.data, verbose=False)
        test = {column: measured[f"test/{value}"] for column, value in TESTED.items()}
        test["codes_used"] = int(test["codes_used"])
        last = _row(name, "test", settings.steps, watch.seconds, **test)
        windows = [row for row in watch.rows if "usage" in row]
        return ArmResult(self._arm(model.eval(), windows, last), watch.seconds, [*watch.rows, last])

    @torch.no_grad()
    def _arm(self, model: Autoencoder, windows: list[dict[str, Any]], test: dict[str, Any]) -> Arm:
        """Reconstructions, vectors and counts for the picture come from a pass over the test images."""
        parts = [model(batch) for batch in self.images.split(128)]
        quantizer = cast(VectorQuantizer, model.quantizer)
        return Arm(
            name=test["arm"],
            reconstructions=torch.cat([part.reconstruction for part in parts])[self.shown],
            usage_steps=[row["step"] for row in windows],
            usage_values=[row["usage"] for row in windows],
            # In the codebook's space, beside the codes.
            z=quantizer.transform(torch.cat([part.z for part in parts]).movedim(1, -1).flatten(0, -2)),
            codes=quantizer.codes(),
            counts=usage_counts(torch.cat([part.quantizer.indices for part in parts]), quantizer.codebook_size),
            test_mse=test["mse"],
            psnr=test["psnr"],
            codes_used=test["codes_used"],
            perplexity=test["perplexity"],
        )


class _Watch(lightning.Callback):
    """Shows the progress of one arm and keeps the rows of its training; comes after its monitor."""

    def __init__(self, name: str, settings: DemoSettings, monitor: CodebookMonitor, progress: Progress) -> None:
        self.name, self.window, self.monitor, self.progress = name, settings.window, monitor, progress
        self.bar = progress.add_task(name, total=settings.steps, loss="")
        self.rows: list[dict[str, Any]] = []
        self.seconds = self._started = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        self.seconds = time.perf_counter() - self._started
        self.progress.update(self.bar, completed=step)
        if step % self.window and step < trainer.max_steps:
            return
        loss, mse = (trainer.callback_metrics[f"train/{name}"].item() for name in ("loss", "reconstruction"))
        self.progress.update(self.bar, loss=f"pixel error {mse:.4f}")
        # A last window that is not full has no reading.
        reading = {} if step % self.window else self.monitor.history[-1]
        values = {column: reading[name] for column, name in READ.items() if name in reading}
        self.rows.append(_row(self.name, "train", step, self.seconds, loss=loss, mse=mse, **values))


def _row(arm: str, split: str, step: int, seconds: float, **values: float) -> dict[str, Any]:
    return {"arm": arm, "split": split, "step": step, **values, "seconds": round(seconds, 2)}


def _table(results: list[ArmResult]) -> Table:
    table = Table("", title="On the test region, which neither has seen")
    for heading in ("test MSE", "PSNR", "codes used", "perplexity", "training"):
        table.add_column(heading, justify="right")
    for result in results:
        arm = result.arm
        used = f"{arm.codes_used} of {len(arm.codes)}"
        values = f"{arm.test_mse:.5f}", f"{arm.psnr:.2f} dB", used, f"{arm.perplexity:.1f}", f"{result.seconds:.0f} s"
        table.add_row(arm.name, *values)
    return table
