"""The runs of a study: which are due, one after the other, and what became of them."""

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from straightvq.errors import InvalidValueError
from straightvq.studies.results import Findings, Result, Results
from straightvq.studies.run import TUNE, Cell, Run
from straightvq.studies.study import Size, Study, hint
from straightvq.studies.training import Check, discard_checkpoints, train

__all__ = ["Work", "best_setting"]

# Seconds between two looks at what other processes have finished.
_PATIENCE = 5.0


class Work:
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
        results: Results,
        sources: dict[str, str | None],
        cells: list[Cell],
        everything: list[Cell],
        seeds: int,
        *,
        rerun: bool,
    ) -> None:
        self.study, self.size, self.sources, self.cells, self.seeds = study, size, sources, cells, seeds
        self.results, self.folder, self.everything, self.rerun = results, results.folder, everything, rerun
        self.before: dict[str, Work] = {}
        self._redone: set[Path] = set()

    def tuning(self, cell: Cell) -> list[Run]:
        return [self._upon(run) for run in self.study.tuning(self.size, cell, self.sources.get(cell.set))]

    def final(self, cell: Cell, seed: int) -> Run:
        return self._upon(self.study.final(self.size, cell, seed, self.best(cell), self.sources.get(cell.set)))

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

    def compared(self) -> Iterator[Run]:
        """The runs of everything that the study compares, tuning first."""
        for cell in self.everything:
            yield from self.tuning(cell)
        for cell in self.everything:
            for seed in range(self.seeds):
                yield self.final(cell, seed)

    def reported(self) -> tuple[Findings, int]:
        """The results of everything that the study compares now, and the number of those of other settings."""
        runs = list(self.compared())
        return self.results.matching(runs), sum(map(self.results.is_stale, runs))

    def is_due(self, run: Run) -> bool:
        found = self.results.get(run)
        if found is None:
            return True
        return self.rerun and bool(found.error) and self.results.place(run) not in self._redone

    def refuse_stale(self) -> None:
        stale = [run.title for run in self if self.results.is_stale(run)]
        if stale and not self.rerun:
            raise InvalidValueError(
                f"`reproduce`: {len(stale)} result(s) in {str(self.folder)!r} are of other settings than the study has "
                f"now: {', '.join(stale[:3])}{' and so on' if len(stale) > 3 else ''}. Repeat them with --rerun, "
                "take a new folder with --out, or give the --precision they were made with."
            )

    def check(self) -> None:
        """Reads the configurations of what is due, so that the last row's mistakes are found before the first one runs.

        Every row with every setting is read in every network, and every network on every set.
        """
        known: set[tuple[str, ...]] = set()
        distinct = []
        for run in filter(self.is_due, self):
            cell = run.cell
            new = {(cell.model, cell.row, run.setting), (cell.set, cell.model)} - known
            if new:
                distinct.append(run)
                known |= new
        if distinct:
            check = Check()
            for run in tqdm(distinct, "reading configurations", unit="", disable=None, dynamic_ncols=True, leave=False):
                with _named(run):
                    check(run, self.results.place(run))

    def run(self, keep: bool, report: Callable[[], None]) -> None:
        """Does what is due, and waits for what other processes do of it: each run is left to the one that is at it."""
        last = ""
        # `disable=None`: no bar where nobody watches, only the lines.
        with tqdm(total=len(list(self)), unit="run", disable=None, dynamic_ncols=True) as bar:
            while others := self._run_free(bar, keep, report):
                if others[0].title != last:
                    last = others[0].title
                    bar.set_description(f"waiting for {last}")
                    tqdm.write(f"waiting for {last}, which another process works on", file=sys.stdout)
                time.sleep(_PATIENCE)

    def _run_free(self, bar: Any, keep: bool, report: Callable[[], None]) -> list[Run]:
        """Does what is due and free; returns the rest: what other processes are at, and what has to wait for that."""
        rest, finished = [], 0
        for run in self:
            if self.is_due(run):
                if not self._is_tuned(run) or not self._run(run, bar, keep):
                    rest.append(run)
                    continue
                report()
            finished += 1
            bar.update(max(0, finished - bar.n))
        return rest

    def _is_tuned(self, run: Run) -> bool:
        """Whether all is known by which its setting is chosen."""
        return run.kind == TUNE or not any(map(self.is_due, self.tuning(run.cell)))

    def _run(self, run: Run, bar: Any, keep: bool) -> bool:
        """Returns False if another process is at it."""
        place = self.results.place(run)
        with _alone(place) as is_alone:
            self.results.refresh()
            is_due = is_alone and self.is_due(run)  # another process may have finished it meanwhile
            self._redone.add(place)  # here or there
            if not is_due:
                return is_alone
            bar.set_description(run.title)
            if self.results.forget(run):  # failed, or of other settings: nothing to go on from
                shutil.rmtree(place)
            result = self._result(run, place, bar)
            self.results.add(run, result)
            if not keep and not result.error:
                discard_checkpoints(place)
        tqdm.write(f"{run.title}: {self._words(result)}, {result.seconds:.0f} s", file=sys.stdout)
        return True

    def _result(self, run: Run, place: Path, bar: Any) -> Result:
        """Trains and measures."""

        def show(step: int, total: int) -> None:
            bar.set_postfix_str(f"step {step} of {total}", refresh=step % 10 == 0)

        failed = self._failed_before(run)
        with _named(run):
            result = failed or train(run, place, self.folder / "configs", show)
        decides = self.study.tune_by if run.kind == TUNE else self.study.measures[0].name
        if not result.error and decides not in result.metrics:
            raise InvalidValueError(
                f"`reproduce`: {run.title} has no value {decides!r}, by which the study compares."
                f"{hint(decides, result.metrics)} It has: {', '.join(sorted(result.metrics))}. The "
                "trained state is kept: the same command goes on with the study file put right."
            )
        return result

    def _failed_before(self, run: Run) -> Result | None:
        """The result of a run that is built upon a failed one; an error if the other run's checkpoint is gone."""
        for work in self.before.values():
            first = work.serving(run)
            found, place = work.results.get(first), work.results.place(first)
            if found is not None and found.error:
                return Result.of(run, 0.0, {}, error=f"its run of {work.study.name} failed: {found.error}")
            if not any(place.glob("*.ckpt")):
                raise InvalidValueError(
                    f"`reproduce`: {run.title} is built upon the checkpoint in {str(place)!r}, which is gone. Remove "
                    "that folder, and the same command makes it anew (without --known, which brings no checkpoints)."
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


@contextlib.contextmanager
def _named(run: Run) -> Iterator[None]:
    """An error says whose it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"The run was: {run.title}.")
        raise


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Whether no other process is at the run in this folder; if so none will be until the block ends or this one dies.

    The lock is the operating system's, which gives it back then.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place.parent / f".{place.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
