"""Reading a study file: turns it into a `Study`, and says where something is wrong."""

import math
from collections.abc import Iterable, Set
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from straightvq.errors import InvalidValueError
from straightvq.studies.run import Config, slug
from straightvq.studies.study import DataSet, Measure, Model, Row, Size, Study, expanded, hint, study_names, unknown

__all__ = ["load_study"]


def load_study(name: str) -> Study:
    """Reads a packaged study by its name, or a YAML file of one's own.

    Raises:
        ValueError: if there is none, or if it says something that no study says.

    Example:
        >>> list(load_study("classification").rows)[:3]
        ['VQ', 'affine', 'affine (running)']
    """
    path = _find(name)
    return _Reader(path, _read(path, [])).study()


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name in study_names():
        return Path(str(resources.files("straightvq.studies") / f"{name}.yaml"))
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise InvalidValueError(f"`reproduce`: there is no file {name!r}.")
    raise unknown("the study", name, study_names())


def _read(path: Path, before: list[Path]) -> list[Any]:
    """What a file says, behind what the study says that it is ``like``.

    Args:
        path: of the file.
        before: those that are like it.
    """
    if path.resolve() in before:
        raise InvalidValueError(f"`reproduce`: {str(path)!r} is `like` itself.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"`reproduce`: {str(path)!r} is not readable as YAML: {_one_line(error)}.") from error
    like = content.pop("like", None) if isinstance(content, dict) else None
    return [content] if like is None else [*_read(_find(str(like)), [*before, path.resolve()]), content]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _below(part: Any, key: str) -> dict[Any, Any]:
    """A section of what may be anything."""
    own = part.get(key) if isinstance(part, dict) else None
    return own if isinstance(own, dict) else {}


class _Reader:
    """Turns the content of a file into a `Study`; says where something is wrong.

    Args:
        path: of the file.
        contents: what it says, behind the studies that it is ``like``; a section takes the place of those before.
    """

    def __init__(self, path: Path, contents: list[Any]) -> None:
        self.path = path
        self.contents = [self._section("the study", part) for part in contents]

    def study(self) -> Study:
        content = {key: section for part in self.contents for key, section in part.items()}
        if "script" in content:
            self._keys("the study", content, {"title", "about", "script"})
            for key, text in content.items():
                self._text(key, text)
            empty: dict[str, Any] = {"measures": [], "tune_by": "", "settings": {}, "base": {}, "sets": {}, "rows": {}}
            return Study(name=self.path.stem, sizes={}, **{"about": "", **content, **empty})
        self._keys("the study", content, {"title", "measures", "base", "sets", "rows", "sizes"}, {"about", "tune"})
        tune = self._keys("tune", content.get("tune") or {}, set(), {"by", "settings"})
        study = Study(
            name=self.path.stem,
            title=self._text("title", content["title"]),
            about=self._text("about", content.get("about", "")),
            measures=[self._measure(name, part) for name, part in self._items("measures", content["measures"])],
            tune_by=self._text("tune.by", tune.get("by", "")),
            settings=self._configs("tune.settings", tune.get("settings") or {}),
            base=self._config("base", content["base"]),
            sets={name: self._set(name, part) for name, part in self._items("sets", content["sets"])},
            rows={name: self._row(name, part) for name, part in self._items("rows", content["rows"])},
            sizes={name: self._size(name, part) for name, part in self._items("sizes", content["sizes"])},
        )
        self._check(study)
        return study

    def _check(self, study: Study) -> None:
        for kind, count in (("rows", len(study.rows)), ("sizes", len(study.sizes))):
            if not count:
                raise self._error(f"`{kind}` must have at least one")
        if not study.measures or not study.measures[0].better:
            raise self._error("the first of `measures` must say with `better` whether higher or lower is better")
        self._check_names(study)
        self._check_paper(study)
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

    def _check_names(self, study: Study) -> None:
        """All that names a folder or a file names one of its own."""
        named: dict[str, Iterable[str]] = {"sets": study.sets, "rows": study.rows, "tune.settings": study.settings}
        named |= {f"sizes.{size.name}.models": size.models for size in study.sizes.values()}
        named |= {f"rows.{row.name}.settings": row.settings or {} for row in study.rows.values()}
        for where, names in named.items():
            known: dict[str, str] = {}
            for name in names:
                folder = slug(name)
                if not folder.strip("."):
                    raise self._error(f"`{where}` has the name {name!r}, of which no folder can be made")
                if folder in known:
                    raise self._error(
                        f"`{where}` has names that differ in signs only, and would share a folder: "
                        f"{known[folder]!r} and {name!r}"
                    )
                known[folder] = name

    def _check_paper(self, study: Study) -> None:
        """Whether the paper's values are of something.

        Rows that are those of another study may have more of them than this one has sets, networks and measures.
        """
        places = [str(name) for part in self.contents for name in _below(part, "sets")]
        sizes = [size for part in self.contents for size in _below(part, "sizes").values()]
        places += [str(name) for size in sizes for name in _below(size, "models")]
        measures = [own for part in self.contents for own in _below(part, "measures").values()]
        labels = [str(own["label"]) for own in measures if isinstance(own, dict) and "label" in own]
        for row in study.rows.values():
            where = f"rows.{row.name}.paper"
            for place, values in row.paper.items():
                self._among(where, place, "which is no network and no set", places)
                for label in values:
                    self._among(f"{where}.{place}", label, "which is the label of no measure", labels)

    def _measure(self, name: str, part: Any) -> Measure:
        where = f"measures.{name}"
        part = self._keys(where, part, {"label"}, {"better", "compare", "scale", "digits", "unit"})
        for key in ("label", "unit"):
            self._text(f"{where}.{key}", part.get(key, ""))
        self._positive(f"{where}.scale", part.get("scale", 1.0))
        self._integer(f"{where}.digits", part.get("digits", 1), 0)
        for key, choices in (("better", ("higher", "lower", "")), ("compare", ("difference", "ratio"))):
            if part.get(key, choices[0]) not in choices:
                raise self._error(f"`measures.{name}.{key}` must be {' or '.join(choices[:2])}. Got {part[key]!r}")
        return Measure(name, **part)

    def _set(self, name: str, part: Any) -> DataSet:
        part = self._keys(f"sets.{name}", part, {"config"}, {"folder"})
        folder = part.get("folder")
        if folder is not None and not isinstance(folder, str):
            raise self._error(f"`sets.{name}.folder` must be the name of a folder. Got {folder!r}")
        return DataSet(name, self._config(f"sets.{name}.config", part["config"]), folder)

    def _row(self, name: str, part: Any) -> Row:
        part = self._keys(f"rows.{name}", part, {"config"}, {"paper", "settings", "bound", "against"})
        settings, bound, against = part.get("settings"), part.get("bound", False), part.get("against", [])
        if not isinstance(bound, bool):
            raise self._error(f"`rows.{name}.bound` must be true or false. Got {bound!r}")
        paper = {
            place: {
                label: self._number(f"rows.{name}.paper.{place}.{label}", value)
                for label, value in self._items(f"rows.{name}.paper.{place}", values)
            }
            for place, values in self._items(f"rows.{name}.paper", part.get("paper") or {})
        }
        return Row(
            name,
            self._config(f"rows.{name}.config", part["config"]),
            paper,
            None if settings is None else self._configs(f"rows.{name}.settings", settings),
            bound,
            self._names(f"rows.{name}.against", against),
        )

    def _size(self, name: str, part: Any) -> Size:
        where = f"sizes.{name}"
        optional = {"about", "without_data", "tune", "follows"}
        part = self._keys(where, part, {"sets", "models", "seeds", "config"}, optional)
        seeds = self._integer(f"{where}.seeds", part["seeds"], 1)
        models = {}
        for model, own in self._items(f"{where}.models", part["models"]):
            own = self._keys(f"{where}.models.{model}", own, {"config"}, {"seconds"})
            seconds = own.get("seconds")
            if seconds is not None:
                seconds = self._positive(f"{where}.models.{model}.seconds", seconds)
            models[model] = Model(model, self._config(f"{where}.models.{model}", own["config"]), seconds)
        sets = self._names(f"{where}.sets", part["sets"])
        if not sets or not models:
            raise self._error(f"`{where}` must have at least one of `sets` and of `models`")
        return Size(
            name,
            self._text(f"{where}.about", part.get("about", "")),
            sets,
            self._names(f"{where}.without_data", part.get("without_data", [])),
            models,
            seeds,
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

    def _names(self, where: str, part: Any) -> list[str]:
        if not isinstance(part, list) or not all(isinstance(name, str) for name in part):
            raise self._error(f"`{where}` must be a list of names. Got {part!r}")
        return part

    def _number(self, where: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._error(f"`{where}` must be a number. Got {value!r}")
        return value

    def _positive(self, where: str, value: Any) -> float:
        if self._number(where, value) <= 0:
            raise self._error(f"`{where}` must be a number > 0. Got {value!r}")
        return value

    def _integer(self, where: str, value: Any, minimum: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self._error(f"`{where}` must be an integer >= {minimum}. Got {value!r}")
        return value

    def _text(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._error(f"`{where}` must be a text. Got {value!r}")
        return value

    def _section(self, where: str, part: Any) -> dict[str, Any]:
        if not isinstance(part, dict):
            raise self._error(f"`{where}` must be a section with keys. Got {part!r}")
        return part

    def _keys(self, where: str, part: Any, required: Set[str], optional: Set[str] = frozenset()) -> dict[str, Any]:
        part = self._section(where, part)
        known = sorted(required | optional)
        for key in part:
            if key not in known:
                raise self._error(f"`{where}` has no key {key!r}.{hint(str(key), known)} It takes {', '.join(known)}")
        for key in sorted(required - part.keys()):
            raise self._error(f"`{where}` must have the key {key!r}")
        return part

    def _among(self, where: str, name: str, otherwise: str, known: list[str]) -> None:
        if name not in known:
            there = ", ".join(dict.fromkeys(known))
            raise self._error(f"`{where}` names {name!r}, {otherwise}.{hint(name, known)} There are: {there}")

    def _error(self, text: str) -> ValueError:
        return InvalidValueError(f"`reproduce`: in {str(self.path)!r}, {text}.")
