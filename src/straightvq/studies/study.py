"""A study: what is compared, on what, in which sizes; and the runs that follow from it."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

from straightvq.errors import InvalidValueError
from straightvq.studies.run import FINAL, TUNE, Cell, Config, Run, slug

__all__ = ["DataSet", "Measure", "Model", "Row", "Size", "Study", "study_names"]


@dataclass(frozen=True)
class Measure:
    """One column of the report.

    Attributes:
        name: what the task logs, such as ``test/accuracy``.
        label: what the report calls it; also the key of the paper's values.
        better: "higher", "lower", or "" where neither is.
        compare: "difference" or "ratio" to the first row, whichever carries over from one set to another.
        scale: factor between the logged and the reported value.
        digits: after the decimal point.
        unit: behind the label.
    """

    name: str
    label: str
    better: Literal["higher", "lower", ""] = ""
    compare: Literal["difference", "ratio"] = "difference"
    scale: float = 1.0
    digits: int = 1
    unit: str = ""

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: of the row.
        config: overlay that makes the method.
        paper: the paper's values by model or set, then by the label of the measure, in reported units.
        settings: what is tried in tuning, overlays by name; None takes the study's.
        bound: whether it is what the network can do at best, without the method; it is never named the best row.
        against: other rows that it is compared with, beside the first one.
    """

    name: str
    config: Config
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, Config] | None = None
    bound: bool = False
    against: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Model:
    """One network in one size.

    Attributes:
        name: of the network.
        config: overlay that makes it.
        seconds: what one run took where it was measured; for estimates only.
    """

    name: str
    config: Config
    seconds: float | None = None


@dataclass(frozen=True)
class DataSet:
    """One set of pictures.

    Attributes:
        name: of the set.
        config: overlay that reads it.
        folder: where it lies below the folder of all sets; None for embedded data.
    """

    name: str
    config: Config
    folder: str | None = None


@dataclass(frozen=True)
class Size:
    """How large the study is run.

    Attributes:
        name: of the size.
        about: what it is and what it needs, for the report.
        sets: names of the sets.
        without_data: names of the embedded sets that take their place where no folder of sets is given.
        models: in order.
        seeds: number of seeds of each row.
        config: overlay.
        tune: overlay for the runs of tuning, usually half as long; None for no tuning.
        follows: studies whose runs must be there first, by the option that gets a run's folder, such as
            ``model.init_args.tokenizer``. Which run serves which says `Study.serving`.
    """

    name: str
    about: str
    sets: list[str]
    without_data: list[str]
    models: dict[str, Model]
    seeds: int
    config: Config
    tune: Config | None
    follows: dict[str, str] = field(default_factory=dict)

    def at_precision(self, precision: str | None) -> "Size":
        """The same in another floating-point precision, such as "bf16-mixed"; None changes nothing."""
        if precision is None:
            return self
        return dataclasses.replace(self, config=expanded(self.config | {"trainer.precision": precision}))


