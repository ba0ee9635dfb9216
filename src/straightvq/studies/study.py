"""A study file: what is compared, on what, in which sizes; and the runs that follow from it."""

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

__all__ = ["Cell", "Measure", "Run", "Size", "Study", "study_names"]

Config = dict[str, Any]
TUNE, FINAL = "tune", "final"


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
class Cell:
    """One method in one network on one set."""

    set: str
    model: str
    row: str

    @property
    def title(self) -> str:
        return f"{self.set} {self.model} {self.row}"

    @property
    def folder(self) -> Path:
        """Below that of all runs."""
        return Path(slug(self.set), slug(self.model), slug(self.row))


@dataclass(frozen=True)
class Run:
    """One training: `straightvq fit` with these overlays, measured afterwards.

    Attributes:
        cell: what is trained.
        kind: "tune", measured on the validation set, or "final", on the test set.
        number: of the setting in tuning, else the seed.
        setting: name of the setting, "" where nothing was tuned.
        overlays: configurations by name, each laid over the ones before.
        source: where the data lie, None for what the overlays say. It decides no result.
        upon: the runs that this one builds upon: folder and fingerprint, by the option that gets the folder.
    """

    cell: Cell
    kind: str
    number: int
    setting: str
    overlays: dict[str, Config]
    source: str | None = None
    upon: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{'tune' if self.kind == TUNE else 'seed'}{self.number}"

    @property
    def title(self) -> str:
        return f"{self.cell.title} {f'tuning: {self.setting}' if self.kind == TUNE else f'seed {self.number}'}"

    @property
    def seed(self) -> int:
        return 0 if self.kind == TUNE else self.number

    @property
    def options(self) -> list[str]:
        """Words of the command line behind the overlays."""
        options = ["--seed_everything", str(self.seed), "--data.init_args.seed", str(self.seed)]
        options += [] if self.source is None else ["--data.init_args.source", self.source]
        return [*options, *(word for name, (folder, _) in self.upon.items() for word in (f"--{name}", folder))]

    @property
    def settings(self) -> str:
        """Fingerprint of everything that decides the result."""
        upon = {name: fingerprint for name, (_, fingerprint) in self.upon.items()}
        parts = [list(self.overlays.values()), self.seed, *([upon] if upon else [])]
        content = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Study:
    """What a study file says.

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

    @classmethod
    def load(cls, name: str) -> "Study":
        """Reads a packaged study by its name, or a YAML file of one's own.

        Raises:
            ValueError: if there is none, or if it says something that no study says.

        Example:
            >>> list(Study.load("classification").rows)[:3]
            ['VQ', 'affine', 'sync']
        """
        path = _find(name)
        return _Reader(path).study(_read(path))

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
                raise ValueError(f"`reproduce`: {self.name} is built upon, but has no {what} {name!r}.")
        if cell.row not in self.rows and len(self.rows) > 1:
            raise ValueError(f"`reproduce`: {self.name} is built upon, but has no row {cell.row!r}.")
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


def slug(text: str) -> str:
    """A name of a file.

    Example:
        >>> slug("EMA + reset"), slug("l2 + replace"), slug("lr 1e-3")
        ('EMA-reset', 'l2-replace', 'lr-1e-3')
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-")


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"`reproduce`: {what} {name!r} is not there.{hint} There are: {', '.join(known)}.")


