"""Exceptions of the package's own: kinds that somebody may want to catch, each a built-in underneath."""


class NonFiniteError(ValueError):
    """Values are NaN, infinite, or so large that computing with them would give such."""
