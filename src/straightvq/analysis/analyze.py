"""Looking back at a run: what its checkpoints say of the quantizer, as numbers, pictures and one page of words."""

import datetime
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import straightvq
from straightvq.analysis.probe import STEP_OPTIONS, Probe, check_task, probe_batches
from straightvq.analysis.report import write_report
from straightvq.diagnostics import CurvePanel, Snapshot, curves_over_time, divergence_over_time, save, tsne_map
from straightvq.diagnostics.concerns import list_cures
from straightvq.errors import InvalidValueError
from straightvq.io import results_folder, write_text
from straightvq.nn import Quantizer
from straightvq.nn.part import check_int
from straightvq.runs import Checkpoint, RunFolder, load_weights, pick_device
from straightvq.training.command_line import quiet

__all__ = ["analyze"]

SEED = re.compile(r"seed\d+")
"""Folders of runs that differ in their random numbers only."""

# Of more checkpoints an even selection is taken: a picture holds no more curves than this.
MAX_CHECKPOINTS = 16
FILES = ("report.md", "analysis.json", "divergence.png", "tsne.png", "curves.png")


def analyze(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    num_images: int = 512,
    device: str = "auto",
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures the checkpoints of a run on a fixed part of the test split and writes the results.

    For each checkpoint: usage, perplexity, quantization error, distances between the distributions of embeddings and
    codes, gap of the straight-through gradient, and what the next step of the training does (which codes get a
    gradient, which move, how far the codebook lags behind the encoder). The task needs exactly one quantizer with a
    codebook, and the methods of `straightvq.training.HasHead`. The run itself is not changed.

    Writes ``analysis.json``, ``divergence.png``, ``tsne.png``, ``curves.png`` and ``report.md``; files of an earlier
    analysis are overwritten.

    Args:
        run: folder that `straightvq fit` made, with ``config.yaml`` and checkpoints.
        out: folder of the results; None takes ``analysis`` in ``run``.
        num_images: test examples to measure on, at least 1.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of the choice of vectors and of the t-SNE.
        console: where progress goes; default the terminal.

    Returns:
        What ``analysis.json`` holds.

    Raises:
        ValueError, TypeError: for values out of range; if `run` is no run's folder, has no readable checkpoint, or
            has one of another network; if the task has no quantizer or no head.
        OSError: if nothing can be written to `out`.
    """
    num_images, seed = check_int("analyze", "num_images", num_images, 1), check_int("analyze", "seed", seed, 0)
    place = pick_device("analyze", device, ("cpu", "cuda", "mps"))
    console = console or Console()
    folder = RunFolder(Path(run))
    target = folder.folder / "analysis" if out is None else Path(out)
    chosen = _select(folder.checkpoints)
    with results_folder(target), quiet(), _progress(console) as progress:
        bar = progress.add_task("data", total=len(chosen) + 1)
        task, data = folder.build()
        check_task(task)
        if not getattr(task, "quantize", True):
            raise InvalidValueError(
                f"`analyze`: {str(folder.folder)!r} was trained with `quantize: false`: there is no quantization to "
                "look at."
            )
        task.to(place)
        probe = Probe(probe_batches(data, num_images, place), seed)
        options = _step_options(folder.config, place)
        measured, snapshots = [], []
        for checkpoint in chosen:
            progress.update(bar, description=f"step {checkpoint.step:,}")
            load_weights(task, checkpoint)
            values, snapshot = probe.measure(task, checkpoint.step)
            values |= probe.train_on(task, data, checkpoint, options)
            measured.append({"step": checkpoint.step, "names": list(checkpoint.names), "values": values})
            snapshots.append(snapshot)
            progress.advance(bar)
        progress.update(bar, description="pictures")
        settings = {
            "images": probe.size,
            "vectors": int(snapshots[-1].counts.sum()),
            "seed": seed,
            "device": str(place),
        }
        result = _result(folder, task, settings, measured)
        _write(target, result, folder, snapshots)
        progress.advance(bar)
    for name in FILES:
        console.print(f"  {target / name}", soft_wrap=True, highlight=False)
    if result["hint"]:
        console.print(result["hint"], highlight=False)
    return result


def _select(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """An even selection in which the first, the last and the best are."""
    if len(checkpoints) <= MAX_CHECKPOINTS:
        return checkpoints
    even = {round(i * (len(checkpoints) - 1) / (MAX_CHECKPOINTS - 1)) for i in range(MAX_CHECKPOINTS)}
    return [c for place, c in enumerate(checkpoints) if place in even or "best" in c.names]


def _step_options(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Arguments of the Trainer that takes one step as the run's own did."""
    trainer = config.get("trainer") or {}
    options = {name: trainer[name] for name in STEP_OPTIONS if trainer.get(name) is not None}
    if device.type != "cuda" and str(options.get("precision", "")).startswith("16"):
        del options["precision"]  # half precision is for GPUs
    return {"accelerator": "gpu" if device.type == "cuda" else device.type, **options}


def _result(
    folder: RunFolder, task: lightning.LightningModule, settings: dict[str, Any], measured: list[dict[str, Any]]
) -> dict[str, Any]:
    """What ``analysis.json`` holds."""
    quantizer = cast(Any, next(m for m in task.modules() if isinstance(m, Quantizer)))
    return {
        "run": _name(folder.folder.resolve()),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"straightvq": straightvq.__version__, "torch": torch.__version__},
        "settings": settings,
        "quantizer": {
            "name": type(quantizer).__name__,
            "codebook_size": quantizer.codebook_size,
            "codebook_dim": quantizer.codebook.dim,
        },
        "hint": _hint(folder, len(measured)),
        "cures": list_cures(quantizer),
        "checkpoints": measured,
    }


