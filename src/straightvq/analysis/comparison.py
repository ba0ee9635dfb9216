"""Several runs side by side: what `analyze` measured of each, as one table and one picture."""

import csv
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from straightvq.analysis.analyze import SEED, analyze
from straightvq.analysis.report import QUANTITIES, format_number
from straightvq.diagnostics import CurvePanel, curves_over_time, panels, save
from straightvq.errors import InvalidValueError
from straightvq.io import results_folder, write_text
from straightvq.runs import RunFolder

__all__ = ["compare"]

FILES = ("comparison.md", "comparison.csv", "comparison.png")
# What a step does is not to be seen where the schedule has brought its length to 0.
_MOVES = "learning_rate"
_OF_A_STEP = ("codes_moved", "codebook_gain", "update_delay")

# Methods over which a correlation says something.
_ENOUGH = 4

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    num_images: int = 512,
    device: str = "auto",
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Analyses several runs and writes what was measured side by side.

    A run is called by the parts of its path that differ. Runs whose paths differ in a folder ``seed0``, ``seed1``, ...
    alone are one method: their mean is drawn, and the table has mean and standard deviation.

    Writes ``comparison.md``, ``comparison.csv`` (all numbers of all checkpoints) and ``comparison.png``; and each run's
    own analysis into its folder, see `analyze`. The page shows the pictures of the first run of each
    method.

    Args:
        runs: at least two folders that `straightvq fit` made.
        out: folder of the results; None takes ``comparison`` in the folder that the runs have in common.
        num_images, device, seed, console: as `analyze` takes them.

    Returns:
        The folder of the results.

    Raises:
        ValueError: for fewer than two runs, the same one twice, or more methods than the picture has colours; and
            whatever `analyze` raises.
        OSError: if nothing can be written to `out`.
    """
    paths = [Path(os.path.abspath(run)) for run in runs]
    if len(set(paths)) < 2 or len(set(paths)) < len(paths):
        raise InvalidValueError(
            f"`compare`: `runs` must be at least two different folders. Got {', '.join(map(str, runs)) or 'none'}."
        )
    names = method_names(paths)
    if len(set(names)) > len(panels.PALETTE):
        raise InvalidValueError(
            f"`compare`: `runs` must be of at most {len(panels.PALETTE)} methods, one for each colour. "
            f"Got {len(set(names))}: {', '.join(dict.fromkeys(names))}."
        )
    for run in runs:
        _ = RunFolder(Path(run)).checkpoints  # a folder that is none is found before the first one is measured
    target = Path(os.path.commonpath(paths)) / "comparison" if out is None else Path(out)
    console = console or Console()
    results: dict[str, list[Mapping[str, Any]]] = {}
    with results_folder(target):
        for number, (name, run) in enumerate(zip(names, runs, strict=True), 1):
            console.print(f"{name}, {number} of {len(names)}", highlight=False)
            found = analyze(run, num_images=num_images, device=device, seed=seed, console=console)
            results.setdefault(name, []).append(found)
        save(curves_over_time(_plots(results), title="In the course of training"), target / FILES[2])
        write_text(target / FILES[1], _numbers(results))
        shown = {name: path / "analysis" for name, path in reversed([*zip(names, paths, strict=True)])}
        write_text(target / FILES[0], _page(results) + _pictures({name: shown[name] for name in results}, target))
    for file in FILES:
        console.print(f"  {target / file}", soft_wrap=True, highlight=False)
    return target


def method_names(paths: Sequence[Path]) -> list[str]:
    """What each run is called: the parts of its path that differ between runs, seeds left out.

    Example:
        >>> method_names([Path("/a/VQ/seed0"), Path("/a/VQ/seed1"), Path("/a/all/seed0")])
        ['VQ', 'VQ', 'all']
        >>> method_names([Path("/a/VQ/seed0"), Path("/a/VQ/seed1")])
        ['seed0', 'seed1']
    """
    common = Path(os.path.commonpath(paths))
    parts = [path.relative_to(common).parts for path in paths]
    methods = [[part for part in own if not SEED.fullmatch(part)] for own in parts]
    shared = {part for part in methods[0] if all(part in own for own in methods)}
    names = ["/".join(part for part in own if part not in shared) or common.name for own in methods]
    return names if len(set(names)) > 1 else ["/".join(own) or common.name for own in parts]


# Key in `analysis.json`, title, unit, reference, whether a share of 1.
_PANELS: tuple[tuple[str, str, str, float | None, bool], ...] = (
    ("usage", "Usage", "codes used (%)", None, True),
    ("error", "Quantization error", "variance of P", None, False),
    ("wasserstein_full", "Wasserstein, P to C", "deviations of P", None, False),
    ("codes_moved", "Codes that a step moves", "codes (%)", None, True),
    ("gradient_gap", "Gradient gap", "relative", 1.0, False),
    ("gradient_cosine", "Gradient cosine", "1: exact", 0.0, False),
    ("codebook_gain", "Gain of the codebook", "variance of P, in a step", 0.0, False),
    ("update_delay", "Update delay", "variance of P, in a step", 0.0, False),
)


def _plots(results: Results) -> list[CurvePanel]:
    """A plot for each quantity, a line for each method; one that lacks the quantity keeps its colour."""
    plots = []
    for key, title, unit, reference, is_share in _PANELS:
        courses = {method: _mean_course(runs, key) for method, runs in results.items()}
        if any(courses.values()):
            lines = {method: (list(course), list(course.values())) for method, course in courses.items()}
            plots.append(CurvePanel(title, unit, lines, reference, is_share))
    return plots


def _mean_course(runs: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Mean over the runs by step, of the steps that all have."""
    courses = [
        {
            c["step"]: c["values"][key]
            for c in run["checkpoints"]
            if key in c["values"] and (key not in _OF_A_STEP or c["values"][_MOVES] > 0)
        }
        for run in runs
    ]
    return {
        step: statistics.mean(course[step] for course in courses)
        for step in courses[0]
        if all(step in course for course in courses)
    }


