"""A module as plain values, its class and arguments, and the module made of them again."""

import dataclasses
import importlib
import inspect
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError, did_you_mean

# The packages whose public classes a description may name. Nothing else is imported, whatever a file says.
ROOMS = ("straightvq", "straightvq.interop", "straightvq.models", "straightvq.training")
_KEYS = {"class_path", "init_args"}


def describe(thing: Any) -> Any:
    """A module, a part or settings as plain values, in the form of the recipes: ``class_path`` and ``init_args``.

    The arguments are what the attributes of these names hold now, so that a setting which a schedule has changed, or a
    parametrization that was folded, is described as it is. Where a class keeps an argument under another name, its
    ``kept_as`` says so.

    Raises:
        TypeError, ValueError: for what is not made of public classes of the package and plain values.

    Example:
        >>> import straightvq as svq
        >>> describe(svq.Projection(4))
        {'class_path': 'straightvq.Projection', 'init_args': {'codebook_dim': 4, 'start': 'scaled'}}
    """
    if thing is None or isinstance(thing, (bool, int, str)):
        return thing
    if isinstance(thing, float):
        if not math.isfinite(thing):
            raise InvalidValueError(f"`save_pretrained`: numbers must be finite. Got {thing}.")
        return thing
    if isinstance(thing, Tensor):
        return thing.tolist()
    if isinstance(thing, (list, tuple, nn.ModuleList)):
        return [describe(each) for each in thing]
    if isinstance(thing, nn.Module) or dataclasses.is_dataclass(thing):
        return {
            "class_path": public_name(type(thing)),
            "init_args": {name: describe(value) for name, value in arguments(thing).items()},
        }
    raise InvalidTypeError(
        f"`save_pretrained`: arguments must be numbers, texts, lists and parts. Got {type(thing).__name__}."
    )


def arguments(thing: Any) -> dict[str, Any]:
    """What the constructor would have to be given to make one like this."""
    kept_as: Mapping[str, str] = getattr(type(thing), "kept_as", {})
    return {name: attrgetter(kept_as.get(name, name))(thing) for name in _parameters(type(thing))}


def public_name(kind: type) -> str:
    """Where users import the class from, whatever file it is in."""
    room = ".".join(kind.__module__.split(".")[:2])
    for place in (room, ROOMS[0]):
        if place in ROOMS and getattr(importlib.import_module(place), kind.__name__, None) is kind:
            return f"{place}.{kind.__name__}"
    raise InvalidTypeError(
        f"`save_pretrained`: every part must be of a public class of straightvq. Got {kind.__module__}."
        f"{kind.__qualname__}: of a module of your own, save the quantizer inside, or its state_dict()."
    )


def build(tree: Any) -> Any:
    """Undoes `describe`; classes check their arguments as always.

    Raises:
        TypeError, ValueError: for a tree that describes nothing; whatever the constructors raise.
    """
    if isinstance(tree, list):
        return [build(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() != _KEYS or not isinstance(tree["init_args"], dict):
        raise InvalidValueError(
            f"a part must have class_path and init_args. Got {', '.join(map(repr, tree)) or 'none'}."
        )
    kind = _class_of(tree["class_path"])
    accepted = _parameters(kind)
    for name in tree["init_args"]:
        if name not in accepted:
            hint = did_you_mean(name, list(accepted))
            raise InvalidValueError(f"{tree['class_path']} takes no argument {name!r}.{hint}")
    given = {name: build(value) for name, value in tree["init_args"].items()}
    # JSON has no tuples.
    return kind(**{n: tuple(v) if isinstance(accepted[n].default, tuple) else v for n, v in given.items()})


def _class_of(path: Any) -> type:
    room, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    module = importlib.import_module(room) if room in ROOMS else None
    found = getattr(module, name, None) if module and name in module.__all__ else None
    if not isinstance(found, type) or not (issubclass(found, nn.Module) or dataclasses.is_dataclass(found)):
        raise InvalidValueError(f"class_path must be that of a module in {', '.join(ROOMS)}. Got {path!r}.")
    return found


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Those of the constructor, by name."""
    given = inspect.signature(kind).parameters
    return {name: each for name, each in given.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
