"""What a configuration may say: parts of networks, data and training. A mistake in it becomes one sentence."""

import contextlib
import inspect
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import set_parsing_settings

from straightvq.errors import InvalidValueError, StraightVQError, did_you_mean
from straightvq.recipes import read_recipe


def deny_foreign_code() -> None:
    """Configurations may name parts of networks, data and training; nothing that runs code, reads or writes files.

    jsonargparse checks that a class fits its slot. Its list of denied modules (os, subprocess, pickle, functools, ...)
    also covers slots for functions, but only warns unless it is switched on. Holds for the whole process.
    """
    set_parsing_settings(
        import_path_denylist=["torch.hub", "torch.serialization", "torch.jit"], instantiate_subclass_spec_in_any=False
    )


@contextlib.contextmanager
def explained(*trees: Any) -> Iterator[None]:
    """Turns jsonargparse's nested message about a configuration into one sentence.

    Args:
        trees: the configuration as nested dictionaries, later ones laid over earlier ones.

    Raises:
        ValueError: saying what is wrong and where; for a misspelt option also what is accepted.
    """
    try:
        yield
    except ArgumentError as error:
        raise InvalidValueError(_misspelt(trees) or innermost(error)) from error


def trees_of(words: Sequence[str]) -> list[Any]:
    """The files and options of a resolved command line, as trees for `explained`."""
    trees: list[Any] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option == "--config":
            trees.append(read_recipe(following))
        elif word.startswith("--"):
            tree: Any = value or following
            for key in reversed(option.removeprefix("--").split(".")):
                tree = {key: tree}
            trees.append(tree)
    return trees


def innermost(error: BaseException) -> str:
    """What is wrong, which is the innermost of jsonargparse's nested errors, behind the innermost that names a key."""
    place, what = "", error
    while True:
        if isinstance(what, ArgumentError):
            place = str(what).partition("\n")[0]
        if isinstance(what, StraightVQError):  # of a class that was built
            return str(what)
        below = what.__cause__ or what.__context__
        if below is None:
            return str(what) if place == str(what) else f"{place} {what}"
        what = below


def _misspelt(trees: Sequence[Any]) -> str | None:
    """A sentence on the first option that its class does not accept."""
    classes: dict[tuple[str, ...], str] = {}

    def look(node: Any, place: tuple[str, ...]) -> str | None:
        if isinstance(node, str) and place in classes:  # short for a class_path
            classes[place] = node
        if not isinstance(node, dict):
            return None
        if isinstance(node.get("class_path"), str):
            classes[place] = node["class_path"]
        if place in classes:
            inner = node.get("init_args")
            node = {key: value for key, value in node.items() if key not in ("class_path", "init_args")}
            node |= inner if isinstance(inner, dict) else {}
        accepted = _parameters(classes.get(place, ""))
        for key, value in node.items():
            if accepted and key not in accepted:
                where = f"in {' > '.join(map(str, place))}, {classes[place]}"
                hint = did_you_mean(str(key), accepted)
                return f"Option {key!r} is not accepted ({where}).{hint} It accepts {', '.join(accepted)}."
            if found := look(value, (*place, key)):
                return found
        return None

    return next((found for tree in trees if (found := look(tree, ()))), None)


def _parameters(class_path: str) -> list[str]:
    """Names that a class accepts; none if it takes any. Nothing is imported: whatever is allowed was by the parser."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    if not callable(kind):
        return []
    parameters = inspect.signature(kind).parameters.values()
    return [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters]