def _over_training(run: Mapping[str, Any], key: str) -> float | None:
    """Mean over the checkpoints from which the training moved on, or over all if there is none."""
    moving = [c["values"] for c in run["checkpoints"] if c["values"][_MOVES] > 0]
    values = [v[key] for v in moving or [c["values"] for c in run["checkpoints"]] if key in v]
    return statistics.mean(values) if values else None


def _page(results: Results) -> str:
    several = any(len(runs) > 1 for runs in results.values())
    shown = [q for q in QUANTITIES if q.name != _MOVES and any(_cell(runs, q.name) for runs in results.values())]
    header = ["method", *(["seeds"] if several else []), *(q.label for q in shown)]
    rows = [
        [name.replace("|", r"\|"), *([str(len(runs))] if several else []), *(_cell(runs, q.name) for q in shown)]
        for name, runs in results.items()
    ]
    lines = [
        f"# {', '.join(results)}",
        "",
        f"{_conditions(results)} A number is the mean over the checkpoints from which the training moved on"
        f"{'; mean ± standard deviation over seeds' if several else ''}. An empty cell: there is no such number.",
        "",
        f"| {' | '.join(header)} |",
        "|---|" + "---:|" * (len(header) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {quantity.label}: {quantity.meaning}" for quantity in shown),
        "",
        *_agreement(results),
        "What each quantity means, and what to do about it: docs/analysis.md.",
        "",
        "![what was measured in the course of training](comparison.png)",
        "",
    ]
    return "\n".join(lines)


def _agreement(results: Results) -> list[str]:
    """How closely the gradient gap follows the quantization error over the methods, if there are enough of them."""
    pairs = [[_mean_course(runs, key) for key in ("error", "gradient_gap")] for runs in results.values()]
    steps = [step for step in pairs[0][0] if all(step in course for pair in pairs for course in pair)]
    found = []
    for step in steps if len(pairs) >= _ENOUGH else []:
        errors, gaps = ([pair[place][step] for pair in pairs] for place in (0, 1))
        if len(set(errors)) > 1 and len(set(gaps)) > 1:
            found.append(statistics.correlation(errors, gaps))
    if not found:
        return []
    return [
        f"Correlation of quantization error and gradient gap over the {len(pairs)} methods: {min(found):.2f} to "
        f"{max(found):.2f} at the {len(found)} checkpoints.",
        "",
    ]


def _pictures(analyses: Mapping[str, Path], target: Path) -> str:
    """A section for each method, with the pictures in its folder of an analysis."""
    lines = []
    for name, folder in analyses.items():
        place = Path(os.path.relpath(folder, target.resolve())).as_posix()
        lines += [f"## {name}", ""]
        for file, text in (("divergence.png", "along the first component"), ("tsne.png", "as neighbours")):
            lines += [f"![embeddings and codes of {name} {text}]({place}/{file})", ""]
    return "\n".join(["", *lines])


def _conditions(results: Results) -> str:
    every = [run for runs in results.values() for run in runs]
    first = every[0]
    counts = sorted({len(run["checkpoints"]) for run in every})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"straightvq {first['versions']['straightvq']}, torch {first['versions']['torch']}, {first['date']}. Measured "
        f"in evaluation mode on {first['settings']['images']:,} test examples, at {number} checkpoints of each run."
    )


def _cell(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [value for run in runs if (value := _over_training(run, key)) is not None]
    if not values:
        return ""
    mean = format_number(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {format_number(statistics.stdev(values))}"


def _numbers(results: Results) -> str:
    keys = list(dict.fromkeys(key for runs in results.values() for c in runs[0]["checkpoints"] for key in c["values"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "run", "step", *keys])
    for method, runs in results.items():
        for run in runs:
            for checkpoint in run["checkpoints"]:
                values = (checkpoint["values"].get(key, "") for key in keys)
                writer.writerow([method, run["run"], checkpoint["step"], *values])
    return text.getvalue()
