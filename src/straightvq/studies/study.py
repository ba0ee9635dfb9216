"""A study as data: what is compared, on what, in which sizes."""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt, register_type

from straightvq.errors import InvalidValueError

Script = Callable[[Path, str, str], Any]


class Config(dict[str, Any]):
    """A configuration whose keys may be written with dots, as nested sections.

    Example:
        >>> Config({"a.b": {"c": 1}, "a": {"d.e": 2}})
        {'a': {'b': {'c': 1}, 'd': {'e': 2}}}
    """

    __slots__ = ()  # jsonargparse copies what has a `__dict__` by that

    def __init__(self, content: Mapping[str, Any] = types.MappingProxyType({})) -> None:
        super().__init__()
        for key, value in content.items():
            value = dict(Config(value)) if isinstance(value, dict) else value
            for part in reversed(key.split(".")):
                value = {part: value}
            _lay_over(self, value)


def _lay_over(target: dict[str, Any], overlay: dict[str, Any]) -> None:
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _lay_over(target[key], value)
        else:
            target[key] = value


# jsonargparse would look into what is meant for the command line, and fill in what is not said.
register_type(Config, serializer=dict, deserializer=Config)


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
    scale: PositiveFloat = 1.0
    digits: NonNegativeInt = 1
    unit: str = ""

    @property
    def heading(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label


@dataclass(frozen=True)
class Tuning:
    """How each row's setting is chosen: by a logged value, among overlays by name."""

    by: str = ""
    settings: dict[str, Config] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: of the row.
        config: overlay that makes the method.
        paper: the paper's values by model or set, then by the label of the measure, in reported units.
        settings: what is tried in tuning; None takes the study's.
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
    """One network in one size: its overlay, and the seconds that one run took, for estimates."""

    name: str
    config: Config
    seconds: PositiveFloat | None = None


@dataclass(frozen=True)
class DataSet:
    """One data set: its overlay, and its folder below that of all sets; None for embedded data."""

    name: str
    config: Config
    folder: str | None = None


@dataclass(frozen=True)
class Size:
    """How large the study is run.

    Attributes:
        name: of the size.
        sets: names of the sets.
        models: networks, in order.
        seeds: number of seeds of each row.
        config: overlay.
        about: what it is and what it needs, for the report.
        without_data: embedded sets that take the place of ``sets`` where no folder of sets is given.
        tune: overlay for the runs of tuning, usually half as long; None for no tuning.
        follows: studies whose runs must be there first, by the option that gets a run's folder, such as
            ``model.init_args.tokenizer``.
    """

    name: str
    sets: list[str]
    models: dict[str, Model]
    seeds: PositiveInt
    config: Config
    about: str = ""
    without_data: list[str] = field(default_factory=list)
    tune: Config | None = None
    follows: dict[str, str] = field(default_factory=dict)

    def at_precision(self, precision: str | None) -> "Size":
        """The same in another floating-point precision, such as "bf16-mixed"; None changes nothing."""
        if precision is None:
            return self
        return dataclasses.replace(self, config=Config({**self.config, "trainer.precision": precision}))


@dataclass(frozen=True)
class Study:
    """What a study file says; keys of configurations may be written with dots.

    Attributes:
        name: that of the file.
        title: headline of the report.
        about: introduction of the report, Markdown.
        measures: columns of the report; the first is the headline.
        tune: how each row's setting is chosen.
        base: configuration under all overlays.
        sets, rows, sizes: by name.
        script: instead of all others but title and about: a function that gets the folder and these two.

    Raises:
        ValueError: if the parts do not fit together.
    """

    name: str
    title: str
    about: str = ""
    measures: dict[str, Measure] = field(default_factory=dict)
    tune: Tuning = field(default_factory=Tuning)
    base: Config = field(default_factory=Config)
    sets: dict[str, DataSet] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    script: Script | None = None

    def __post_init__(self) -> None:
        for key in ("measures", "sets", "rows", "sizes"):
            is_there, wanted = bool(getattr(self, key)), "nothing beside a `script`" if self.script else "at least one"
            self._require(is_there != bool(self.script), f"`{key}` must have {wanted}")
        if not self.script:
            self._check_names()
            self._check_references()

    @property
    def headline(self) -> Measure:
        return next(iter(self.measures.values()))

    def settings(self, row: str) -> dict[str, Config]:
        """What a row tries in tuning."""
        own = self.rows[row].settings
        return self.tune.settings if own is None else own

    def _require(self, holds: bool, text: str) -> None:
        if not holds:
            raise InvalidValueError(f"`reproduce`: in the study {self.name}, {text}.")

    def _check_names(self) -> None:
        """All that names a folder names one of its own."""
        named: dict[str, Iterable[str]] = {"sets": self.sets, "rows": self.rows, "tune.settings": self.tune.settings}
        named |= {f"sizes.{size.name}.models": size.models for size in self.sizes.values()}
        named |= {f"rows.{row.name}.settings": row.settings or {} for row in self.rows.values()}
        for where, names in named.items():
            known: dict[str, str] = {}
            for name in names:
                folder = slug(name)
                self._require(
                    folder.strip(".") != "", f"`{where}` has the name {name!r}, of which no folder can be made"
                )
                other = known.setdefault(folder, name)
                self._require(
                    other == name,
                    f"`{where}` has names that differ in signs only, and would share a folder: {other!r} and {name!r}",
                )

    def _check_references(self) -> None:
        """What one part says of another is true."""
        best = "the first of `measures` must say with `better` whether higher or lower is better"
        self._require(self.headline.better != "", best)
        for size in self.sizes.values():
            where = f"`sizes.{size.name}`"
            self._require(bool(size.sets and size.models), f"{where} must have at least one of `sets` and of `models`")
            for name in [*size.sets, *size.without_data]:
                self._require(name in self.sets, f"{where} names the set {name!r}, which `sets` does not describe")
            is_chosen = size.tune is None or self.tune.by != ""
            self._require(is_chosen, f"{where} is tuned, but `tune.by` does not say by which value")
        wanted = len(self.tune.settings)
        for row in self.rows.values():
            for name in row.against:
                self._require(
                    name in self.rows, f"`rows.{row.name}.against` names the row {name!r}, which is not there"
                )
            number = len(self.settings(row.name))
            text = f"must be as many as `tune.settings`, for a fair comparison: {wanted}. Got {number}"
            self._require(number == wanted, f"`rows.{row.name}.settings` {text}")

    def check_paper(self) -> None:
        """Refuses values of the paper that belong to nothing here; rows of another study may have more than this one.

        Raises:
            ValueError: if there are such.
        """
        places = [*self.sets, *(model for size in self.sizes.values() for model in size.models)]
        labels = [measure.label for measure in self.measures.values()]
        for row in self.rows.values():
            for place, values in row.paper.items():
                self._check_known(f"rows.{row.name}.paper", place, "no network and no set", places)
                for label, value in values.items():
                    where = f"rows.{row.name}.paper.{place}"
                    self._check_known(where, label, "the label of no measure", labels)
                    self._require(math.isfinite(value), f"`{where}.{label}` must be a number. Got {value}")

    def _check_known(self, where: str, name: str, otherwise: str, known: list[str]) -> None:
        there = f"{hint(name, known)} There are: {', '.join(dict.fromkeys(known))}"
        self._require(name in known, f"`{where}` names {name!r}, which is {otherwise}.{there}")


def unknown(what: str, name: str, known: Iterable[str]) -> InvalidValueError:
    known = list(known)
    there = ", ".join(known)
    return InvalidValueError(f"`reproduce`: {what} {name!r} is not there.{hint(name, known)} There are: {there}.")


def hint(name: str, known: Iterable[str]) -> str:
    """What a misspelt name may stand for, as a sentence; "" if there is nothing like it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def slug(text: str) -> str:
    """A name of a file.

    Example:
        >>> slug("EMA + reset"), slug("l2 + replace"), slug("lr 1e-3")
        ('EMA-reset', 'l2-replace', 'lr-1e-3')
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-")
