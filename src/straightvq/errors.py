"""Exceptions of the package's own: kinds that somebody may want to catch, each a built-in underneath."""


class StraightVQError(Exception):
    """The package was used in a way that it refuses. The message says what was expected and what came."""


class InvalidValueError(StraightVQError, ValueError):
    """A value, a combination of settings or a file that cannot be used."""


class InvalidTypeError(StraightVQError, TypeError):
    """A value of a type that cannot be used."""


class NonFiniteError(InvalidValueError):
    """Values are NaN, infinite, or so large that computing with them would give such."""
