"""What is in a state, beside what a module has a place for."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def differences(module: nn.Module, state: Mapping[str, Any]) -> str:
    """Says how names and shapes of a state differ from the module's; "" if they do not."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = sorted(key for key in own.keys() & state.keys() if own[key].shape != getattr(state[key], "shape", None))
    found = [f"{word} {listed(keys)}" for word, keys in (("lacks", missing), ("also has", extra)) if keys]
    found += [f"has {key} {_size(state[key])} instead of {_size(own[key])}" for key in other[:2]]
    return "; it ".join(found)


def listed(names: list[str]) -> str:
    """The first three, and how many more there are, for messages."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _size(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
