"""Running a study: which runs are due, one after the other, and the report that grows with them."""

import contextlib
import dataclasses
import importlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from straightvq.nn.part import check_int
from straightvq.studies.figures import draw
from straightvq.studies.report import Context, write_report
from straightvq.studies.results import Result, Results
from straightvq.studies.study import TUNE, Cell, Run, Size, Study, unknown
from straightvq.studies.training import train

__all__ = ["reproduce"]


def reproduce(
    name: str,
    *,
    size: str = "small",
    out: Path | None = None,
    data: Path | None = None,
    sets: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    seeds: int | None = None,
    precision: str | None = None,
    dry_run: bool = False,
    keep: bool = False,
    rerun: bool = False,
) -> Path:
    """Runs what is missing of a study and writes its report.

    Finished runs are not repeated, a stopped one goes on from its last checkpoint, so the same call can be made until
    nothing is left. Several processes may work on one folder if they are given different models or rows, and if what
    these share, such as a classifier in whose features all are measured, is finished.

    Args:
        name: of a packaged study, or a YAML file.
        size: one of the study's sizes.
        out: folder of the results; None takes ``studies/<name>-<size>``.
        data: folder that holds the sets; None takes embedded data where the study has some.
        sets, models, rows: names of those to run; None for all.
        seeds: number of seeds, at least 1; None takes the size's.
        precision: "32-true" or "bf16-mixed"; None takes the size's, else 32 bits. It is one of a result's settings.
        dry_run: only lists the runs, with an estimate of the time.
        keep: whether the checkpoints of finished runs are kept; those that other runs build upon always are.
        rerun: repeats runs that failed, and those of other settings than the study's, which are refused otherwise.

    Returns:
        The folder of the results: ``report.md``, ``report.tex``, ``results.csv``, figures, and ``runs``; and a folder
        like it for each study that this one is built upon.

    Raises:
        ValueError: for what is not there, for a study file with mistakes, for results of other settings, and when a
            result cannot be written.
        KeyboardInterrupt: when stopped; says how to go on.
    """
    study = Study.load(name)
    if study.script is not None:
        if data or sets or models or rows or seeds or precision or dry_run:
            raise ValueError(f"`reproduce`: the study {study.name} is a single figure and takes no option but --out.")
        return _run_script(study, out)
    if size not in study.sizes:
        raise unknown("the size", size, study.sizes)
    chosen = study.sizes[size].at_precision(precision)
    seeds = chosen.seeds if seeds is None else check_int("reproduce", "seeds", seeds, 1)
    names, remark = _sets(study, chosen, data, sets)
    sources = _sources(study, names, data)
    cells = study.cells(chosen, names, models, rows)
    everything = study.cells(chosen, names, None, None)
    folder = Path("studies") / f"{study.name}-{size}" if out is None else out
    work = _Work(study, chosen, folder, sources, cells, everything, seeds, rerun=rerun)
    for option, other in chosen.follows.items():
        work.before[option] = _preparation(work, other, data, precision)
    parts = [*work.before.values(), work]
    if dry_run:
        sys.stdout.write("".join([remark + "\n" if remark else "", *(part.listing() for part in parts)]))
        return folder
    for part in parts:
        part.refuse_stale()
    if remark:
        sys.stdout.write(remark + "\n")
    options = [] if data is None else ["--data", "SETS"]  # a place on this machine means nothing to a reader
    options += [] if seeds == chosen.seeds else ["--seeds", str(seeds)]
    options += [] if precision is None else ["--precision", precision]
    command = shlex.join(["straightvq", "reproduce", name, "--size", size, *options])
    for part in parts:
        # The checkpoints of what comes before are what the study is built upon.
        _run(part, Context(part.study, part.size, command, remark, part.seeds), keep=keep or part is not work)
    return folder


def _preparation(work: "_Work", name: str, data: Path | None, precision: str | None) -> "_Work":
    """The part of another study that a study is built upon."""
    study = Study.load(name)
    if work.size.name not in study.sizes:
        raise unknown(f"the size of {study.name},", work.size.name, study.sizes)
    size = study.sizes[work.size.name].at_precision(precision)
    if size.follows:
        raise ValueError(f"`reproduce`: {study.name} is built upon, and must not follow another study itself.")

    def serving(cells: Sequence[Cell]) -> list[Cell]:
        return list(dict.fromkeys(study.serving(size, cell, 0)[0] for cell in cells))

    cells, everything = serving(work.cells), serving(work.everything)
    seeds = 1 + max(study.serving(size, cell, work.seeds - 1)[1] for cell in work.cells)
    sources = _sources(study, list(work.sources), data)
    return _Work(study, size, work.folder / study.name, sources, cells, everything, seeds, rerun=work.rerun)


