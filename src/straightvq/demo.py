"""The demonstration: plain VQ and our recommendation, trained alike on two photographs, side by side."""

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from straightvq import VectorQuantizer, presets
from straightvq.data import Images
from straightvq.diagnostics import Arm, comparison, save, usage_counts
from straightvq.models import Autoencoder
from straightvq.nn.part import check_int
from straightvq.training.base import OptimizerSettings
from straightvq.training.command_line import quiet
from straightvq.training.monitor import CodebookMonitor, CodebookWarning
from straightvq.training.reconstruction import Reconstruction

__all__ = ["ARMS", "ArmResult", "DemoSettings", "run_demo"]

# Name in the pictures, name of the files, what makes the quantizer.
ARMS: tuple[tuple[str, str, Callable[..., VectorQuantizer]], ...] = (
    ("plain VQ", "plain", presets.vq_vae),
    ("straight", "straight", presets.straight),
)


@dataclass(frozen=True)
class DemoSettings:
    """What both arms have in common; network and task are those of the recipe `photos`.

    Args:
        steps: optimizer steps of each arm, at least 2.
        codebook_size: codes of each arm, at least 2.
        dim: channels of the latent.
        hidden: channels inside the network.
        size: pixels per side of a crop, at most 128.
        batch_size: crops per step.
        lr: peak learning rate of the network and of codes trained by gradient.
        num_train: training crops, validation included.
        num_test: test crops, from another region of the photographs.
        window: steps over which usage in training is counted.
        seed: of weights, codes, crops and order: the same for both arms.

    Example:
        >>> DemoSettings(steps=10).codebook_size
        512
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
    """One trained arm, measured on the test region."""

    arm: Arm
    seconds: float
    """Of training alone."""
    rows: list[dict[str, Any]]
    """Lines of ``metrics.csv``."""


def run_demo(out: Path, settings: DemoSettings | None = None, console: Console | None = None) -> list[ArmResult]:
    """Trains both arms, writes checkpoints, metrics and the picture into ``out``, and shows a table.

    Args:
        out: folder of the results; made if missing, files of an earlier demo are overwritten.
        settings: of both arms; default ``DemoSettings()``.
        console: where progress and table go; default the terminal.

    Returns:
        One result per arm, the baseline first.
    """
    settings = settings or DemoSettings()
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    console.print(
        f"Two quantizers with {settings.codebook_size} codes of {settings.dim} channels in the same autoencoder, "
        f"{settings.steps} steps each on crops of two photographs, seed {settings.seed}."
    )
    data = _data(settings)
    originals = _test_images(data)
    with quiet(), warnings.catch_warnings(), _progress(console) as progress:
        warnings.simplefilter("ignore", CodebookWarning)  # a collapsing baseline is what the demo is about
        results = [_run_arm(*arm, settings, data, originals, out, progress) for arm in ARMS]
    _write_metrics(out / "metrics.csv", results)
    save(comparison(originals[_shown(originals)], [result.arm for result in results]), out / "comparison.png")
    console.print(_table(results))
    _point(console, out)
    return results


def _run_arm(
    name: str,
    file: str,
    preset: Callable[..., VectorQuantizer],
    settings: DemoSettings,
    data: Images,
    originals: Tensor,
    out: Path,
    progress: Progress,
) -> ArmResult:
    # Seeded twice: the networks start alike, however many numbers the quantizer draws for its codes.
    torch.manual_seed(settings.seed)
    quantizer = preset(settings.dim, settings.codebook_size, channel_dim=1)
    torch.manual_seed(settings.seed)
    model = Autoencoder(quantizer, hidden=settings.hidden)
    task = Reconstruction(model, optimizer=OptimizerSettings(lr=settings.lr, warmup_steps=50), loss_weight=16.0)
    monitor = CodebookMonitor(every_n_steps=settings.window, pictures_every=0)
    watch = _Watch(progress, name, settings)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=settings.steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, watch],
    )
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(out / f"{file}.ckpt")
    (measured,) = trainer.test(task, datamodule=data, verbose=False)
    rows = [*watch.merged(monitor.history), _test_row(name, settings.steps, measured, watch.seconds)]
    return ArmResult(_arm(name, model, originals, monitor.history, measured), watch.seconds, rows)


class _Watch(lightning.Callback):
    """Progress bar and losses of one arm; `seconds` is the time in training alone."""

    def __init__(self, progress: Progress, name: str, settings: DemoSettings) -> None:
        self.progress, self.name, self.window = progress, name, settings.window
        self.task = progress.add_task(name, total=settings.steps, loss="")
        self.losses: dict[int, dict[str, float]] = {}
        self.seconds = 0.0
        self._started = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        step = trainer.global_step
        self.seconds = time.perf_counter() - self._started
        if step % self.window == 0 or step == trainer.max_steps:
            values = {name: float(trainer.callback_metrics[f"train/{name}"]) for name in ("loss", "reconstruction")}
            self.losses[step] = {**values, "seconds": self.seconds}
            self.progress.update(self.task, loss=f"pixel error {values['reconstruction']:.4f}")
        self.progress.update(self.task, completed=step)

    def merged(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Losses and the monitor's windows, one line per step."""
        windows = {row["step"]: row for row in history if row["stage"] == "train"}
        return [
            {
                "arm": self.name,
                "split": "train",
                "step": step,
                "loss": values["loss"],
                "mse": values["reconstruction"],
                "usage": windows.get(step, {}).get("usage"),
                "perplexity": windows.get(step, {}).get("perplexity"),
                "quantization_error": windows.get(step, {}).get("error"),
                "seconds": round(values["seconds"], 2),
            }
            for step, values in self.losses.items()
        ]


