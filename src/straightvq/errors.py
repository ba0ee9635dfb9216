"""Exceptions of the package's own: kinds that somebody may want to catch, each a built-in underneath."""

import difflib
from collections.abc import Sequence


class StraightVQError(Exception):
    """The package was used in a way that it refuses. The message says what was expected and what came."""


class InvalidValueError(StraightVQError, ValueError):
    """A value, a combination of settings or a file that cannot be used."""


class InvalidTypeError(StraightVQError, TypeError):
    """A value of a type that cannot be used."""


class NonFiniteError(InvalidValueError):
    """Values are NaN, infinite, or so large that computing with them would give such."""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A hint for messages at the known word nearest to a misspelt one; "" if none is near.

    Example:
        >>> did_you_mean("phots", ["photos", "digits"])
        " Did you mean 'photos'?"
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
