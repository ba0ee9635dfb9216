"""A state under import: entries are taken one by one, and what nobody takes is told."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn import Quantizer

_OWNER = "from_state_dict"


@dataclass(frozen=True)
class Imported:
    """What an import gives. Printed, it is a report.

    Attributes:
        quantizer: ours, with the codes, projections and moving averages of the state.
        layout: the name of the layout that was read.
        prefix: what the names of the quantizer's entries begin with.
        dropped: entries of the quantizer that have no place here, with the reason.
        notes: what differs from the library that wrote the state, in sentences.
        others: entries that are not the quantizer's: of the network around it.
    """

    quantizer: Quantizer
    layout: str
    prefix: str
    dropped: dict[str, str]
    notes: tuple[str, ...]
    others: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{type(self.quantizer).__name__} from the layout {self.layout!r}, entries at {self.prefix!r}."]
        lines += [f"dropped {name}: {reason}" for name, reason in self.dropped.items()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"{len(self.others)} entries of the network around it."] if self.others else []
        return "\n".join(lines)


class Source:
    """The entries of one quantizer, and the settings that no entry tells.

    Args:
        layout: name of the layout, for messages.
        state: all entries.
        prefix: what the names of the quantizer's begin with.
        settings: by name; None where the caller has not given one.
    """

    def __init__(self, layout: str, state: Mapping[str, Tensor], prefix: str, settings: Mapping[str, Any]) -> None:
        self.layout, self.prefix = layout, prefix
        self._others = [name for name in state if not name.startswith(prefix)]
        self._left = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._asked: set[str] = set()
        self._dropped: dict[str, str] = {}
        self._notes: list[str] = []

    # --- entries --------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        return name in self._left

    def names(self, start: str) -> list[str]:
        """Those of the entries that begin so."""
        return [name for name in self._left if name.startswith(start)]

    def count(self, name: str) -> int:
        """How many entries there are of a name with a number at ``{}``, from 0 on; at least one."""
        self.peek(name.format(0))
        number = 0
        while name.format(number) in self._left:
            number += 1
        return number

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The entry, which must have this shape; None for any size. Floating point, in at least float32."""
        value = self.peek(name)
        fits = value.ndim == len(shape) and all(
            have > 0 and want in (None, have) for want, have in zip(shape, value.shape, strict=True)
        )
        if not fits or not value.is_floating_point():
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise InvalidValueError(
                f"`{_OWNER}`: the entry {self.prefix + name!r} must be floating point of the shape ({wanted}). "
                f"Got {value.dtype}, shape {tuple(value.shape)}."
            )
        if value.is_meta or value.layout is not torch.strided:
            kind = "one without data, on the meta device" if value.is_meta else str(value.layout)
            raise InvalidValueError(
                f"`{_OWNER}`: the entry {self.prefix + name!r} must be a dense tensor with data. Got {kind}."
            )
        del self._left[name]
        dtype = torch.float32 if value.element_size() < 4 else value.dtype
        return value.detach().to("cpu", dtype, copy=True)

    def take_if_there(self, name: str, *shape: int | None) -> Tensor | None:
        return self.take(name, *shape) if self.has(name) else None

    def peek(self, name: str) -> Tensor:
        """The entry as it is, which stays. Raises if it is missing."""
        if name not in self._left:
            raise InvalidValueError(
                f"`{_OWNER}`: a state of the layout {self.layout!r} must have an entry {self.prefix + name!r}. "
                f"Got {listed(self._left)}."
            )
        return self._left[name]

    def put(self, name: str, value: Tensor) -> None:
        """Puts an entry in the place of another, in a form that is easier to take."""
        self._left[name] = value

    def drop(self, name: str, reason: str) -> None:
        """Leaves an entry behind, if it is there."""
        if self._left.pop(name, None) is not None:
            self._dropped[self.prefix + name] = reason

    def refuse(self, pattern: str, reason: str) -> None:
        """Raises if there are entries of this name."""
        found = [name for name in self._left if re.fullmatch(pattern, name)]
        if found:
            raise InvalidValueError(f"`{_OWNER}`: {reason} Got the entry {self.prefix + found[0]!r}.")

    def note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)

    # --- settings -------------------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """A setting that every layout has a use for."""
        self._asked.add(name)
        if value is not None:
            self._settings[name] = value

    def ask(self, name: str, default: Any = None) -> Any:
        self._asked.add(name)
        return self._settings.get(name, default)

    def require(self, name: str, reason: str) -> Any:
        """A setting that must be given, because of ``reason``."""
        value = self.ask(name)
        if value is None:
            raise InvalidValueError(f"`{_OWNER}`: `{name}` must be given, because {reason}. Got None.")
        return value

    def decay(self, default: float) -> float:
        """That of the moving averages, as told or the library's."""
        told = self.ask("decay")
        if told is None:
            self.note(f"no entry tells the decay of the moving averages: it is the library's default, {default}.")
        return float(default if told is None else told)

    # --- the end --------------------------------------------------------------------------------------------------

    def finish(self, quantizer: Quantizer) -> Imported:
        """The report. Raises if entries or settings are left that the layout has no use for."""
        for name in self._settings.keys() - self._asked:
            raise InvalidValueError(
                f"`{_OWNER}`: `{name}` must be left out: this state of the layout {self.layout!r} has no use for it. "
                f"Got {self._settings[name]!r}."
            )
        if self.prefix and self._left:
            raise InvalidValueError(
                f"`{_OWNER}`: entries at {self.prefix!r} must be those of the layout {self.layout!r}. "
                f"Got {listed(self._left)} as well: options of the library that are not known here."
            )
        others = (*self._others, *self._left)
        return Imported(quantizer, self.layout, self.prefix, self._dropped, tuple(self._notes), others)


def check_state(state: Any) -> Mapping[str, Tensor]:
    """Returns the state if it is a mapping of names to tensors."""
    if not isinstance(state, Mapping):
        raise InvalidTypeError(f"`{_OWNER}`: `state` must be a dict of tensors by name. Got {type(state).__name__}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InvalidTypeError(
                f"`{_OWNER}`: `state` must be a dict of tensors by name. Got {type(value).__name__} at {name!r}."
            )
    return state


def listed(names: Any, most: int = 6) -> str:
    """The first names, and how many more there are, for messages."""
    shown = ", ".join(map(repr, list(names)[:most])) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def cannot_hold(layout: str, reason: str) -> NoReturn:
    """Refuses a quantizer that a layout has no entries for."""
    raise InvalidValueError(f"`to_state_dict`: the layout {layout!r} cannot hold this quantizer: {reason}")