def _test_row(name: str, step: int, measured: Any, seconds: float) -> dict[str, Any]:
    return {
        "arm": name,
        "split": "test",
        "step": step,
        "mse": measured["test/mse"],
        "psnr": measured["test/psnr"],
        "usage": measured["test/codebook/usage"],
        "codes_used": int(measured["test/codes_used"]),
        "perplexity": measured["test/perplexity"],
        "quantization_error": measured["test/codebook/error"],
        "seconds": round(seconds, 2),
    }


@torch.no_grad()
def _arm(name: str, model: Autoencoder, originals: Tensor, history: list[dict[str, Any]], measured: Any) -> Arm:
    """What the picture shows; codebook and counts from a pass over the test images."""
    model.eval()
    parts = [model(batch) for batch in originals.split(128)]
    quantizer = cast(VectorQuantizer, model.quantizer)
    z = torch.cat([part.z for part in parts]).movedim(1, -1).flatten(0, -2)
    indices = torch.cat([part.quantizer.indices for part in parts])
    windows = [row for row in history if row["stage"] == "train"]
    return Arm(
        name=name,
        reconstructions=torch.cat([part.reconstruction for part in parts])[_shown(originals)],
        usage_steps=[row["step"] for row in windows],
        usage_values=[row["usage"] for row in windows],
        z=quantizer.transform(z),  # in the codebook's space, beside the codes
        codes=quantizer.codes(),
        counts=usage_counts(indices, quantizer.codebook_size),
        test_mse=measured["test/mse"],
        psnr=measured["test/psnr"],
        codes_used=int(measured["test/codes_used"]),
        perplexity=measured["test/perplexity"],
    )


def _data(settings: DemoSettings) -> Images:
    return Images(
        source="photos",
        size=settings.size,
        batch_size=settings.batch_size,
        num_train=settings.num_train,
        num_test=settings.num_test,
        seed=settings.seed,
        flip=True,
    )


def _test_images(data: Images) -> Tensor:
    """All test crops, Float (n, 3, size, size), those in front from empty sky to dense leaves."""
    data.setup("test")
    images = torch.cat([data.on_after_batch_transfer(batch, 0)["image"] for batch in data.test_dataloader()])
    by_detail = images.flatten(1).var(1, unbiased=False).argsort(descending=True, stable=True)
    # Evenly spread over the more detailed three quarters: a row of clear sky shows nothing.
    front = by_detail[: max(1, 3 * len(images) // 4) : max(1, 3 * len(images) // 40)]
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[front] = False
    return torch.cat([images[front], images[rest]])


def _shown(originals: Tensor, count: int = 10) -> Tensor:
    """Indices of the images in the picture: the busier half, in even steps; most of the others are bare sky or blur."""
    order = originals.flatten(1).std(1).argsort()
    return order[torch.linspace(len(order) // 2, len(order) - 1, min(count, len(order))).long()]


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _write_metrics(path: Path, results: list[ArmResult]) -> None:
    fields = ["arm", "split", "step", "loss", "mse", "psnr", "usage", "codes_used", "perplexity"]
    fields += ["quantization_error", "seconds"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, restval="")
        writer.writeheader()
        for result in results:
            writer.writerows(result.rows)


def _table(results: list[ArmResult]) -> Table:
    table = Table(title="On the test region, which neither has seen")
    for number, heading in enumerate(("", "test MSE", "PSNR", "codes used", "perplexity", "training")):
        table.add_column(heading, justify="right" if number else "left")
    for result in results:
        arm = result.arm
        table.add_row(
            arm.name,
            f"{arm.test_mse:.5f}",
            f"{arm.psnr:.2f} dB",
            f"{arm.codes_used} of {len(arm.codes)}",
            f"{arm.perplexity:.1f}",
            f"{result.seconds:.0f} s",
        )
    return table


def _point(console: Console, out: Path) -> None:
    """Where everything is, and what to try next."""
    folder = f"{out}{os.sep}"
    for file, what in (
        ("comparison.png", "originals, reconstructions, usage over time, both codebooks"),
        ("metrics.csv", "losses and usage over training, test values"),
        ("plain.ckpt, straight.ckpt", "the trained models"),
    ):
        console.print(f"  {folder}{file}: {what}", soft_wrap=True, highlight=False)
    console.print("Next:", highlight=False)
    for command, what in (
        ("straightvq fit --config photos", "train ours for longer, with validation and TensorBoard"),
        ("straightvq fit --config photos --config ema", "the same with an EMA codebook"),
        ("straightvq fit --config folder --data.source DIR", "your own images"),
    ):
        console.print(f"  {command:<50}{what}", soft_wrap=True, highlight=False)
