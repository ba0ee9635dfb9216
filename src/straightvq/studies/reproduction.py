"""One call reproduces a study: checks what is asked for, runs what is missing, writes the report."""

import contextlib
import errno
import importlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from straightvq.errors import InvalidValueError
from straightvq.nn.part import check_int
from straightvq.studies.engine import Engine, check
from straightvq.studies.pictures import draw
from straightvq.studies.plan import Cell, Plan, serving
from straightvq.studies.report import Report
from straightvq.studies.results import Results
from straightvq.studies.study import Size, Study, unknown
from straightvq.studies.study_file import load_study
from straightvq.studies.transfer import Known
from straightvq.studies.workers import executor

LOCK = ".reproduce.lock"


def reproduce(
    study: str | Study,
    *,
    size: str | None = None,
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
    known: Path | None = None,
    workers: int = 1,
) -> Path:
    """Runs what is missing of a study and writes its report.

    Finished runs are not repeated, a stopped one goes on from its last checkpoint, so the same call can be made until
    nothing is left. The report is of all that is finished on the sets named, and on others that have results here.

    Args:
        study: name of a packaged one, a YAML file, or one made in Python.
        size: one of the study's sizes; None takes "small".
        out: folder of the results; None takes ``studies/<name>-<size>``.
        data: folder that holds the sets; None takes embedded data where the study has some.
        sets, models, rows: names of those to run; None for all.
        seeds: number of seeds, at least 1; None takes the size's.
        precision: "32-true" or "bf16-mixed"; None takes the size's, else 32 bits. It is one of a result's settings.
        dry_run: only lists the runs, with an estimate of the time.
        keep: whether the checkpoints of finished runs are kept; those that other runs build upon always are.
        rerun: repeats runs that failed, and those of other settings than the study's, which are refused otherwise.
        known: results of the same study from elsewhere, a folder with their ``results.csv``. Those of the same settings
            are taken over, tables, curve and samples without checkpoints, and not run again.
        workers: runs at a time; more than one need Ray, which shares the processors and GPUs among them.

    Returns:
        The folder of the results: ``report.md``, ``report.tex``, ``results.csv``, figures, and ``runs``; and a folder
        like it for each study that this one is built upon.

    Raises:
        ValueError: for what is not there, for a study file with mistakes, for results of other settings, for a folder
            that another process is at, and when a result cannot be written.
        KeyboardInterrupt: when stopped; says how to go on.
    """
    source = study if isinstance(study, str) else study.name
    study = load_study(study) if isinstance(study, str) else study
    if study.script is not None:
        given = (size, data, sets, models, rows, seeds, precision, known)
        if dry_run or keep or rerun or workers != 1 or any(option is not None for option in given):
            raise InvalidValueError(
                f"`reproduce`: the study {study.name} is a single figure and takes no option but --out."
            )
        return _run_script(study, Path("studies") / study.name if out is None else out)
    check_int("reproduce", "workers", workers, 1)
    size = "small" if size is None else size
    out = Path("studies") / f"{study.name}-{size}" if out is None else out
    if workers > 1:  # which may be started elsewhere
        out, data = out.resolve(), None if data is None else data.resolve()
    chosen = _size(study, size, "the size", precision)
    plan, remark = _plan(study, chosen, out, data, sets, models, rows, seeds)
    for option, other in chosen.follows.items():
        plan.before[option] = _preparation(plan, other, data, precision)
    plans = [*plan.before.values(), plan]
    for part in plans:
        if rerun:
            part.repeat_failed()
        elif not dry_run:
            part.refuse_stale()
    sys.stdout.write(f"{remark}\n" if remark else "")
    taken = []
    if known is not None:
        for part in plans:
            place = known if part is plan else known / part.study.name
            if part is plan or place.is_dir():
                taken.append((part, Known(place)))
                sys.stdout.write(f"{taken[-1][1].tell(part)}\n")
    for part in plans:
        check(part)
    if dry_run:
        sys.stdout.write("".join(part.listing() for part in plans))
        return out
    options = [] if data is None else ["--data", "SETS"]  # a place on this machine means nothing to a reader
    shown = list(dict.fromkeys(cell.set for cell in plan.compared))
    options += [] if set(shown) in (set(chosen.sets), set(chosen.without_data)) else ["--sets", *shown]
    options += [] if plan.seeds == chosen.seeds else ["--seeds", str(plan.seeds)]
    options += [] if precision is None else ["--precision", precision]
    command = shlex.join(["straightvq", "reproduce", source, "--size", size, *options])
    with executor(workers) as pool, _protected(plan), _alone(out):
        for part, there in taken:
            there.copy(part)
        for part in plans:
            part.results.refresh()
            report = Report(part, command, remark)
            # The checkpoints of what comes before are what the study is built upon.
            engine = Engine(part, pool, workers, keep or part is not plan, report.write)
            try:
                engine.run()
            finally:
                if len(part.results):
                    part.results.write()
                    draw(part)
                    report.write()
            sys.stdout.write(f"{part.results.folder / 'report.md'}\n")
    return out


def _size(study: Study, name: str, what: str, precision: str | None) -> Size:
    if name not in study.sizes:
        raise unknown(what, name, study.sizes)
    return study.sizes[name].at_precision(precision)