def _name(folder: Path) -> str:
    """Of a run; the name of a seed alone would say little."""
    return "/".join(folder.parts[-2:]) if SEED.fullmatch(folder.name) else folder.name


def _hint(folder: RunFolder, used: int) -> str:
    """What the reader should know of the choice of checkpoints."""
    total = len(folder.checkpoints)
    if used < total:
        return f"{used} of the run's {total} checkpoints were measured, evenly spread over the training."
    if total > 2:
        return ""
    kept = " and ".join(f"step {c.step:,} ({', '.join(c.names)})" for c in folder.checkpoints)
    every = max(1, folder.checkpoints[-1].step // 8)
    return (
        f"This run kept only {kept}. To see how the codebook came there, train with checkpoints that are kept: "
        f"straightvq fit ... --keep_every {every}."
    )


# --- files --------------------------------------------------------------------------------------------------------


def _write(target: Path, result: dict[str, Any], folder: RunFolder, snapshots: list[Snapshot]) -> None:
    name = result["run"]
    save(divergence_over_time(snapshots, title=f"Where embeddings and codes of {name} are"), target / "divergence.png")
    ends = snapshots if len(snapshots) <= 2 else [snapshots[0], snapshots[-1]]
    seed = result["settings"]["seed"]
    save(tsne_map(ends, seed=seed, title=f"Neighbourhoods of {name} (t-SNE)"), target / "tsne.png")
    save(curves_over_time(_plots(folder, result), title=f"{name} in the course of training"), target / "curves.png")
    write_text(target / "analysis.json", json.dumps(_plain(result), indent=2) + "\n")
    write_text(target / "report.md", write_report(result))


def _plain(value: Any) -> Any:
    """The same with None for what JSON cannot say: NaN and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Title, unit, reference, whether a share of 1, and for each line: its name, where it comes from and the key there.
_PROBE, _TRAINING, _VALIDATION = "probe", "training", "validation"
_CURVES: tuple[tuple[str, str, float | None, bool, tuple[tuple[str, str], ...]], ...] = (
    ("Usage", "codes used (%)", None, True, ((_TRAINING, "codebook/usage"), (_PROBE, "usage"))),
    ("Perplexity", "codes", None, False, ((_TRAINING, "codebook/perplexity"), (_PROBE, "perplexity"))),
    ("Quantization error", "variance of P", None, False, ((_TRAINING, "codebook/error"), (_PROBE, "error"))),
    (
        "Wasserstein, P to C",
        "deviations of P",
        None,
        False,
        (("diagonal", "wasserstein"), ("full", "wasserstein_full")),
    ),
    (
        "Gradient gap",
        "relative",
        1.0,
        False,
        ((_VALIDATION, "val/codebook/gradient_gap"), (_PROBE, "gradient_gap")),
    ),
    (
        "Gradient cosine",
        "1: exact",
        0.0,
        False,
        ((_VALIDATION, "val/codebook/gradient_cosine"), (_PROBE, "gradient_cosine")),
    ),
    (
        "Codes that a step reaches",
        "codes (%)",
        None,
        True,
        (("with a gradient", "gradient_sparsity"), ("moved", "codes_moved")),
    ),
    (
        "Error in one step",
        "variance of P",
        0.0,
        False,
        (("gain of codes", "codebook_gain"), ("delay", "update_delay")),
    ),
)


def _plots(folder: RunFolder, result: dict[str, Any]) -> list[CurvePanel]:
    plots = []
    for title, unit, reference, is_share, sources in _CURVES:
        lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
        for name, key in sources:
            at = [(c["step"], c["values"][key]) for c in result["checkpoints"] if key in c["values"]]
            steps, values = folder.log(key) if "/" in key else ([s for s, _ in at], [v for _, v in at])
            if steps:
                lines[name] = (steps, values)
        plots.append(CurvePanel(title, unit, lines, reference, is_share))
    return plots


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
