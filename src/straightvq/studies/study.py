"""A study as data: what is compared, on what, in which sizes; read from a file, or told where that is wrong."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt, register_type

from straightvq.errors import InvalidValueError, did_you_mean

Script = Callable[..., Any]


class Config(dict[str, Any]):
    """A configuration whose keys may be written with dots, as nested sections.

    Example:
        >>> Config({"a.b": {"c": 1}, "a": {"d.e": 2}})
        {'a': {'b': {'c': 1}, 'd': {'e': 2}}}
    """

    __slots__ = ()  # jsonargparse copies what has a `__dict__` by that

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        _lay_over(self, content or {})


def _lay_over(target: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    for key, value in overlay.items():
        first, _, rest = key.partition(".")
        inside = {rest: value} if rest else value
        if isinstance(inside, dict):
            if not isinstance(target.get(first), dict):
                target[first] = {}
            _lay_over(target[first], inside)
        else:
            target[first] = value


def laid_over(*overlays: Mapping[str, Any]) -> Config:
    """One configuration of several, each laid over the ones before.

    Example:
        >>> laid_over({"a.b": 1, "a.c": 2}, {"a.b": 3})
        {'a': {'b': 3, 'c': 2}}
    """
    whole = Config()
    for overlay in overlays:
        _lay_over(whole, overlay)
    return whole


# jsonargparse would look into what is meant for the command line, and fill in what is not said.
register_type(Config, serializer=dict, deserializer=Config)


@dataclass(frozen=True)
class Measure:
    """One column of the report."""

    name: str  # what the task logs, such as ``test/accuracy``
    label: str  # what the report calls it; also the key of the paper's values
    better: Literal["higher", "lower", ""] = ""
    compare: Literal["difference", "ratio"] = "difference"  # whichever carries over from one set to another
    scale: PositiveFloat = 1.0  # factor from the logged to the reported value
    digits: NonNegativeInt = 1  # after the decimal point
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
    """One method."""

    name: str
    config: Config
    paper: dict[str, dict[str, float]] = field(default_factory=dict)  # by network or set, then by label; reported units
    settings: dict[str, Config] | None = None  # tried in tuning; None takes the study's
    bound: bool = False  # whether it is the network without the method: a limit, never named the best row
    against: list[str] = field(default_factory=list)  # rows to compare it with, beside the first one


@dataclass(frozen=True)
class Model:
    """One network in one size."""

    name: str
    config: Config
    seconds: PositiveFloat | None = None  # one run takes about as many


@dataclass(frozen=True)
class DataSet:
    """One data set."""

    name: str
    config: Config
    folder: str | None = None  # below the folder of all sets; None for embedded data


@dataclass(frozen=True)
class Size:
    """How large the study is run."""

    name: str
    seeds: PositiveInt  # of each row
    config: Config
    sets: list[str] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    about: str = ""  # what it is and what it needs, for the report
    without_data: list[str] = field(default_factory=list)  # embedded sets in place of ``sets`` where no data are given
    tune: Config | None = None  # overlay for the runs of tuning, usually half as long; None for no tuning
    # Studies whose runs come first, by the option that gets a run's folder, such as ``model.init_args.tokenizer``.
    follows: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What a study file says; all sections are by name, and keys of configurations may be written with dots.

    Raises:
        ValueError: if the parts do not fit together.
    """

    name: str  # that of the file
    title: str  # headline of the report
    about: str = ""  # its introduction, Markdown
    measures: dict[str, Measure] = field(default_factory=dict)  # columns of the report; the first is the headline
    tune: Tuning = field(default_factory=Tuning)
    base: Config = field(default_factory=Config)  # under all overlays
    sets: dict[str, DataSet] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    # Instead of measures and rows: a function of a folder, title and about; of a size, if there are any; and of the
    # places of the size's sets by name, None for embedded ones, if there are any.
    script: Script | None = None

    def __post_init__(self) -> None:
        wanted = "nothing beside a `script`" if self.script else "at least one"
        parts: dict[str, Any] = {"measures": self.measures, "rows": self.rows}
        parts |= {} if self.script else {"sets": self.sets, "sizes": self.sizes}
        self._refuse(f"`{key}` must have {wanted}" for key, part in parts.items() if bool(part) == bool(self.script))
        if self.script and self.sets and not self.sizes:
            self._refuse(["`sizes` must have at least one, which says on which `sets` the script runs"])
        if not self.script:
            self._refuse(self._shared_folders())
            self._refuse(self._broken_references())

    @property
    def headline(self) -> Measure:
        return next(iter(self.measures.values()))

    def settings(self, row: str) -> dict[str, Config]:
        """What a row tries in tuning."""
        own = self.rows[row].settings
        return self.tune.settings if own is None else own

    def check_paper(self) -> None:
        """Refuses values of the paper that belong to nothing here; rows of another study may have more."""
        self._refuse(self._foreign_values())

    def _refuse(self, mistakes: Iterable[str]) -> None:
        for mistake in mistakes:
            raise InvalidValueError(f"`reproduce`: in the study {self.name}, {mistake}.")

    def _shared_folders(self) -> Iterator[str]:
        """All that names a folder must name one of its own."""
        named: dict[str, Iterable[str]] = {"sets": self.sets, "rows": self.rows, "tune.settings": self.tune.settings}
        named |= {f"sizes.{size.name}.models": size.models for size in self.sizes.values()}
        named |= {f"rows.{row.name}.settings": row.settings or {} for row in self.rows.values()}
        for where, names in named.items():
            known: dict[str, str] = {}
            for name in names:
                if not slug(name).strip("."):
                    yield f"`{where}` has the name {name!r}, of which no folder can be made"
                other = known.setdefault(slug(name), name)
                if other != name:
                    both = f"{other!r} and {name!r}"
                    yield f"`{where}` has names that differ in signs only, and would share a folder: {both}"

    def _broken_references(self) -> Iterator[str]:
        """What one part says of another must be true."""
        if not self.headline.better:
            yield "the first of `measures` must say with `better` whether higher or lower is better"
        for size in self.sizes.values():
            where = f"`sizes.{size.name}`"
            if not (size.sets and size.models):
                yield f"{where} must have at least one of `sets` and of `models`"
            for name in [*size.sets, *size.without_data]:
                if name not in self.sets:
                    yield f"{where} names the set {name!r}, which `sets` does not describe"
            if size.tune is not None and not self.tune.by:
                yield f"{where} is tuned, but `tune.by` does not say by which value"
        wanted = len(self.tune.settings)
        for row in self.rows.values():
            for name in row.against:
                if name not in self.rows:
                    yield f"`rows.{row.name}.against` names the row {name!r}, which is not there"
            number = len(self.settings(row.name))
            if number != wanted:
                text = f"must be as many as `tune.settings`, for a fair comparison: {wanted}. Got {number}"
                yield f"`rows.{row.name}.settings` {text}"

    def _foreign_values(self) -> Iterator[str]:
        places = list(dict.fromkeys([*self.sets, *(model for size in self.sizes.values() for model in size.models)]))
        labels = [measure.label for measure in self.measures.values()]
        for row in self.rows.values():
            for place, values in row.paper.items():
                where = f"rows.{row.name}.paper"
                if place not in places:
                    yield f"`{where}` names {place!r}, which is no network and no set.{_choice(place, places)}"
                for label, value in values.items():
                    if label not in labels:
                        what = f"names {label!r}, which is the label of no measure"
                        yield f"`{where}.{place}` {what}.{_choice(label, labels)}"
                    if not math.isfinite(value):
                        yield f"`{where}.{place}.{label}` must be a number. Got {value}"


