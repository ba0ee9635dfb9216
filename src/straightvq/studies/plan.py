"""The runs of a study: which there are, in which order, and which of them are due."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from straightvq.errors import InvalidValueError
from straightvq.studies.results import FINAL, TUNE, Cell, Results, Run, by_place
from straightvq.studies.study import Config, Size, Study


@dataclass
class Plan:
    """What is asked for of a study, and which of it is due."""

    study: Study
    size: Size
    results: Results
    sources: Mapping[str, str | None]  # folder of each set, None for embedded data
    cells: list[Cell]  # what is run
    compared: list[Cell]  # what is reported
    seeds: int  # of each cell
    before: "dict[str, Plan]" = field(default_factory=dict)  # what is built upon, by the option that gets a folder
    command: str = "reproduce"  # whose errors these are
    again: set[Path] = field(default_factory=set)  # folders of the failed runs that are to be repeated

    def __iter__(self) -> Iterator[Run]:
        """For each network tuning first, then all rows with one seed, with the next, and so on."""
        for cells in by_place(self.cells):
            yield from self._runs(cells)

    def reported(self) -> Iterator[Run]:
        """The runs of everything that the study compares, tuning first."""
        return self._runs(self.compared)

    def _runs(self, cells: Sequence[Cell]) -> Iterator[Run]:
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
        tuning, by = self.tuning(cell), self.study.tune.by
        found = [result for run in tuning if (result := self.results.of(run)) and by in result.metrics]
        choose = max if self.study.headline.better == "higher" else min
        best = choose(found, key=lambda result: result.metrics[by]).setting if found else ""
        return self._run(cell, FINAL, seed, best or (tuning[0].setting if tuning else ""))

    def _run(self, cell: Cell, kind: str, number: int, setting: str) -> Run:
        study, size = self.study, self.size
        overlays = [study.base, size.models[cell.model].config, study.sets[cell.set].config, size.config]
        overlays += [study.rows[cell.row].config]
        overlays += [study.settings(cell.row)[setting]] if setting else []
        overlays += [size.tune or Config()] if kind == TUNE else []
        overlays = [overlay for overlay in overlays if overlay]  # an empty one is refused, and has nothing to say
        first = {option: plan.serving(cell, 0 if kind == TUNE else number) for option, plan in self.before.items()}
        upon = {name: (str(self.before[name].results.folder / run.folder), run.settings) for name, run in first.items()}
        return Run(cell, kind, number, setting, overlays, self.sources.get(cell.set), upon)

    def serving(self, cell: Cell, seed: int) -> Run:
        """The run that one of another study, of this cell and seed, is built upon: of the same cell and seed.

        But a study of a single network serves every network, and one of a single row serves every row, with seed 0.
        """
        rows, models = self.study.rows, self.size.models
        if len(models) == 1:
            cell = cell._replace(model=next(iter(models)))
        if len(rows) == 1 and cell.row not in rows:
            cell, seed = cell._replace(row=next(iter(rows))), 0
        known: list[tuple[str, Collection[str]]] = [("set", self.study.sets), ("network", models), ("row", rows)]
        for name, (what, names) in zip(cell, known, strict=True):
            if name not in names:
                raise InvalidValueError(f"`reproduce`: {self.study.name} is built upon, but has no {what} {name!r}.")
        return self.final(cell, seed)

    def is_due(self, run: Run) -> bool:
        return self.results.of(run) is None or run.folder in self.again

    def is_ready(self, run: Run) -> bool:
        """Whether all is known by which its setting is chosen."""
        return run.kind == TUNE or not any(map(self.is_due, self.tuning(run.cell)))

    def repeat_failed(self) -> None:
        self.again = {run.folder for run in self if (found := self.results.of(run)) and found.error}

    def refuse_stale(self) -> None:
        stale = [run.title for run in self if self.results.is_stale(run)]
        if stale:
            raise InvalidValueError(
                f"`{self.command}`: {len(stale)} result(s) in {str(self.results.folder)!r} are of other settings than "
                f"the study has now: {', '.join(stale[:3])}{' and so on' if len(stale) > 3 else ''}. Repeat them with "
                "--rerun, take a new folder with --out, or give the options they were made with."
            )

    def listing(self) -> str:
        """All runs, what is finished, and the time that the rest will take."""
        lines, times = [], []
        for run in self:
            state = "finished"
            if self.is_due(run):
                seconds = self._estimate(run)
                times.append(seconds)
                state = "other settings" if self.results.is_stale(run) else "due"
                state += "" if seconds is None else f", about {seconds:.0f} s"
            lines.append(f"  {run.title}: {state}")
        left, unknown = sum(filter(None, times)), times.count(None)
        duration = f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min"
        rest = f", and {unknown} runs of unknown length" if unknown else ""
        return "\n".join([*lines, f"{len(lines)} runs in {self.results.folder}; about {duration} to go{rest}", ""])

    def _estimate(self, run: Run) -> float | None:
        """Mean of this row's finished runs in this network, else of all rows', else what the study file says."""
        found = [result for result in self.results.values() if result.kind == run.kind and not result.error]
        for part in (slice(3), slice(2)):
            taken = [result.seconds for result in found if result.cell[part] == run.cell[part]]
            if taken:
                return fmean(taken)
        said = self.size.models[run.cell.model].seconds
        return said / 2 if said and run.kind == TUNE else said
