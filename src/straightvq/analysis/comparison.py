"""Several runs side by side: what `analyze` measured of each, as one table and one picture."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from straightvq.analysis.analyze import SEED, analyze
from straightvq.analysis.quantities import LEARNING_RATE, QUANTITIES
from straightvq.analysis.report import format_number, markdown_table
from straightvq.diagnostics import CurvePanel, curves_over_time, panels, save
from straightvq.errors import InvalidValueError
from straightvq.io import results_folder, write_text
from straightvq.runs import RunFolder

FILES = ("comparison.md", "comparison.csv", "comparison.png")

# Methods over which a correlation says something.
_ENOUGH = 4


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    num_images: int = 512,
    device: str = "auto",
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Analyses several runs and writes what was measured side by side; returns the folder of the results.

    A run is called by the parts of its path that differ. Runs whose paths differ in a folder ``seed0``, ``seed1``, ...
    alone are one method: their mean is drawn, and the table has mean and standard deviation.

    Writes `FILES`, of which the table has all numbers of all checkpoints and the page the pictures of the first run of
    each method; and each run's own analysis into its folder.

    Args:
        runs: at least two folders that `straightvq fit` made.
        out: folder of the results; None takes ``comparison`` in the folder that the runs have in common.
        num_images, device, seed, console: as `analyze` takes them.

    Raises:
        ValueError: for fewer than two runs, the same one twice, or more methods than the picture has colours; and
            whatever `analyze` raises.
        OSError: if nothing can be written to `out`.
    """
    paths = [Path(os.path.abspath(run)) for run in runs]
    if len(set(paths)) < 2 or len(set(paths)) < len(paths):
        got = ", ".join(map(str, runs)) or "none"
        raise InvalidValueError(f"`compare`: `runs` must be at least two different folders. Got {got}.")
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
    with results_folder(target):
        results = []
        for number, (name, run) in enumerate(zip(names, runs, strict=True), 1):
            console.print(f"{name}, {number} of {len(names)}", highlight=False)
            results.append(analyze(run, num_images=num_images, device=device, seed=seed, console=console))
        measured = Measurements(names, results)
        save(curves_over_time(measured.curves(), title="In the course of training"), target / "comparison.png")
        write_text(target / "comparison.csv", measured.numbers.droplevel("number").to_csv())
        write_text(target / "comparison.md", measured.page() + _pictures(names, paths, target))
    for file in FILES:
        console.print(f"  {target / file}", soft_wrap=True, highlight=False)
    return target