def _plan(
    study: Study,
    size: Size,
    out: Path,
    data: Path | None,
    sets: Sequence[str] | None,
    models: Sequence[str] | None,
    rows: Sequence[str] | None,
    seeds: int | None,
) -> tuple[Plan, str]:
    """What is asked for, and a remark if embedded data take the place of others."""
    for name in sets or []:
        if name not in study.sets:
            raise unknown("`--sets`", name, study.sets)
    names, remark = list(dict.fromkeys(size.sets if sets is None else sets)), ""
    outside = [name for name in names if study.sets[name].folder is not None]
    if outside and data is None:
        if not size.without_data or sets is not None:
            raise InvalidValueError(
                f"`reproduce`: {study.name} in size {size.name} needs {', '.join(outside)}: pass --data with the "
                f"folder that holds {', '.join(str(study.sets[name].folder) for name in outside)}."
            )
        names = list(dict.fromkeys(size.without_data))
        remark = (
            f"No --data was given: embedded {', '.join(names)} stand in for {', '.join(outside)}, so that the numbers "
            "cannot be compared with the paper's."
        )
    seeds = size.seeds if seeds is None else check_int("reproduce", "seeds", seeds, 1)
    models, rows = _chosen("--models", models, size.models), _chosen("--rows", rows, study.rows)
    sources, results = _sources(study, names, data), Results(out)
    shown = [name for name in study.sets if name in names or name in {found.set for found in results}]
    cells = [Cell(place, model, row) for place in names for model in models for row in rows]
    compared = [Cell(place, model, row) for place in shown for model in size.models for row in study.rows]
    return Plan(study, size, results, sources, cells, compared, seeds), remark


def _chosen(option: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The named ones, in the order of the study."""
    known = list(known)
    for name in names or []:
        if name not in known:
            raise unknown(f"`{option}`", name, known)
    return [name for name in known if names is None or name in names]


def _preparation(plan: Plan, name: str, data: Path | None, precision: str | None) -> Plan:
    """The part of another study that a plan is built upon."""
    study = load_study(name)
    size = _size(study, plan.size.name, f"the size of {study.name},", precision)
    if size.follows:
        raise InvalidValueError(f"`reproduce`: {study.name} is built upon, and must not follow another study itself.")

    def served(cells: list[Cell]) -> list[Cell]:
        return list(dict.fromkeys(serving(study, size, cell, 0)[0] for cell in cells))

    seeds = 1 + max(serving(study, size, cell, plan.seeds - 1)[1] for cell in plan.cells)
    sources = _sources(study, list(plan.sources), data)
    results = Results(plan.results.folder / study.name)
    return Plan(study, size, results, sources, served(plan.cells), served(plan.compared), seeds)


def _sources(study: Study, names: Sequence[str], data: Path | None) -> dict[str, str | None]:
    """Place of each set, None for embedded ones."""
    places: dict[str, str | None] = {}
    for name in names:
        folder = study.sets[name].folder
        places[name] = None if folder is None or data is None else str(data / folder)
        if places[name] is not None and not Path(str(places[name])).is_dir():
            raise InvalidValueError(
                f"`reproduce`: {study.name} needs the set {name} in {places[name]!r}, which is not there. "
                "--data must be the folder that holds the sets' folders."
            )
    return places


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuses a folder that another process is at. The operating system gives the lock back if this one dies."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            yield
    except filelock.Timeout as error:
        raise InvalidValueError(
            f"`reproduce`: another process is at the study in {str(folder)!r}. Wait for it, take a folder of your own "
            "with --out, or let one process do several runs at a time with --workers."
        ) from error


@contextlib.contextmanager
def _protected(plan: Plan) -> Iterator[None]:
    """Says what is safe and how to go on when a study is stopped or its disk is full."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning leaves by the second
        finished, folder = len(plan.results), plan.results.folder
        raise KeyboardInterrupt(
            f"stopped; {finished} finished runs are in {folder}. The same command goes on where this one was."
        ) from stop
    except OSError as error:
        place = str(plan.results.folder)
        way_out = f"The {len(plan.results)} finished runs in {place!r} are intact; the same command goes on"
        raise _unwritable(error, way_out) from error


def _unwritable(error: OSError, way_out: str) -> InvalidValueError:
    is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    condition = "there is room" if is_full else "that is put right"
    return InvalidValueError(f"`reproduce`: cannot write the results: {error}. {way_out} once {condition}.")


def _run_script(study: Study, folder: Path) -> Path:
    script = _script(study)
    try:
        script(folder, study.title, study.about)
    except OSError as error:
        raise _unwritable(error, "The same command makes them anew") from error
    sys.stdout.write(f"{folder / 'report.md'}\n")
    return folder


def _script(study: Study) -> Callable[[Path, str, str], Any]:
    module, _, name = str(study.script).rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidValueError(
            f"`reproduce`: `script` of {study.name} must be the class path of a function. Got {study.script!r}: "
            f"{error}."
        ) from error
    if not callable(function):
        raise InvalidValueError(f"`reproduce`: `script` of {study.name} must be a function. Got {study.script!r}.")
    return function
