"""Recipes for the training commands, as YAML: the packaged ones, the user's, and what each of them lies on.

The text of a recipe, which has several lines, may stand in place of its name. The key ``base`` names the recipe, or a
list of them, that this one is laid over: packaged ones by name, others by a path relative to the recipe's own folder.
"""

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from straightvq.errors import InvalidValueError, did_you_mean


def recipe_names() -> list[str]:
    """Names of the packaged recipes.

    Example:
        >>> "photos" in recipe_names()
        True
    """
    folder = resources.files("straightvq.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_path(name: str) -> str:
    """File of a packaged recipe, or the given file itself, or the given text; a ValueError if there is neither."""
    if _is_text(name) or Path(name).is_file():
        return name
    if name in recipe_names():
        return str(resources.files("straightvq.recipes") / f"{name}.yaml")
    if name.endswith((".yaml", ".yml", ".json")) or "/" in name:
        raise InvalidValueError(f"`--config`: there is no file {name!r}.")
    raise InvalidValueError(
        f"`--config`: there is no recipe {name!r}.{did_you_mean(name, recipe_names())} "
        f"Packaged: {', '.join(recipe_names())}; or pass the path of a YAML file."
    )


def read_recipe(path: str) -> Any:
    """The content of a recipe alone; a ValueError refuses what is no YAML, and tags."""
    import yaml

    try:
        return yaml.safe_load(path if _is_text(path) else Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise InvalidValueError(f"`--config`: {path!r} must be readable as YAML. Got: {said}.") from error


def config_names(words: Sequence[str]) -> list[str]:
    """The names behind the options ``--config`` of a command line."""
    return [word for is_config, word in _parts(words) if is_config]


def resolve(words: Sequence[str]) -> list[str]:
    """A command line whose options ``--config`` name files only, each behind those that it lies on.

    Example:
        >>> [Path(word).name for word in resolve(["fit", "--config=digits"])]
        ['fit', '--config', 'photos.yaml', '--config', 'digits.yaml']
    """
    result = []
    for is_config, word in _parts(words):
        result += [part for file in _layers(word) for part in ("--config", file)] if is_config else [word]
    return result


def _is_text(recipe: str) -> bool:
    return "\n" in recipe


def _parts(words: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """The words of a command line, with ``--config NAME`` and ``--config=NAME`` as (True, NAME)."""
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        is_config = flag in ("--config", "-c")
        yield is_config, word if not is_config else value if equals else next(rest, "")


def _layers(name: str, above: tuple[str, ...] = ()) -> list[str]:
    """Files of a recipe, the lowest one first."""
    path = recipe_path(name)
    content = read_recipe(path)
    base = content.get("base") if isinstance(content, dict) else None
    if path in above:
        raise InvalidValueError(f"`base`: a recipe must not lie on itself. Got {' on '.join([*above, path])}.")
    bases = [base] if isinstance(base, str) else base or []
    beside = [str(Path("." if _is_text(path) else path).parent / below) for below in bases]
    found = [file if Path(file).is_file() else below for file, below in zip(beside, bases, strict=True)]
    return [file for below in found for file in _layers(below, (*above, path))] + [path]
