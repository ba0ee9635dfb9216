"""One call reproduces a study: checks what is asked for, runs what is missing, writes the report."""

import contextlib
import dataclasses
import errno
import itertools
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import filelock

from straightvq.errors import InvalidValueError
from straightvq.executors import executor
from straightvq.nn.part import check_int
from straightvq.studies.engine import Engine, check
from straightvq.studies.plan import Plan
from straightvq.studies.report.page import Report
from straightvq.studies.results import Cell, Known, Results
from straightvq.studies.study import Config, Script, Size, Study, load_study, unknown

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

    Finished runs are not repeated and a stopped one resumes from its last checkpoint, so the same call can be made
    until nothing is left. The report shows all that is finished here, on the sets named and on others with results.

    Args:
        study: name of a packaged one, a YAML file, or one made in Python.
        size: one of the study's sizes; None takes "small".
        out: folder of the results; None takes ``studies/<name>-<size>``.
        data: folder that holds the sets; None takes embedded data where the study has some.
        sets, models, rows: names of those to run; None for all.
        seeds: number of seeds, at least 1; None takes the size's.
        precision: "32-true" or "bf16-mixed"; None takes the size's, else 32 bits. It is one of a result's settings.
        dry_run: only lists the runs, with an estimate of the time.
        keep: keeps the checkpoints of finished runs; those that other runs build upon always stay.
        rerun: repeats runs that failed, and those of other settings than the study's, which are refused otherwise.
        known: results of the same study from elsewhere, a folder with their ``results.csv``. Those of the same settings
            are taken over, tables, curve and samples without checkpoints, and not run again.
        workers: runs at a time; more than one need Ray, which shares the processors and GPUs among them.

    Returns:
        The folder of the results: ``report.md``, ``report.tex``, ``results.csv``, figures, and ``runs``; and a folder
        like it for each study that this one is built upon.

    Raises:
        ValueError: for what is not there, mistakes in a study file, results of other settings, a folder that another
            process uses, and a result that cannot be written.
        KeyboardInterrupt: when stopped; says how to go on.
    """
    source, study = (study, load_study(study)) if isinstance(study, str) else (study.name, study)
    if study.script is not None:
        allowed = {"--size": study.sizes, "--data": study.sets, "--sets": study.sets, "--out": True}
        given = {"--size": size, "--data": data, "--sets": sets, "--models": models, "--rows": rows, "--seeds": seeds}
        given |= {"--precision": precision, "--known": known}
        refused = [option for option, value in given.items() if value is not None and not allowed.get(option)]
        if dry_run or keep or rerun or workers != 1 or refused:
            *others, last = [option for option in allowed if allowed[option]]
            takes = f"{', '.join(others)} and {last}" if others else last
            raise InvalidValueError(
                f"`reproduce`: the study {study.name} is one script and takes no option but {takes}."
            )
        return _run_script(study, study.script, size, out, data, sets)
    check_int("reproduce", "workers", workers, 1)
    chosen = _size(study, "small" if size is None else size, precision)
    out = Path("studies") / f"{study.name}-{chosen.name}" if out is None else out
    if workers > 1:  # which may be started elsewhere
        out, data = out.resolve(), None if data is None else data.resolve()
    names, remark = _sets(study, chosen, data, sets)
    seeds = chosen.seeds if seeds is None else check_int("reproduce", "seeds", seeds, 1)
    cells = _cells(names, _chosen("--models", models, chosen.models), _chosen("--rows", rows, study.rows))
    results = Results(out)
    shown = [name for name in study.sets if name in {*names, *(found.set for found in results.values())}]
    compared = _cells(shown, chosen.models, study.rows)
    plan = Plan(study, chosen, results, _sources(study, names, data), cells, compared, seeds)
    for option, other in chosen.follows.items():
        plan.before[option] = _preparation(plan, load_study(other), data, precision)
    plans = [*plan.before.values(), plan]
    for part in plans:
        if rerun:
            part.repeat_failed()
        elif not dry_run:
            part.refuse_stale()
    sys.stdout.write(f"{remark}\n" if remark else "")
    taken = [] if known is None else _taken(plan, known)
    for part in plans:
        check(part)
    if dry_run:
        sys.stdout.write("".join(part.listing() for part in plans))
        return out
    options = [] if data is None else ["--data", "SETS"]  # a place on this machine means nothing to a reader
    options += [] if set(shown) in (set(chosen.sets), set(chosen.without_data)) else ["--sets", *shown]
    options += [] if seeds == chosen.seeds else ["--seeds", str(seeds)]
    options += [] if precision is None else ["--precision", precision]
    command = shlex.join(["straightvq", "reproduce", source, "--size", chosen.name, *options])
    with executor(workers) as pool, guarded(results):
        for part, there in taken:
            there.copy(part.results)
        for part in plans:
            # The checkpoints of what comes before are what the study is built upon.
            Engine(part, pool, workers, keep or part is not plan, Report(part, command, remark)).run()
            sys.stdout.write(f"{part.results.folder / 'report.md'}\n")
    return out


def _size(study: Study, name: str, precision: str | None) -> Size:
    """A size of a study, in another floating-point precision if one is given."""
    if name not in study.sizes:
        raise unknown(f"in {study.name}, the size", name, study.sizes)
    size = study.sizes[name]
    overlay = {} if precision is None else {"trainer.precision": precision}
    return dataclasses.replace(size, config=Config({**size.config, **overlay}))


def _sets(study: Study, size: Size, data: Path | None, sets: Sequence[str] | None) -> tuple[list[str], str]:
    """Names of the sets; and a remark if embedded data take the place of others."""
    names = list(dict.fromkeys(size.sets if sets is None else sets))
    _chosen("--sets", names, study.sets)
    folders = {name: folder for name in names if (folder := study.sets[name].folder) is not None}
    if not folders or data is not None:
        return names, ""
    if not size.without_data or sets is not None:
        raise InvalidValueError(
            f"`reproduce`: {study.name} in size {size.name} needs {', '.join(folders)}: pass --data with the "
            f"folder that holds {', '.join(folders.values())}."
        )
    return size.without_data, (
        f"No --data was given: embedded {', '.join(size.without_data)} stand in for {', '.join(folders)}, so that the "
        "numbers cannot be compared with the paper's."
    )


def _sources(study: Study, names: Iterable[str], data: Path | None) -> dict[str, str | None]:
    """Place of each set, None for embedded ones."""
    places: dict[str, str | None] = dict.fromkeys(names)
    for name in places:
        folder = study.sets[name].folder
        if folder is not None and data is not None:
            places[name] = str(data / folder)
            if not (data / folder).is_dir():
                raise InvalidValueError(
                    f"`reproduce`: {study.name} needs the set {name} in {places[name]!r}, which is not there. "
                    "--data must be the folder that holds the sets' folders."
                )
    return places


def _chosen(option: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The named ones, in the order of the study; None for all."""
    known = list(known)
    for name in names or []:
        if name not in known:
            raise unknown(f"`{option}`", name, known)
    return [name for name in known if names is None or name in names]


