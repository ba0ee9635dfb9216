"""Which torch a test needs, and why."""

import pytest
import torch


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skips a test below that version; ``what`` ends the sentence "torch 2.13 ...".

    The version is the oldest with which the test was run and passed; docs/install.md has the table.
    """
    return pytest.mark.skipif(
        torch.__version__ < version, reason=f"torch {version} {what}; this is torch {torch.__version__}"
    )


one_graph = needs_torch("2.13", "compiles the layer in one graph")
exported = needs_torch("2.13", "exports the layer")
