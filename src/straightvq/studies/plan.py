"""The runs of a study: which there are, in which order, and which of them are due."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from straightvq.errors import InvalidValueError
from straightvq.studies.results import Results
from straightvq.studies.run import FINAL, TUNE, Cell, Run
from straightvq.studies.study import Config, Size, Study


@dataclass
class Plan:
    """What is asked for of a study, and which of it is due.

    Attributes:
        study, size: what is run.
        results: what is finished.
        sources: folder of each set, None for embedded data.
        cells: what is run.
        compared: what is reported.
        seeds: of each cell.
        before: plans of the studies that these runs are built upon, by the option that gets a run's folder.
        again: folders of the failed runs that are to be repeated.
    """

    study: Study
    size: Size
    results: Results
    sources: Mapping[str, str | None]
    cells: list[Cell]
    compared: list[Cell]
    seeds: int
    before: "dict[str, Plan]" = field(default_factory=dict)
    again: set[Path] = field(default_factory=set)

    def __iter__(self) -> Iterator[Run]:
        """For each network tuning first, then all rows with one seed, with the next, and so on."""
        for place in dict.fromkeys(cell.place for cell in self.cells):
            yield from self._runs([cell for cell in self.cells if cell.place == place])

    def reported(self) -> Iterator[Run]:
        """The runs of everything that the study compares, tuning first."""
        return self._runs(self.compared)

    def _runs(self, cells: list[Cell]) -> Iterator[Run]:
        for cell in cells:
            yield from self.tuning(cell)
        for seed in range(self.seeds):
            for cell in cells:
                yield self.final(cell, seed)

    def tuning(self, cell: Cell) -> list[Run]:
        """One run for each setting, none where the size or the row is not tuned."""
        settings = self.study.settings(cell.row) if self.size.tune is not None else {}
        return [self._run(cell, TUNE, number, setting) for number, setting in enumerate(settings)]

    def final(self, cell: Cell, seed: int) -> Run:
        """The run of one seed, with the setting that tuning chose; while that is not finished, the first."""
        tuning, measure, by = self.tuning(cell), self.study.headline, self.study.tune.by
        found = [result for run in tuning if (result := self.results.get(run)) and by in result.metrics]
        choose = max if measure.better == "higher" else min
        best = choose(found, key=lambda result: result.metrics[by]).setting if found else ""
        return self._run(cell, FINAL, seed, best or (tuning[0].setting if tuning else ""))

    def _run(self, cell: Cell, kind: str, number: int, setting: str) -> Run:
        study, size, upon = self.study, self.size, {}
        overlays = [study.base, size.models[cell.model].config, study.sets[cell.set].config, size.config]
        overlays += [study.rows[cell.row].config]
        overlays += [study.settings(cell.row)[setting]] if setting else []
        overlays += [size.tune or Config()] if kind == TUNE else []
        for option, plan in self.before.items():
            first = plan.serving(cell, 0 if kind == TUNE else number)
            upon[option] = (str(plan.results.folder / first.folder), first.settings)
        # An empty configuration is refused, and has nothing to say.
        parts = [overlay for overlay in overlays if overlay]
        return Run(cell, kind, number, setting, parts, self.sources.get(cell.set), upon)

    def serving(self, cell: Cell, seed: int) -> Run:
        """The run of this plan that one of another study is built upon."""
        return self.final(*serving(self.study, self.size, cell, seed))

    def is_due(self, run: Run) -> bool:
        return self.results.get(run) is None or run.folder in self.again

    def is_ready(self, run: Run) -> bool:
        """Whether all is known by which its setting is chosen."""
        return run.kind == TUNE or not any(map(self.is_due, self.tuning(run.cell)))

    def repeat_failed(self) -> None:
        self.again = {run.folder for run in self if (found := self.results.get(run)) and found.error}

    def refuse_stale(self) -> None:
        stale = [run.title for run in self if self.results.is_stale(run)]
        if stale:
            raise InvalidValueError(
                f"`reproduce`: {len(stale)} result(s) in {str(self.results.folder)!r} are of other settings than the "
                f"study has now: {', '.join(stale[:3])}{' and so on' if len(stale) > 3 else ''}. Repeat them with "
                "--rerun, take a new folder with --out, or give the --precision they were made with."
            )

    def listing(self) -> str:
        """All runs, what is finished, and the time that the rest will take."""
        lines, seconds, unknown = [], 0.0, 0
        for run in self:
            estimate = self._estimate(run)
            state, time = "finished", ""
            if self.is_due(run):
                state = "other settings" if self.results.is_stale(run) else "due"
                time = "" if estimate is None else f", about {estimate:.0f} s"
                seconds += estimate or 0.0
                unknown += estimate is None
            lines.append(f"  {run.title}: {state}{time}")
        rest = f", and {unknown} runs of unknown length" if unknown else ""
        duration = f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
        return "\n".join([*lines, f"{len(lines)} runs in {self.results.folder}; about {duration} to go{rest}", ""])

    def _estimate(self, run: Run) -> float | None:
        """Of this network's finished runs, its own row's if there are some; else what the study file says."""
        same = [r for r in self.results if r.cell.place == run.cell.place and r.kind == run.kind and not r.error]
        taken = [r.seconds for r in same if r.row == run.cell.row] or [r.seconds for r in same]
        said = self.size.models[run.cell.model].seconds
        if taken:
            return sum(taken) / len(taken)
        return said / 2 if said and run.kind == TUNE else said


def serving(study: Study, size: Size, cell: Cell, seed: int) -> tuple[Cell, int]:
    """Cell and seed of the run of a study that one of another study, of ``cell`` and ``seed``, builds upon.

    It has the same set, network, row and seed. A study of a single network serves every network; one of a single row
    serves every row, with seed 0.

    Raises:
        ValueError: if there is none.
    """
    model = next(iter(size.models)) if len(size.models) == 1 else cell.model
    row, seed = (cell.row, seed) if cell.row in study.rows or len(study.rows) > 1 else (next(iter(study.rows)), 0)
    known: dict[str, tuple[str, Mapping[str, Any]]] = {
        "set": (cell.set, study.sets), "network": (model, size.models), "row": (row, study.rows)
    }  # fmt: skip
    for what, (name, names) in known.items():
        if name not in names:
            raise InvalidValueError(f"`reproduce`: {study.name} is built upon, but has no {what} {name!r}.")
    return Cell(cell.set, model, row), seed
