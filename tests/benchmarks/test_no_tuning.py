"""The grid without tuning at a tiny size: its cells, their resumption, the page."""

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "no_tuning.py"


def test_our_preset_holds_at_all_scales_and_finished_cells_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*methods: str) -> pd.DataFrame:
        sizes = ["--codes", "16", "--widths", "4", "--rates", "1e-3", "--shares", "64"]
        monkeypatch.setattr(sys, "argv", ["", *sizes, "--out", str(tmp_path / "a.md"), "--methods", *methods])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return pd.read_csv(tmp_path / "a.csv")

    first = run("straight")
    assert len(first) == 6  # scales and means
    assert first["error"].between(0.9, 1.05).all()
    assert (first["used"] == 1).all()
    both = run("straight", "vq_vae")
    assert both.iloc[:6].equals(first)
    assert both.iloc[6:]["error"].max() > 2, "plain VQ does not follow a mean that is far away"
    page = (tmp_path / "a.md").read_text()
    assert "| straight | 16 | 4 | 64 | 6 of 6 |" in page
    assert str(tmp_path) not in page
