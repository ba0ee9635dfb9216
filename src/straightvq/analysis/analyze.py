"""Looking back at a run: what its checkpoints say of the quantizer, as numbers, pictures and one page of words."""

import datetime
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

import straightvq
from straightvq.analysis.probe import Probe
from straightvq.analysis.quantities import QUANTITIES
from straightvq.analysis.report import report_page
from straightvq.diagnostics import CurvePanel, Snapshot, curves_over_time, divergence_over_time, save, tsne_map
from straightvq.diagnostics.concerns import list_cures
from straightvq.io import results_folder, write_text
from straightvq.nn import Quantizer
from straightvq.nn.part import check_int
from straightvq.runs import Checkpoint, RunFolder, pick_device
from straightvq.training.command_line import quiet

SEED = re.compile(r"seed\d+")  # folders of runs that differ in their random seed only
MAX_CHECKPOINTS = 16  # a picture holds no more curves; of more checkpoints an even selection is taken
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
    """Measures the checkpoints of a run on a fixed part of the test split; returns what ``analysis.json`` holds.

    For each checkpoint: the numbers of `QUANTITIES`, of the embeddings, the codes, the straight-through gradient and
    the next step of the training. The task needs exactly one quantizer with a codebook, and the methods of
    `straightvq.training.HasHead`. Writes `FILES`, over those of an earlier analysis; the run itself is not changed.

    Args:
        run: folder that `straightvq fit` made, with ``config.yaml`` and checkpoints.
        out: folder of the results; None takes ``analysis`` in ``run``.
        num_images: test examples to measure on, at least 1.
        device: "auto", "cpu", "cuda" or "mps".
        seed: random seed of the choice of vectors and of the t-SNE.
        console: where progress goes; default the terminal.

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
    chosen = select_checkpoints(folder.checkpoints)
    progress = Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console)
    with results_folder(target), quiet(), progress:
        bar = progress.add_task("data", total=len(chosen) + 1)
        probe = Probe(folder, place, num_images=num_images, seed=seed)
        measured, snapshots = [], []
        for checkpoint in chosen:
            progress.update(bar, description=f"step {checkpoint.step:,}")
            values, snapshot = probe.measure(checkpoint)
            measured.append({"step": checkpoint.step, "names": list(checkpoint.names), "values": values})
            snapshots.append(snapshot)
            progress.advance(bar)
        progress.update(bar, description="pictures")
        vectors = int(snapshots[-1].counts.sum())
        settings = {"images": probe.size, "vectors": vectors, "seed": seed, "device": str(place)}
        quantizer = next(m for m in probe.task.modules() if isinstance(m, Quantizer))
        result = _result(folder, quantizer, settings, measured)
        _draw(target, result, folder, snapshots)
        write_text(target / "analysis.json", json.dumps(_plain(result), indent=2) + "\n")
        write_text(target / "report.md", report_page(result))
        progress.advance(bar)
    for name in FILES:
        console.print(f"  {target / name}", soft_wrap=True, highlight=False)
    if result["hint"]:
        console.print(result["hint"], highlight=False)
    return result


def select_checkpoints(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """An even selection in which the first, the last and the best are."""
    if len(checkpoints) <= MAX_CHECKPOINTS:
        return checkpoints
    even = {round(i * (len(checkpoints) - 1) / (MAX_CHECKPOINTS - 1)) for i in range(MAX_CHECKPOINTS)}
    return [c for place, c in enumerate(checkpoints) if place in even or "best" in c.names]


def _result(folder: RunFolder, quantizer: Any, settings: dict[str, Any], measured: list[Any]) -> dict[str, Any]:
    """What ``analysis.json`` holds."""
    path = folder.folder.resolve()
    size, width = quantizer.codebook_size, quantizer.codebook.dim
    return {
        # The name of a seed alone would say little.
        "run": "/".join(path.parts[-2:]) if SEED.fullmatch(path.name) else path.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"straightvq": straightvq.__version__, "torch": torch.__version__},
        "settings": settings,
        "quantizer": {"name": type(quantizer).__name__, "codebook_size": size, "codebook_dim": width},
        "hint": _hint(folder.checkpoints, len(measured)),
        "cures": list_cures(quantizer),
        "checkpoints": measured,
    }


def _hint(checkpoints: list[Checkpoint], used: int) -> str:
    """How the checkpoints were chosen, and how to keep more of them."""
    total = len(checkpoints)
    if used < total:
        return f"{used} of the run's {total} checkpoints were measured, evenly spread over the training."
    if total > 2:
        return ""
    kept = " and ".join(f"step {c.step:,} ({', '.join(c.names)})" for c in checkpoints)
    return (
        f"This run kept only {kept}. To see how the codebook came there, train with checkpoints that are kept: "
        f"straightvq fit ... --keep_every {max(1, checkpoints[-1].step // 8)}."
    )


def _draw(target: Path, result: dict[str, Any], folder: RunFolder, snapshots: list[Snapshot]) -> None:
    name, seed = result["run"], result["settings"]["seed"]
    ends = snapshots if len(snapshots) <= 2 else [snapshots[0], snapshots[-1]]
    save(divergence_over_time(snapshots, title=f"Where embeddings and codes of {name} are"), target / "divergence.png")
    save(tsne_map(ends, seed=seed, title=f"Neighbourhoods of {name} (t-SNE)"), target / "tsne.png")
    save(curves_over_time(_curves(result, folder), title=f"{name} in the course of training"), target / "curves.png")


def _curves(result: dict[str, Any], folder: RunFolder) -> list[CurvePanel]:
    """The plots of `QUANTITIES`, each with what was measured at the checkpoints and what the run itself logged."""
    panels: dict[str, CurvePanel] = {}
    for name, curve in ((quantity.name, quantity.curve) for quantity in QUANTITIES if quantity.curve):
        lines = {}
        if curve.log:
            lines["validation" if curve.log.startswith("val/") else "training"] = folder.log(curve.log)
        measured = [c for c in result["checkpoints"] if name in c["values"]]
        lines[curve.line] = ([c["step"] for c in measured], [c["values"][name] for c in measured])
        found = {line: course for line, course in lines.items() if course[0]}
        panel = panels.get(curve.panel.title, curve.panel)
        panels[panel.title] = replace(panel, lines={**panel.lines, **found})
    return list(panels.values())


def _plain(value: Any) -> Any:
    """The same with None for what JSON cannot say: NaN and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
