"""Runs what is due of a plan, in its order, here or on workers of Ray's, and keeps every result as it comes."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from straightvq.errors import InvalidValueError, did_you_mean
from straightvq.studies.plan import Plan
from straightvq.studies.results import TUNE, Result, Run
from straightvq.studies.train import Check, discard_checkpoints, train


def check(plan: Plan) -> None:
    """Reads the configurations of what is due, so that the last row's mistakes are found before the first one runs.

    Every row with every setting is read in every network, and every network on every set.
    """
    known: set[tuple[str, ...]] = set()
    distinct = []
    for run in filter(plan.is_due, plan):
        cell = run.cell
        parts = {(cell.model, cell.row, run.setting), (cell.set, cell.model)}
        if not parts <= known:
            distinct.append(run)
            known |= parts
    if distinct:
        read = Check()
        for run in tqdm(distinct, "reading configurations", unit="", disable=None, dynamic_ncols=True, leave=False):
            with _named(run):
                read(run, plan.results.folder / run.folder)


@contextlib.contextmanager
def _named(run: Run) -> Iterator[None]:
    """Adds to an error whose it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"The run was: {run.title}.")
        raise


class Writes(Protocol):
    """What tells of the results."""

    def write(self) -> None:
        """The tables of what is finished, after each result."""

    def draw(self) -> None:
        """The pictures, at the end."""


@dataclass
class Engine:
    """Does what is due of a plan."""

    plan: Plan
    executor: Executor  # where
    workers: int  # runs at a time
    keep: bool  # the checkpoints of finished runs
    report: Writes
    goes_on: bool = False  # where a run crashes: its result says so

    def run(self) -> None:
        """Does what is due; several at a time where there are several workers."""
        self.plan.results.refresh()  # another process may have finished something before this one was alone
        try:
            self._run()
        finally:
            if self.plan.results:
                self.plan.results.write()
                self.report.draw()
                self.report.write()

    def _run(self) -> None:
        running: dict[Future[Result], Run] = {}
        # `disable=None`: no bar where nobody watches, only the lines.
        with tqdm(total=len(list(self.plan)), unit="run", disable=None, dynamic_ncols=True) as bar:
            while True:
                at_work = {run.folder for run in running.values()}
                due = [run for run in self.plan if self.plan.is_due(run)]
                bar.update(max(0, bar.total - len(due) - bar.n))
                ready = [run for run in due if run.folder not in at_work and self.plan.is_ready(run)]
                if ready and len(running) < self.workers:
                    bar.set_description(ready[0].title)
                    running[self._start(ready[0], bar)] = ready[0]
                elif running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._finish(running.pop(future), future)
                else:
                    return

    def _start(self, run: Run, bar: Any) -> Future[Result]:
        results, failed = self.plan.results, self._failed_before(run)
        place = results.folder / run.folder
        if results.pop(run.folder, None) is not None:  # failed, or of other settings: nothing to go on from
            shutil.rmtree(place, ignore_errors=True)
        if failed is not None:
            future: Future[Result] = Future()
            future.set_result(failed)
            return future

        def show(step: int, total: int) -> None:
            bar.set_postfix_str(f"step {step} of {total}", refresh=step % 10 == 0)

        return self.executor.submit(train, run, place, show if self.workers == 1 else None)

    def _finish(self, run: Run, future: Future[Result]) -> None:
        result = self._result(run, future)
        decides = self.plan.study.tune.by if run.kind == TUNE else self.plan.study.headline.name
        if not result.error and decides not in result.metrics:
            raise InvalidValueError(
                f"`{self.plan.command}`: {run.title} has no value {decides!r}, by which the study compares."
                f"{did_you_mean(decides, list(result.metrics))} It has: {', '.join(sorted(result.metrics))}. The "
                "trained state is kept: the same command goes on with the study file put right."
            )
        self.plan.results.add(run, result)
        self.plan.again.discard(run.folder)
        if not self.keep and not result.error:
            discard_checkpoints(self.plan.results.folder / run.folder)
        tqdm.write(f"{run.title}: {self._words(result)}, {result.seconds:.0f} s", file=sys.stdout)
        self.report.write()

    def _result(self, run: Run, future: Future[Result]) -> Result:
        try:
            with _named(run):
                return future.result()
        except OSError:  # no fault of the run's
            raise
        except Exception as error:
            if not self.goes_on:
                raise
            words = next(iter(str(error).splitlines()), "")
            return Result.of(run, 0.0, {}, error=f"{type(error).__name__}: {words}")

    def _failed_before(self, run: Run) -> Result | None:
        """The result of a run that is built upon a failed one; an error if the other run's checkpoint is gone."""
        for plan in self.plan.before.values():
            first = plan.serving(run.cell, run.seed)
            found, place = plan.results.of(first), plan.results.folder / first.folder
            if found is not None and found.error:
                return Result.of(run, 0.0, {}, error=f"its run of {plan.study.name} failed: {found.error}")
            if not any(place.glob("*.ckpt")):
                raise InvalidValueError(
                    f"`reproduce`: {run.title} is built upon the checkpoint in {str(place)!r}, which is gone. Remove "
                    "that folder, and the same command makes it anew (without --known, which brings no checkpoints)."
                )
        return None

    def _words(self, result: Result) -> str:
        study, metrics = self.plan.study, result.metrics
        if result.error:
            return f"failed ({result.error})"
        if result.kind == TUNE:
            return f"{study.tune.by} {metrics[study.tune.by]:.4g}"
        shown = [measure for measure in study.measures.values() if measure.name in metrics]
        return ", ".join(f"{m.label} {m.scale * metrics[m.name]:.{m.digits}f}" for m in shown)
