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
from straightvq.analysis.subject import Subject
from straightvq.diagnostics import (
    CurvePanel,
    Snapshot,
    curves_over_time,
    divergence_of_parts,
    divergence_over_time,
    panels,
    save,
    tsne_map,
)
from straightvq.diagnostics.concerns import list_cures
from straightvq.diagnostics.following import Followed
from straightvq.io import results_folder, write_text
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
    the next step of the training. Those of a composite are measured on each of its parts, levels and groups, by what
    the part was given, and what makes sense of the whole on the whole; without a codebook there are no distances to
    one. The task needs exactly one quantizer, and the methods of `straightvq.training.HasHead`. Writes `FILES`, over
    those of an earlier analysis; the run itself is not changed.

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
            found = probe.measure(checkpoint)
            parts = {name: each.values for name, each in found.items() if name}
            values = {"values": found[""].values, **({"parts": parts} if parts else {})}
            measured.append({"step": checkpoint.step, "names": list(checkpoint.names), **values})
            snapshots.append({name: each.snapshot for name, each in found.items() if each.snapshot is not None})
            progress.advance(bar)
        progress.update(bar, description="pictures")
        settings = {"images": probe.size, "vectors": found[""].vectors, "seed": seed, "device": str(place)}
        with Subject(probe.task) as subject:
            result = _result(folder, subject, settings, measured)
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


def _result(folder: RunFolder, subject: Subject, settings: dict[str, Any], measured: list[Any]) -> dict[str, Any]:
    """What ``analysis.json`` holds."""
    path = folder.folder.resolve()
    cures = {name: list_cures(each.quantizer) for name, each in subject.followed.items()}
    parts = {name: _told(each) | {"cures": cures[name]} for name, each in subject.followed.items() if name}
    whole = _told(subject.followed[""])
    if parts:
        whole = {"name": whole["name"], "num_quantizers": subject.whole.num_quantizers, "parts": parts}
    return {
        # The name of a seed alone would say little.
        "run": "/".join(path.parts[-2:]) if SEED.fullmatch(path.name) else path.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"straightvq": straightvq.__version__, "torch": torch.__version__},
        "settings": settings,
        "quantizer": whole,
        "hint": _hint(folder.checkpoints, len(measured)),
        "cures": [] if parts else cures[""],
        "checkpoints": measured,
    }


def _told(followed: Followed) -> dict[str, Any]:
    """What is analysed, in words and sizes."""
    return {
        "name": type(followed.quantizer).__name__,
        "codebook_size": followed.size,
        "codebook_dim": followed.dim,
        "has_codebook": followed.codebook is not None,
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


def _draw(target: Path, result: dict[str, Any], folder: RunFolder, snapshots: list[dict[str, Snapshot]]) -> None:
    name, seed = result["run"], result["settings"]["seed"]
    where = f"Where embeddings and codes of {name} are"
    if "" in snapshots[-1]:
        course = [each[""] for each in snapshots]
        divergence, labels = divergence_over_time(course, title=where), None
        shown = course if len(course) <= 2 else [course[0], course[-1]]
    else:
        divergence = divergence_of_parts(snapshots[-1], title=f"{where} at the end")
        labels = _evenly([*snapshots[-1]], 3)
        shown = [snapshots[-1][label] for label in labels]
    save(divergence, target / "divergence.png")
    save(tsne_map(shown, names=labels, seed=seed, title=f"Neighbourhoods of {name} (t-SNE)"), target / "tsne.png")
    curves = [*_curves(result, folder), *_part_curves(result)]
    save(curves_over_time(curves, title=f"{name} in the course of training"), target / "curves.png")


def _curves(result: dict[str, Any], folder: RunFolder) -> list[CurvePanel]:
    """The plots of `QUANTITIES`, each with what was measured at the checkpoints and what the run itself logged."""
    plots: dict[str, CurvePanel] = {}
    quantizer = result["quantizer"]
    has_all = quantizer.get("has_codebook", False)  # of a composite the plots of its parts show the rest
    for name, curve in ((quantity.name, quantity.curve) for quantity in QUANTITIES if quantity.curve):
        course = _course(result["checkpoints"], name)
        if not (has_all or course[0]):
            continue
        lines = {}
        if curve.log:
            lines["validation" if curve.log.startswith("val/") else "training"] = folder.log(curve.log)
        lines[curve.line] = course
        found = {line: course for line, course in lines.items() if course[0]}
        plot = plots.get(curve.panel.title, curve.panel)
        plots[plot.title] = replace(plot, lines={**plot.lines, **found})
    return list(plots.values())


def _part_curves(result: dict[str, Any]) -> list[CurvePanel]:
    """A plot for each quantity of the parts, if there are any, with a line for each part or an even selection."""
    parts = _evenly([*result["quantizer"].get("parts", ())], len(panels.PALETTE))
    plots = []
    for quantity in (quantity for quantity in QUANTITIES if quantity.curve):
        courses = {part: _course(result["checkpoints"], quantity.name, part) for part in parts}
        lines = {part: course for part, course in courses.items() if course[0]}
        if quantity.curve and lines:
            title = f"{quantity.label.capitalize()} of parts"
            plots.append(replace(quantity.curve.panel, title=title, lines=lines))
    return plots


def _course(checkpoints: list[Any], name: str, part: str = "") -> tuple[list[int], list[float]]:
    """Steps and values of a quantity, of the whole or of one part."""
    found = [(c["step"], (c["parts"][part] if part else c["values"]).get(name)) for c in checkpoints]
    measured = [(step, value) for step, value in found if value is not None]
    return [step for step, _ in measured], [value for _, value in measured]


def _evenly(names: list[str], most: int) -> list[str]:
    """An even selection of at most ``most``, the first and the last among them."""
    count = min(len(names), most)
    return [names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)]


def _plain(value: Any) -> Any:
    """The same with None for what JSON cannot say: NaN and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
