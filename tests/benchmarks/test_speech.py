"""The benchmark of codecs at a tiny size: rows, their resumption, the page."""

import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speech.py"

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")


def test_finished_runs_are_rows_and_are_not_repeated(tmp_path, monkeypatch):
    def run(*words):
        options = ["--tiny", "--runs", str(tmp_path / "runs"), "--csv", str(tmp_path / "speech.csv"), *words]
        monkeypatch.setattr(sys, "argv", ["speech.py", *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return pd.read_csv(tmp_path / "speech.csv")

    first = run("--arms", "straight_residual", "--seeds", "1")
    assert len(first) == 1
    assert {"si_sdr_1", "mel_4", "bits_per_second_4", "seconds", "hardware", "date"} <= set(first)
    both = run("--arms", "straight_residual", "dac", "dac_reset", "--seeds", "1")
    assert both["arm"].tolist() == ["straight_residual", "dac", "dac_reset"]
    assert both.iloc[0].equals(first.iloc[0])
    assert both["bits_per_second"].nunique() == 1  # equal bits
    page = (tmp_path / "speech.md").read_text()
    assert "| straight_residual |" in page
    assert "| dac |" in page
    assert "| dac_reset |" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "speech.png").stat().st_size > 1000
