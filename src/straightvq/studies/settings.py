"""Sections of a size's ``config``, for studies that are one script."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from straightvq.errors import InvalidTypeError, InvalidValueError, did_you_mean


def section(name: str, kind: type, content: Any) -> Mapping[str, Any]:
    """A section that has all fields of a dataclass and nothing else.

    Raises:
        ValueError, TypeError: for keys that are missing or that there are not, and for what is no section.
    """
    keys = [item.name for item in fields(kind)]
    if not isinstance(content, Mapping):
        raise InvalidTypeError(f"`{name}` must be a section with the keys {', '.join(keys)}. Got {content!r}.")
    for key in content:
        if key not in keys:
            hint = did_you_mean(key, keys)
            raise InvalidValueError(f"`{name}` has no key {key!r}.{hint} It takes {', '.join(keys)}.")
    missing = [key for key in keys if key not in content]
    if missing:
        raise InvalidValueError(f"`{name}` must have {', '.join(keys)}. {', '.join(missing)} is not there.")
    return content
