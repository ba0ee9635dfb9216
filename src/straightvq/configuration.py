"""What a configuration may say: parts of networks, data and training. A mistake in it becomes one sentence."""

import contextlib
import dataclasses
import inspect
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from jsonargparse import set_parsing_settings

from straightvq.errors import InvalidValueError, StraightVQError, did_you_mean
from straightvq.recipes import read_recipe


def deny_foreign_code() -> None:
    """Keeps configurations, in this whole process, from naming anything that runs code, reads or writes files.

    jsonargparse checks that a class fits its slot. Its list of denied modules (os, subprocess, pickle, functools, ...)
    covers slots for functions too, but only warns unless it is switched on.
    """
    set_parsing_settings(
        import_path_denylist=["torch.hub", "torch.serialization", "torch.jit"], instantiate_subclass_spec_in_any=False
    )


@contextlib.contextmanager
def explained(*trees: Any, options: Iterable[str] = ()) -> Iterator[None]:
    """Turns jsonargparse's nested message about a configuration into a ValueError of one sentence.

    It says what is wrong and where, and for a misspelt option what is accepted.

    Args:
        trees: the configuration as nested dictionaries, later ones laid over earlier ones.
        options: dotted names of the parser's own options; those of classes are found.
    """
    try:
        yield
    except ArgumentError as error:
        raise InvalidValueError(_misspelt(trees, options) or innermost(error)) from error


def trees_of(words: Sequence[str]) -> list[Any]:
    """The files and options of a resolved command line, as trees for `explained`."""
    trees: list[Any] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option == "--config":
            trees.append(read_recipe(following))
        elif word.startswith("--"):
            tree: Any = value or following
            for key in reversed(option.removeprefix("--").removesuffix("+").split(".")):
                tree = {key: tree}
            trees.append(tree)
    return trees


def innermost(error: BaseException) -> str:
    """The innermost of jsonargparse's nested errors, behind the innermost that names a key."""
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


def _misspelt(trees: Sequence[Any], options: Iterable[str]) -> str | None:
    """A sentence on the first option that the parser, or the class at its place, does not accept."""
    own = [tuple(option.split(".")) for option in options]
    classes: dict[tuple[str, ...], str] = {}  # named by the configuration, or the dataclass of a slot

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
            accepted = _parameters(classes[place])
        else:
            depth = len(place)
            accepted = {name[depth]: None for name in own if name[:depth] == place and len(name) > depth}
        for key, value in node.items():
            if accepted and key not in (*accepted, "help", "print_config"):
                where = f"in {' > '.join(map(str, place))}" if place else "at the top level"
                owner = f", {classes[place]}" if place in classes else ""
                hint = did_you_mean(str(key), list(accepted))
                return f"Option {key!r} is not accepted ({where}{owner}).{hint} It accepts {', '.join(accepted)}."
            if kind := accepted.get(key):
                classes[*place, key] = f"{kind.__module__}.{kind.__qualname__}"
            if found := look(value, (*place, key)):
                return found
        return None

    return next((found for tree in trees if (found := look(tree, ()))), None)


def _parameters(class_path: str) -> dict[str, type | None]:
    """What a class accepts, by name, with the dataclass that a slot takes, if it takes one; empty if it takes anything.

    Nothing is imported: what is allowed was, by the parser.
    """
    module, _, name = class_path.rpartition(".")
    called = getattr(sys.modules.get(module), name, None)
    if not callable(called):
        return {}
    parameters = inspect.signature(called).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {}
    slots = {p.name: [p.annotation, *get_args(p.annotation)] for p in parameters}
    return {
        name: next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
        for name, kinds in slots.items()
    }
