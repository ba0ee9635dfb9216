"""One call reproduces a study: checks what is asked for, runs what is missing, writes the report."""

import contextlib
import dataclasses
import errno
import importlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from straightvq.errors import InvalidValueError
from straightvq.nn.part import check_int
from straightvq.studies.figures import draw
from straightvq.studies.report import Context, write_report
from straightvq.studies.results import Results
from straightvq.studies.run import Cell
from straightvq.studies.study import Size, Study, unknown
from straightvq.studies.study_file import load_study
from straightvq.studies.transfer import take_over
from straightvq.studies.work import Work

__all__ = ["reproduce"]


def reproduce(
    name: str,
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
) -> Path:
    """Runs what is missing of a study and writes its report.

    Finished runs are not repeated, a stopped one goes on from its last checkpoint, so the same call can be made until
    nothing is left. Several processes share the work if they are given the same call: a run is left to the process that
    is at it. The report is of all that is finished on the sets named, and on others that have results here.

    Args:
        name: of a packaged study, or a YAML file.
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

    Returns:
        The folder of the results: ``report.md``, ``report.tex``, ``results.csv``, figures, and ``runs``; and a folder
        like it for each study that this one is built upon.

    Raises:
        ValueError: for what is not there, for a study file with mistakes, for results of other settings, and when a
            result cannot be written.
        KeyboardInterrupt: when stopped; says how to go on.
    """
    study = load_study(name)
    if study.script is not None:
        given = (size, data, sets, models, rows, seeds, precision, known)
        if dry_run or keep or rerun or any(option is not None for option in given):
            raise InvalidValueError(
                f"`reproduce`: the study {study.name} is a single figure and takes no option but --out."
            )
        return _run_script(study, out)
    size = "small" if size is None else size
    if size not in study.sizes:
        raise unknown("the size", size, study.sizes)
    chosen = study.sizes[size].at_precision(precision)
    seeds = chosen.seeds if seeds is None else check_int("reproduce", "seeds", seeds, 1)
    names, remark = _sets(study, chosen, data, sets)
    sources = _sources(study, names, data)
    cells = study.cells(chosen, names, models, rows)
    folder = Path("studies") / f"{study.name}-{size}" if out is None else out
    results = Results(folder)
    shown = [name for name in study.sets if name in names or name in {r.set for r in results}]
    everything = study.cells(chosen, shown, None, None)
    work = Work(study, chosen, results, sources, cells, everything, seeds, rerun=rerun)
    for option, other in chosen.follows.items():
        work.before[option] = _preparation(work, other, data, precision)
    parts = [*work.before.values(), work]
    if not dry_run:
        for part in parts:
            part.refuse_stale()
    if remark:
        sys.stdout.write(remark + "\n")
    if known is not None:
        for part in parts:
            place = known if part is work else known / part.study.name
            if part is work or place.is_dir():
                with _protected(part.folder, part.results):
                    sys.stdout.write(take_over(part, place, write=not dry_run) + "\n")
    for part in parts:
        part.check()
    if dry_run:
        sys.stdout.write("".join(part.listing() for part in parts))
        return folder
    options = [] if data is None else ["--data", "SETS"]  # a place on this machine means nothing to a reader
    options += [] if set(shown) in (set(chosen.sets), set(chosen.without_data)) else ["--sets", *shown]
    options += [] if seeds == chosen.seeds else ["--seeds", str(seeds)]
    options += [] if precision is None else ["--precision", precision]
    command = shlex.join(["straightvq", "reproduce", name, "--size", size, *options])
    for part in parts:
        # The checkpoints of what comes before are what the study is built upon.
        _run(part, Context(part.study, part.size, command, remark, part.seeds), keep=keep or part is not work)
    return folder


def _preparation(work: Work, name: str, data: Path | None, precision: str | None) -> Work:
    """The part of another study that a study is built upon."""
    study = load_study(name)
    if work.size.name not in study.sizes:
        raise unknown(f"the size of {study.name},", work.size.name, study.sizes)
    size = study.sizes[work.size.name].at_precision(precision)
    if size.follows:
        raise InvalidValueError(f"`reproduce`: {study.name} is built upon, and must not follow another study itself.")

    def serving(cells: Sequence[Cell]) -> list[Cell]:
        return list(dict.fromkeys(study.serving(size, cell, 0)[0] for cell in cells))

    cells, everything = serving(work.cells), serving(work.everything)
    seeds = 1 + max(study.serving(size, cell, work.seeds - 1)[1] for cell in work.cells)
    sources = _sources(study, list(work.sources), data)
    results = Results(work.folder / study.name)
    return Work(study, size, results, sources, cells, everything, seeds, rerun=work.rerun)


def _run(work: Work, context: Context, *, keep: bool) -> None:
    folder = work.folder

    def report(draws: bool = False) -> None:
        found, left_out = work.reported()
        now = dataclasses.replace(context, left_out=left_out)
        if draws:
            draw(folder, now, found, work.everything)
        write_report(folder, now, found, work.everything)

    with _protected(folder, work.results):
        try:
            work.run(keep, report)
        finally:
            if len(work.results):
                work.results.write()
                report(draws=True)
    sys.stdout.write(f"{folder / 'report.md'}\n")


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
            raise InvalidValueError(
                f"`reproduce`: {study.name} in size {size.name} needs {', '.join(outside)}: pass --data with the "
                f"folder that holds {', '.join(str(study.sets[name].folder) for name in outside)}."
            )
        names = list(size.without_data)
        remark = (
            f"No --data was given: embedded {', '.join(names)} stand in for {', '.join(outside)}, so that the numbers "
            "cannot be compared with the paper's."
        )
    return list(dict.fromkeys(names)), remark


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
def _protected(folder: Path, results: Results) -> Iterator[None]:
    """Says what is safe and how to go on when a study is stopped or its disk is full."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning leaves by the second
        raise KeyboardInterrupt(
            f"stopped; {len(results)} finished runs are in {folder}. The same command goes on where this one was."
        ) from stop
    except OSError as error:
        raise _unwritable(
            error, f"The {len(results)} finished runs in {str(folder)!r} are intact; the same command goes on"
        ) from error


def _unwritable(error: OSError, way_out: str) -> ValueError:
    is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    condition = "there is room" if is_full else "that is put right"
    return InvalidValueError(f"`reproduce`: cannot write the results: {error}. {way_out} once {condition}.")


def _run_script(study: Study, out: Path | None) -> Path:
    script = _script(study)
    folder = Path("studies") / study.name if out is None else out
    try:
        script(folder, study.title, study.about)
    except OSError as error:
        raise _unwritable(error, "The same command makes them anew") from error
    sys.stdout.write(f"{folder / 'report.md'}\n")
    return folder


def _script(study: Study) -> Callable[[Path, str, str], object]:
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
    return cast(Callable[[Path, str, str], object], function)