def _run(work: "_Work", context: Context, *, keep: bool) -> None:
    folder = work.folder
    with _protected(folder, work.results):
        try:
            work.run(keep, lambda: write_report(folder, context, work.results, work.everything))
        finally:
            if len(work.results):
                draw(folder, context, work.results, work.everything)
                write_report(folder, context, work.results, work.everything)
    sys.stdout.write(f"{folder / 'report.md'}\n")


class _Work:
    """The runs that are due, in the order of running.

    Attributes:
        cells: what is run.
        everything: what is reported; other processes may run it.
        before: what these runs are built upon, by the option that gets a folder.
    """

    def __init__(
        self,
        study: Study,
        size: Size,
        folder: Path,
        sources: dict[str, str | None],
        cells: list[Cell],
        everything: list[Cell],
        seeds: int,
        *,
        rerun: bool,
    ) -> None:
        self.study, self.size, self.sources, self.cells, self.seeds = study, size, sources, cells, seeds
        self.folder, self.everything, self.rerun = folder, everything, rerun
        self.results = Results(folder)
        self.before: dict[str, _Work] = {}
        self._redone: set[Path] = set()

    def tuning(self, cell: Cell) -> list[Run]:
        return [self._upon(run) for run in self.study.tuning(self.size, cell, self.sources[cell.set])]

    def final(self, cell: Cell, seed: int) -> Run:
        return self._upon(self.study.final(self.size, cell, seed, self.best(cell), self.sources[cell.set]))

    def _upon(self, run: Run) -> Run:
        """The same run with the folders of those that it is built upon."""
        upon = {}
        for option, work in self.before.items():
            first = work.serving(run)
            upon[option] = (str(work.results.place(first)), first.settings)
        return dataclasses.replace(run, upon=upon)

    def serving(self, run: Run) -> Run:
        """The run of this work that one of another study is built upon."""
        return self.final(*self.study.serving(self.size, run.cell, run.seed))

    def best(self, cell: Cell) -> str:
        """The setting that tuning chose; while it is not finished, the first."""
        runs = self.tuning(cell)
        return best_setting(self.study, [r for run in runs if (r := self.results.get(run))]) or (
            runs[0].setting if runs else ""
        )

    def __iter__(self) -> Iterator[Run]:
        """For each network tuning first, then all rows with one seed, with the next, and so on."""
        for place in dict.fromkeys((cell.set, cell.model) for cell in self.cells):
            here = [cell for cell in self.cells if (cell.set, cell.model) == place]
            for cell in here:
                yield from self.tuning(cell)
            for seed in range(self.seeds):
                for cell in here:
                    yield self.final(cell, seed)

    def is_due(self, run: Run) -> bool:
        found = self.results.get(run)
        if found is None:
            return True
        return self.rerun and bool(found.error) and self.results.place(run) not in self._redone

    def refuse_stale(self) -> None:
        stale = [run.title for run in self if self.results.is_stale(run)]
        if stale and not self.rerun:
            raise ValueError(
                f"`reproduce`: {len(stale)} result(s) in {str(self.folder)!r} are of other settings than the study has "
                f"now: {', '.join(stale[:3])}{' and so on' if len(stale) > 3 else ''}. Repeat them with --rerun, "
                "take a new folder with --out, or give the --precision they were made with."
            )

    def run(self, keep: bool, report: Any) -> None:
        count = len(list(self))
        # `disable=None`: no bar where nobody watches, only the lines.
        with tqdm(total=count, unit="run", disable=None, dynamic_ncols=True) as bar:
            for run in self:
                if self.is_due(run):
                    self._run(run, bar, keep)
                    report()
                bar.update()

    def _run(self, run: Run, bar: Any, keep: bool) -> None:
        place = self.results.place(run)
        self._redone.add(place)
        bar.set_description(run.title)
        if self.results.forget(run):  # failed, or of other settings: nothing to go on from
            shutil.rmtree(place)

        def show(step: int, total: int) -> None:
            bar.set_postfix_str(f"step {step} of {total}", refresh=step % 10 == 0)

        failed = self._failed_before(run)
        try:
            result = failed or train(run, place, self.folder / "configs", show, keep=keep)
        except Exception as error:
            error.add_note(f"The run was: {run.title}.")
            raise
        self.results.add(run, result)
        tqdm.write(f"{run.title}: {self._words(result)}, {result.seconds:.0f} s", file=sys.stdout)

    def _failed_before(self, run: Run) -> Result | None:
        """The result of a run that is built upon a failed one; an error if the other run's checkpoint is gone."""
        for work in self.before.values():
            first = work.serving(run)
            found, place = work.results.get(first), work.results.place(first)
            if found is not None and found.error:
                return Result.of(run, 0.0, {}, error=f"its run of {work.study.name} failed: {found.error}")
            if not any(place.glob("*.ckpt")):
                raise ValueError(
                    f"`reproduce`: {run.title} is built upon the checkpoint in {str(place)!r}, which is gone. Remove "
                    "that folder, and the same command makes it anew."
                )
        return None

    def _words(self, result: Result) -> str:
        if result.error:
            return f"failed ({result.error})"
        if result.kind == TUNE:
            return f"{self.study.tune_by} {result.metrics.get(self.study.tune_by, float('nan')):.4g}"
        shown = [m for m in self.study.measures if m.name in result.metrics]
        return ", ".join(f"{m.label} {m.scale * result.metrics[m.name]:.{m.digits}f}" for m in shown)

    def listing(self) -> str:
        """All runs, what is finished, and the time that the rest will take."""
        lines, seconds, unknown_time = [], 0.0, 0
        for run in self:
            is_due = self.is_due(run)
            state = "other settings" if self.results.is_stale(run) else "due" if is_due else "finished"
            estimate = self._estimate(run)
            if is_due and estimate is not None:
                seconds += estimate
            unknown_time += is_due and estimate is None
            time = "" if estimate is None else f", about {estimate:.0f} s"
            lines.append(f"  {run.title}: {state}{time if is_due else ''}")
        rest = f", and {unknown_time} runs of unknown length" if unknown_time else ""
        lines.append(f"{len(list(self))} runs in {self.folder}; about {_duration(seconds)} to go{rest}")
        return "\n".join(lines) + "\n"

    def _estimate(self, run: Run) -> float | None:
        """Of this network's finished runs, else what the study file says."""
        for cell in (run.cell, *self.cells):
            if (cell.set, cell.model) == (run.cell.set, run.cell.model):
                same = [r.seconds for r in self.results.of(cell, run.kind) if not r.error]
                if same:
                    return sum(same) / len(same)
        seconds = self.size.models[run.cell.model].seconds
        return seconds if seconds is None or run.kind != TUNE else seconds / 2


