"""The benchmark of encoding at a tiny size: both rates, their ratio, the page."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "encode.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")
def test_both_rates_are_measured_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--pictures", "40", "--batch-size", "8", "--rows-per-shard", "16", "--repeats", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["encode.py", *sizes, "--page", str(tmp_path / "page.md")])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    text = (tmp_path / "page.md").read_text()
    assert "recipe photos, 40 pictures of 32 x 32, batches of 8, 2 rounds" in text
    assert re.search(r"\| 0 \(a thread\) \| [\d,]+ \| [\d,]+ \| \d+% \| \d+% to \d+% \|", text)