def load_study(name: str) -> Study:
    """Reads a packaged study by its name, or a YAML file of your own.

    Raises:
        ValueError: if there is none, or if it says something that no study says.

    Example:
        >>> list(load_study("classification").rows)[:3]
        ['VQ', 'affine', 'affine (running)']
    """
    path = _find(name)
    content, own = _content(path, [])
    study: Study = _parsed(path, Study, "the study", path.stem, content)
    if "rows" in own:
        study.check_paper()
    return study


def study_names() -> list[str]:
    """Names of the packaged studies.

    Example:
        >>> study_names()[:4]
        ['autoencoder', 'binary', 'classification', 'dynamics']
    """
    files = resources.files("straightvq.studies").iterdir()
    return sorted(item.name.removesuffix(".yaml") for item in files if item.name.endswith(".yaml"))


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name in study_names():
        return Path(str(resources.files("straightvq.studies") / f"{name}.yaml"))
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise InvalidValueError(f"`reproduce`: there is no file {name!r}.")
    raise unknown("the study", name, study_names())


def _content(path: Path, before: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file says, laid over the study that it is ``like``; and what it says itself."""
    if path.resolve() in before:
        raise InvalidValueError(f"`reproduce`: {str(path)!r} is `like` itself.")
    try:
        # JSON's kinds of values: names are texts, even where YAML reads numbers.
        own = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        words = " ".join(str(error).split())
        raise InvalidValueError(f"`reproduce`: {str(path)!r} is not readable as YAML: {words}.") from error
    like = _section(path, "the study", own).pop("like", None)
    return ({} if like is None else _content(_find(str(like)), [*before, path.resolve()])[0]) | own, own


def _section(path: Path, where: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise _wrong(path, f"`{where}` must be a section with keys. Got {content!r}")
    return content


def _parsed(path: Path, kind: type[Any], where: str, name: str, content: Any) -> Any:
    """A section as one of the classes of a study; jsonargparse checks the types. A key without a value is not there."""
    kinds = get_type_hints(kind)
    keys = sorted(kinds.keys() - {"name"})
    for key in _section(path, where, content):
        if key not in keys:
            what = f"`{where}` has no key {key!r}.{did_you_mean(key, keys)} It takes {', '.join(keys)}"
            raise _wrong(path, what)
    plain = {key: value for key, value in content.items() if value is not None}
    parts: dict[str, Any] = {"name": name} if "name" in kinds else {}
    sections = {key: part for key in keys for part in (kinds[key], *get_args(kinds[key])) if is_dataclass(part)}
    for key in sections.keys() & plain.keys():
        part: Any = sections[key]
        own, inside = plain.pop(key), key if kind is Study else f"{where}.{key}"
        if part is kinds[key]:
            parts[key] = _parsed(path, part, inside, key, own)
        else:
            named = _section(path, inside, own).items()
            parts[key] = {name: _parsed(path, part, f"{inside}.{name}", name, it) for name, it in named}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip={"name", *sections}, as_group=False)
    try:
        return kind(**parts, **parser.parse_object(plain).as_dict())
    except ArgumentError as error:
        raise _wrong(path, f"`{where}`: {' '.join(str(error).split())}") from error


def _wrong(path: Path, what: str) -> InvalidValueError:
    return InvalidValueError(f"`reproduce`: in {str(path)!r}, {what}.")


def unknown(what: str, name: str, known: Iterable[str]) -> InvalidValueError:
    return InvalidValueError(f"`reproduce`: {what} {name!r} is not there.{_choice(name, list(known))}.")


def _choice(name: str, known: list[str]) -> str:
    return f"{did_you_mean(name, known)} There are: {', '.join(known)}"


def slug(text: str) -> str:
    """A name of a file.

    Example:
        >>> slug("EMA + reset"), slug("l2 + replace"), slug("lr 1e-3")
        ('EMA-reset', 'l2-replace', 'lr-1e-3')
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-")
