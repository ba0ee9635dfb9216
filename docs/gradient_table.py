"""Writes ``docs/gradients.md`` from the gradient contract of the tests: ``python docs/gradient_table.py``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.contracts.gradient_page import page

    (ROOT / "docs" / "gradients.md").write_text(page(), encoding="utf-8")