def _cells(sets: Iterable[str], models: Iterable[str], rows: Iterable[str]) -> list[Cell]:
    return [Cell(*names) for names in itertools.product(sets, models, rows)]


def _preparation(plan: Plan, study: Study, data: Path | None, precision: str | None) -> Plan:
    """The part of another study that a plan is built upon."""
    size = _size(study, plan.size.name, precision)
    if size.follows:
        raise InvalidValueError(f"`reproduce`: {study.name} is built upon, and must not follow another study itself.")
    results, sources = Results(plan.results.folder / study.name), _sources(study, plan.sources, data)
    first = Plan(study, size, results, sources, [], [], 1)
    first.cells = list(dict.fromkeys(first.serving(cell, 0).cell for cell in plan.cells))
    first.compared = list(dict.fromkeys(first.serving(cell, 0).cell for cell in plan.compared))
    first.seeds = 1 + max(first.serving(cell, plan.seeds - 1).number for cell in plan.cells)
    return first


def _taken(plan: Plan, known: Path) -> list[tuple[Plan, Known]]:
    """What another folder knows of a plan and, in folders below it, of those that it is built upon."""
    places = [(part, known / part.study.name) for part in plan.before.values()]
    taken = [(part, Known(place)) for part, place in [*places, (plan, known)] if part is plan or place.is_dir()]
    for part, there in taken:
        sys.stdout.write(f"{there.tell(part.results, part.reported())}\n")
    return taken


class Finished(Protocol):
    """What is finished in a folder."""

    folder: Path

    def __len__(self) -> int: ...


@contextlib.contextmanager
def guarded(results: Finished, command: str = "reproduce") -> Iterator[None]:
    """Lets one process at a time into a folder; says what is safe and how to go on when it is stopped."""
    folder = results.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The operating system gives the lock back if this process dies.
        with filelock.FileLock(folder / LOCK, timeout=0):
            yield
    except filelock.Timeout as error:
        raise InvalidValueError(
            f"`{command}`: another process is at the study in {str(folder)!r}. Wait for it, take a folder of your own "
            "with --out, or let one process do several runs at a time with --workers."
        ) from error
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning leaves by the second
        raise KeyboardInterrupt(
            f"stopped; {len(results)} finished runs are in {folder}. The same command goes on where this one was."
        ) from stop
    except OSError as error:
        way_out = f"The {len(results)} finished runs in {str(folder)!r} are intact; the same command goes on"
        raise _unwritable(error, way_out, command) from error


def _unwritable(error: OSError, way_out: str, command: str = "reproduce") -> InvalidValueError:
    is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    condition = "there is room" if is_full else "that is put right"
    return InvalidValueError(f"`{command}`: cannot write the results: {error}. {way_out} once {condition}.")


def _run_script(
    study: Study, script: Script, size: str | None, out: Path | None, data: Path | None, sets: Sequence[str] | None
) -> Path:
    chosen: list[Any] = [_size(study, "small" if size is None else size, None)] if study.sizes else []
    folder = Path("studies", "-".join([study.name, *(one.name for one in chosen)])) if out is None else out
    if study.sets:
        names, remark = _sets(study, chosen[0], data, sets)
        sys.stdout.write(f"{remark}\n" if remark else "")
        chosen.append(_sources(study, names, data))
    try:
        script(folder, study.title, study.about, *chosen)
    except OSError as error:
        raise _unwritable(error, "The same command makes them anew") from error
    sys.stdout.write(f"{folder / 'report.md'}\n")
    return folder