def method_names(paths: Sequence[Path]) -> list[str]:
    """The parts of each run's path that differ between runs, seeds left out.

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


class Measurements:
    """What `analyze` returned of several runs, whose methods have these names.

    ``numbers`` has a row for each checkpoint of each run, by method and number of the run.
    """

    def __init__(self, names: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
        self.first = results[0]
        self.methods = list(dict.fromkeys(names))
        rows = [
            {"method": name, "number": number, "run": result["run"], "step": c["step"], **c["values"]}
            for number, (name, result) in enumerate(zip(names, results, strict=True))
            for c in result["checkpoints"]
        ]
        rows.sort(key=lambda row: self.methods.index(row["method"]))
        self.numbers = pd.DataFrame(rows).set_index(["method", "number"])
        self.checkpoints = self.numbers.groupby("number").size()
        self.seeds = self.numbers.groupby(["method", "number"]).size().groupby("method").size()

    def courses(self, name: str, *, of_a_step: bool = False) -> pd.DataFrame:
        """Means over the runs of a method, where all have a number: a row for each step, a column for each method.

        What a step does is not to be seen where the schedule has brought its length to 0: that is left out.
        """
        rows = self.numbers[self.numbers[LEARNING_RATE] > 0] if of_a_step else self.numbers
        by_step = rows.groupby(["method", "step"])[name]
        means = by_step.mean()[by_step.count().eq(self.seeds, level="method")]
        return means.unstack("method").reindex(columns=self.methods)

    def curves(self) -> list[CurvePanel]:
        """A plot for each quantity, a line for each method; one that lacks the quantity keeps its colour."""
        plots = []
        for quantity, curve in ((q, q.curve) for q in QUANTITIES if q.name in self.numbers):
            if curve is not None and curve.is_compared:
                courses = self.courses(quantity.name, of_a_step=curve.is_of_a_step)
                found = {method: courses[method].dropna() for method in self.methods}
                lines = {method: (course.index.tolist(), course.tolist()) for method, course in found.items()}
                plots.append(replace(curve.panel, title=quantity.label.capitalize(), lines=lines))
        return [plot for plot in plots if any(steps for steps, _ in plot.lines.values())]

    def cells(self) -> pd.DataFrame:
        """Text for each method and quantity: the mean and, over several seeds, the standard deviation.

        A run's number is the mean over the checkpoints from which the training moved on, or over all if there is none.
        """
        names = [q.name for q in QUANTITIES if q.name != LEARNING_RATE and q.name in self.numbers]
        moving = self.numbers[LEARNING_RATE] > 0
        counted = moving | ~moving.groupby("number").transform("any")
        by_method = self.numbers.loc[counted, names].groupby(["method", "number"]).mean().groupby("method")
        means, deviations = by_method.mean().map(format_number), by_method.std()
        return means.where(deviations.isna(), means + " ± " + deviations.map(format_number)).loc[self.methods]

    def page(self) -> str:
        """The comparison in Markdown, without the pictures of the runs."""
        cells = self.cells()
        shown = [q for q in QUANTITIES if q.name in cells]
        cells.columns = [q.label for q in shown]
        several = self.seeds.max() > 1
        if several:
            cells.insert(0, "seeds", self.seeds.astype(str))
        cells.insert(0, "method", cells.index.str.replace("|", r"\|"))
        low, high = self.checkpoints.min(), self.checkpoints.max()
        versions, images = self.first["versions"], self.first["settings"]["images"]
        meanings = "\n".join(f"- {quantity.label}: {quantity.meaning}" for quantity in shown)
        return f"""\
# {", ".join(self.methods)}

straightvq {versions["straightvq"]}, torch {versions["torch"]}, {self.first["date"]}. \
Measured in evaluation mode on {images:,} test examples, at {low if low == high else f"{low} to {high}"} checkpoints \
of each run. A number is the mean over the checkpoints from which the training moved on\
{"; mean ± standard deviation over seeds" if several else ""}. An empty cell: there is no such number.

{markdown_table(cells.columns, cells.to_numpy().tolist())}

{meanings}

{self.agreement()}What each quantity means, and what to do about it: docs/analysis.md.

![all quantities over training](comparison.png)
"""

    def agreement(self) -> str:
        """How closely the gradient gap follows the quantization error over the methods, if there are enough of them."""
        if len(self.methods) < _ENOUGH or not {"error", "gradient_gap"} <= set(self.numbers):
            return ""
        found = self.courses("error").dropna().corrwith(self.courses("gradient_gap").dropna(), axis=1).dropna()
        if found.empty:
            return ""
        return (
            f"Correlation of quantization error and gradient gap over the {len(self.methods)} methods: "
            f"{found.min():.2f} to {found.max():.2f} at the {len(found)} checkpoints.\n\n"
        )


def _pictures(names: Sequence[str], paths: Sequence[Path], target: Path) -> str:
    """A section for each method, with the pictures of its first run."""
    first = dict(reversed([*zip(names, paths, strict=True)]))
    lines = [""]
    for name in dict.fromkeys(names):
        place = Path(os.path.relpath(first[name] / "analysis", target.resolve())).as_posix()
        lines += [f"## {name}", ""]
        for file, text in (("divergence.png", "along the first component"), ("tsne.png", "as neighbours")):
            lines += [f"![embeddings and codes of {name} {text}]({place}/{file})", ""]
    return "\n".join(lines)