def best_setting(study: Study, results: Sequence[Result]) -> str:
    """The setting with the best value of tuning; "" if there is none."""
    sign = 1 if study.measures[0].better == "higher" else -1
    values = {r.setting: sign * r.metrics[study.tune_by] for r in results if study.tune_by in r.metrics}
    return max(values, key=lambda name: values[name]) if values else ""


def _sets(study: Study, size: Size, data: Path | None, sets: Sequence[str] | None) -> tuple[list[str], str]:
    """Names of the sets; and a remark if embedded data take the place of others."""
    names = list(size.sets)
    remark = ""
    outside = [name for name in names if study.sets[name].folder is not None]
    if sets is not None:
        for name in sets:
            if name not in study.sets:
                raise unknown("`--sets`", name, study.sets)
        names = list(sets)
        outside = [name for name in names if study.sets[name].folder is not None]
    if outside and data is None:
        if not size.without_data or sets is not None:
            raise ValueError(
                f"`reproduce`: {study.name} in size {size.name} needs {', '.join(outside)}: pass --data with the "
                f"folder that holds {', '.join(str(study.sets[name].folder) for name in outside)}."
            )
        names = list(size.without_data)
        remark = (
            f"No --data was given: embedded {', '.join(names)} stand in for {', '.join(outside)}, so that the numbers "
            "cannot be compared with the paper's."
        )
    return names, remark


def _sources(study: Study, names: Sequence[str], data: Path | None) -> dict[str, str | None]:
    """Place of each set, None for embedded ones."""
    places: dict[str, str | None] = {}
    for name in names:
        folder = study.sets[name].folder
        places[name] = None if folder is None or data is None else str(data / folder)
        if places[name] is not None and not Path(str(places[name])).is_dir():
            raise ValueError(
                f"`reproduce`: {study.name} needs the set {name} in {places[name]!r}, which is not there. "
                "--data must be the folder that holds the sets' folders."
            )
    return places


@contextlib.contextmanager
def _protected(folder: Path, results: Results) -> Iterator[None]:
    """Says what is safe and how to go on when a study is stopped or its disk is full."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning leaves by the second
        raise KeyboardInterrupt(
            f"stopped; {len(results)} finished runs are in {folder}. The same command goes on where this one was."
        ) from stop
    except OSError as error:
        raise ValueError(
            f"`reproduce`: cannot write the results: {error}. The {len(results)} finished runs in {str(folder)!r} are "
            "intact; the same command goes on once there is room."
        ) from error


def _run_script(study: Study, out: Path | None) -> Path:
    module, _, function = str(study.script).rpartition(".")
    folder = Path("studies") / study.name if out is None else out
    getattr(importlib.import_module(module), function)(folder, study.title, study.about)
    sys.stdout.write(f"{folder / 'report.md'}\n")
    return folder


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
