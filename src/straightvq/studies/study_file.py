"""Reading a study file into a `Study`, or saying where something is wrong."""

import json
from dataclasses import is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from straightvq.errors import InvalidValueError
from straightvq.studies.study import Config, Study, hint, unknown


def load_study(name: str) -> Study:
    """Reads a packaged study by its name, or a YAML file of one's own.

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
        >>> study_names()
        ['autoencoder', 'classification', 'maskgit', 'maskgit_features', 'maskgit_tokenizer', 'toy']
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


def _content(path: Path, before: list[Path]) -> tuple[Config, Config]:
    """What a file says, laid over the study that it is ``like``; and what it says itself."""
    if path.resolve() in before:
        raise InvalidValueError(f"`reproduce`: {str(path)!r} is `like` itself.")
    try:
        # JSON's kinds of values: names are texts, even where YAML reads numbers.
        own = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        words = " ".join(str(error).split())
        raise InvalidValueError(f"`reproduce`: {str(path)!r} is not readable as YAML: {words}.") from error
    _check_section(path, "the study", own)
    like = own.pop("like", None)
    return ({} if like is None else _content(_find(str(like)), [*before, path.resolve()])[0]) | own, own


def _parsed(path: Path, kind: type[Any], where: str, name: str, content: Any) -> Any:
    """A section as one of the classes of a study; jsonargparse checks the types. A key without a value is not there."""
    _check_section(path, where, content)
    kinds = get_type_hints(kind)
    keys = sorted(kinds.keys() - {"name"})
    for key in content:
        if key not in keys:
            what = f"`{where}` has no key {key!r}.{hint(key, keys)} It takes {', '.join(keys)}"
            raise InvalidValueError(f"`reproduce`: in {str(path)!r}, {what}.")
    plain = {key: value for key, value in content.items() if value is not None}
    inside = "" if kind is Study else f"{where}."
    parts: dict[str, Any] = {"name": name} if "name" in kinds else {}
    sections = {key: part for key in keys for part in (kinds[key], *get_args(kinds[key])) if is_dataclass(part)}
    for key in sections.keys() & plain.keys():
        part: Any = sections[key]
        own = plain.pop(key)
        if part is kinds[key]:
            parts[key] = _parsed(path, part, f"{inside}{key}", key, own)
        else:
            _check_section(path, f"{inside}{key}", own)
            parts[key] = {name: _parsed(path, part, f"{inside}{key}.{name}", name, it) for name, it in own.items()}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip={"name", *sections}, as_group=False)
    try:
        return kind(**parts, **parser.parse_object(plain).as_dict())
    except ArgumentError as error:
        words = " ".join(str(error).split())
        raise InvalidValueError(f"`reproduce`: in {str(path)!r}, `{where}`: {words}.") from error


def _check_section(path: Path, where: str, content: Any) -> None:
    if not isinstance(content, dict):
        what = f"`{where}` must be a section with keys. Got {content!r}"
        raise InvalidValueError(f"`reproduce`: in {str(path)!r}, {what}.")