def _chosen(option: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The named ones, in the order of the study."""
    known = list(known)
    for name in names or []:
        if name not in known:
            raise unknown(f"`{option}`", name, known)
    return [name for name in known if names is None or name in names]


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name in study_names():
        return Path(str(resources.files("straightvq.studies") / f"{name}.yaml"))
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ValueError(f"`reproduce`: there is no file {name!r}.")
    raise unknown("the study", name, study_names())


def _read(path: Path) -> Any:
    """What a file says; sections that it lacks are those of the study that it is ``like``."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`reproduce`: {str(path)!r} is not readable as YAML: {_one_line(error)}.") from error
    like = content.pop("like", None) if isinstance(content, dict) else None
    return content if like is None else {**_read(_find(str(like))), **content}


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Reader:
    """Turns the content of a file into a `Study`; says where something is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def study(self, content: Any) -> Study:
        content = self._section("the study", content)
        if "script" in content:
            self._keys("the study", content, {"title", "about", "script"})
            empty: dict[str, Any] = {"measures": [], "tune_by": "", "settings": {}, "base": {}, "sets": {}, "rows": {}}
            return Study(name=self.path.stem, sizes={}, **{"about": "", **content, **empty})
        self._keys("the study", content, {"title", "measures", "base", "sets", "rows", "sizes"}, {"about", "tune"})
        tune = self._keys("tune", content.get("tune") or {}, set(), {"by", "settings"})
        study = Study(
            name=self.path.stem,
            title=str(content["title"]),
            about=str(content.get("about", "")),
            measures=[self._measure(name, part) for name, part in self._items("measures", content["measures"])],
            tune_by=str(tune.get("by", "")),
            settings=self._configs("tune.settings", tune.get("settings") or {}),
            base=self._config("base", content["base"]),
            sets={name: self._set(name, part) for name, part in self._items("sets", content["sets"])},
            rows={name: self._row(name, part) for name, part in self._items("rows", content["rows"])},
            sizes={name: self._size(name, part) for name, part in self._items("sizes", content["sizes"])},
        )
        self._check(study)
        return study

    def _check(self, study: Study) -> None:
        if not study.measures or not study.measures[0].better:
            raise self._error("the first of `measures` must say with `better` whether higher or lower is better")
        for kind, names in (("rows", study.rows), ("sets", study.sets)):
            if len({slug(name) for name in names}) < len(names):
                raise self._error(f"`{kind}` has names that differ in signs only, and would share a folder")
        for size in study.sizes.values():
            for name in [*size.sets, *size.without_data]:
                if name not in study.sets:
                    raise self._error(f"`sizes.{size.name}` names the set {name!r}, which `sets` does not describe")
            if size.tune is not None and not study.tune_by:
                raise self._error(f"`sizes.{size.name}` is tuned, but `tune.by` does not say by which value")
        for row in study.rows.values():
            for name in row.against:
                if name not in study.rows:
                    raise self._error(f"`rows.{row.name}.against` names the row {name!r}, which is not there")
            if row.settings is not None and len(row.settings) != len(study.settings):
                raise self._error(
                    f"`rows.{row.name}.settings` must be as many as `tune.settings`, for a fair comparison: "
                    f"{len(study.settings)}. Got {len(row.settings)}"
                )

    def _measure(self, name: str, part: Any) -> Measure:
        part = self._keys(f"measures.{name}", part, {"label"}, {"better", "compare", "scale", "digits", "unit"})
        for key, choices in (("better", ("higher", "lower", "")), ("compare", ("difference", "ratio"))):
            if part.get(key, choices[0]) not in choices:
                raise self._error(f"`measures.{name}.{key}` must be {' or '.join(choices[:2])}. Got {part[key]!r}")
        return Measure(name, **part)

    def _set(self, name: str, part: Any) -> DataSet:
        part = self._keys(f"sets.{name}", part, {"config"}, {"folder"})
        return DataSet(name, self._config(f"sets.{name}.config", part["config"]), part.get("folder"))

    def _row(self, name: str, part: Any) -> Row:
        part = self._keys(f"rows.{name}", part, {"config"}, {"paper", "settings", "bound", "against"})
        settings, bound, against = part.get("settings"), part.get("bound", False), part.get("against", [])
        if not isinstance(bound, bool):
            raise self._error(f"`rows.{name}.bound` must be true or false. Got {bound!r}")
        if not isinstance(against, list):
            raise self._error(f"`rows.{name}.against` must be a list of rows. Got {against!r}")
        return Row(
            name,
            self._config(f"rows.{name}.config", part["config"]),
            part.get("paper") or {},
            None if settings is None else self._configs(f"rows.{name}.settings", settings),
            bound,
            against,
        )

    def _size(self, name: str, part: Any) -> Size:
        where = f"sizes.{name}"
        optional = {"about", "without_data", "tune", "follows"}
        part = self._keys(where, part, {"sets", "models", "seeds", "config"}, optional)
        if not isinstance(part["seeds"], int) or part["seeds"] < 1:
            raise self._error(f"`{where}.seeds` must be an integer >= 1. Got {part['seeds']!r}")
        models = {}
        for model, own in self._items(f"{where}.models", part["models"]):
            own = self._keys(f"{where}.models.{model}", own, {"config"}, {"seconds"})
            models[model] = Model(model, self._config(f"{where}.models.{model}", own["config"]), own.get("seconds"))
        return Size(
            name,
            str(part.get("about", "")),
            list(part["sets"]),
            list(part.get("without_data", [])),
            models,
            part["seeds"],
            self._config(f"{where}.config", part["config"]),
            self._config(f"{where}.tune", part["tune"]) if "tune" in part else None,
            {option: str(study) for option, study in self._items(f"{where}.follows", part.get("follows") or {})},
        )

    def _configs(self, where: str, part: Any) -> dict[str, Config]:
        return {name: self._config(f"{where}.{name}", own) for name, own in self._items(where, part)}

    def _config(self, where: str, part: Any) -> Config:
        return expanded(self._section(where, part))

    def _items(self, where: str, part: Any) -> Iterable[tuple[str, Any]]:
        return ((str(name), own) for name, own in self._section(where, part).items())

    def _section(self, where: str, part: Any) -> dict[str, Any]:
        if not isinstance(part, dict):
            raise self._error(f"`{where}` must be a section with keys. Got {part!r}")
        return part

    def _keys(self, where: str, part: Any, required: Set[str], optional: Set[str] = frozenset()) -> dict[str, Any]:
        part = self._section(where, part)
        known = sorted(required | optional)
        for key in part:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise self._error(f"`{where}` has no key {key!r}.{hint} It takes {', '.join(known)}")
        for key in sorted(required - part.keys()):
            raise self._error(f"`{where}` must have the key {key!r}")
        return part

    def _error(self, text: str) -> ValueError:
        return ValueError(f"`reproduce`: in {str(self.path)!r}, {text}.")
