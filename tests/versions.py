"""Which torch, or which other package, a test needs, and why."""

from importlib.metadata import version

import pytest
import torch


def needs_torch(oldest: str, what: str) -> pytest.MarkDecorator:
    """Skips a test below that version; ``what`` ends the sentence "torch 2.13 ...".

    The version is the oldest with which the test was run and passed; docs/install.md has the table.
    """
    return pytest.mark.skipif(
        torch.__version__ < oldest, reason=f"torch {oldest} {what}; this is torch {torch.__version__}"
    )


def needs(package: str, oldest: int, what: str) -> pytest.MarkDecorator:
    """The same of another package, by the first number of its version."""
    here = version(package)
    return pytest.mark.skipif(
        int(here.partition(".")[0]) < oldest, reason=f"{package} {oldest} {what}; this is {package} {here}"
    )


one_graph = needs_torch("2.13", "compiles the layer in one graph")
exported = needs_torch("2.13", "exports the layer")