@dataclass(frozen=True)
class Study:
    """What a study file says; `study_file` reads it.

    Attributes:
        name: that of the file.
        title: headline of the report.
        about: introduction of the report, Markdown.
        measures: columns of the report; the first is the headline.
        tune_by: the logged value by which tuning chooses, compared as the headline is.
        settings: what tuning tries, overlays by name.
        base: configuration under all others.
        sets, rows, sizes: by name.
        script: instead of runs: the class path of a function that takes the folder of the results.
    """

    name: str
    title: str
    about: str
    measures: list[Measure]
    tune_by: str
    settings: dict[str, Config]
    base: Config
    sets: dict[str, DataSet]
    rows: dict[str, Row]
    sizes: dict[str, Size]
    script: str | None = None

    def cells(
        self, size: Size, sets: Sequence[str], models: Sequence[str] | None, rows: Sequence[str] | None
    ) -> list[Cell]:
        """What is compared, in the order of running; None for all."""
        models = _chosen("--models", models, size.models)
        rows = _chosen("--rows", rows, self.rows)
        return [Cell(s, m, r) for s in sets for m in models for r in rows]

    def tuning(self, size: Size, cell: Cell, source: str | None) -> list[Run]:
        """One run for each setting, none where the size or the row is not tuned."""
        settings = self._settings(cell.row)
        if size.tune is None or not settings:
            return []
        length = {f"{size.name}-tune": size.tune}
        return [
            self._run(size, cell, TUNE, number, setting, source, extra=length)
            for number, setting in enumerate(settings)
        ]

    def final(self, size: Size, cell: Cell, seed: int, setting: str, source: str | None) -> Run:
        """The run of one seed with a setting, "" for that of the row."""
        return self._run(size, cell, FINAL, seed, setting, source, extra={})

    def serving(self, size: Size, cell: Cell, seed: int) -> tuple[Cell, int]:
        """Cell and seed of the run that one of another study builds upon.

        It has the same set, network, row and seed. A study of a single network serves every network; one of a single
        row serves every row, with seed 0.

        Raises:
            ValueError: if there is none.
        """
        for what, name, known in (("set", cell.set, self.sets), ("network", cell.model, size.models)):
            if name not in known and (what == "set" or len(known) > 1):
                raise InvalidValueError(f"`reproduce`: {self.name} is built upon, but has no {what} {name!r}.")
        if cell.row not in self.rows and len(self.rows) > 1:
            raise InvalidValueError(f"`reproduce`: {self.name} is built upon, but has no row {cell.row!r}.")
        model = cell.model if cell.model in size.models else next(iter(size.models))
        if cell.row in self.rows:
            return Cell(cell.set, model, cell.row), seed
        return Cell(cell.set, model, next(iter(self.rows))), 0

    def _settings(self, row: str) -> dict[str, Config]:
        own = self.rows[row].settings
        return self.settings if own is None else own

    def _run(
        self, size: Size, cell: Cell, kind: str, number: int, setting: str, source: str | None, extra: dict[str, Config]
    ) -> Run:
        overlays = {
            "base": self.base,
            f"model-{size.name}-{cell.model}": size.models[cell.model].config,
            f"set-{cell.set}": self.sets[cell.set].config,
            f"size-{size.name}": size.config,
            f"row-{cell.row}": self.rows[cell.row].config,
        }
        if setting:
            overlays[f"setting-{cell.row}-{setting}"] = self._settings(cell.row)[setting]
        overlays |= extra
        # An empty configuration file is refused, and has nothing to say.
        return Run(cell, kind, number, setting, {slug(name): part for name, part in overlays.items() if part}, source)


def study_names() -> list[str]:
    """Names of the packaged studies.

    Example:
        >>> study_names()
        ['autoencoder', 'classification', 'maskgit', 'maskgit_features', 'maskgit_tokenizer', 'toy']
    """
    files = resources.files("straightvq.studies").iterdir()
    return sorted(item.name.removesuffix(".yaml") for item in files if item.name.endswith(".yaml"))


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    known = list(known)
    there = ", ".join(known)
    return InvalidValueError(f"`reproduce`: {what} {name!r} is not there.{hint(name, known)} There are: {there}.")


def hint(name: str, known: Iterable[str]) -> str:
    """What a misspelt name may stand for, as a sentence; "" if there is nothing like it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _chosen(option: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The named ones, in the order of the study."""
    known = list(known)
    for name in names or []:
        if name not in known:
            raise unknown(f"`{option}`", name, known)
    return [name for name in known if names is None or name in names]


def expanded(config: Config) -> Config:
    """A configuration whose keys may be written with dots, as nested sections.

    Example:
        >>> expanded({"a.b": {"c": 1}, "a": {"d.e": 2}})
        {'a': {'b': {'c': 1}, 'd': {'e': 2}}}
    """
    result: Config = {}
    for key, value in config.items():
        value = expanded(value) if isinstance(value, dict) else value
        for part in reversed(str(key).split(".")):
            value = {part: value}
        _lay_over(result, value)
    return result


def _lay_over(target: Config, overlay: Config) -> None:
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _lay_over(target[key], value)
        else:
            target[key] = value
