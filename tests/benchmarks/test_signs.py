"""The benchmark of estimators of signs at a tiny size: rows, their resumption, the page."""

import csv
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "signs.py"


def test_finished_runs_are_rows_and_are_not_repeated(tmp_path, monkeypatch):
    def run(*ends):
        sizes = ["--size", "8", "--bits", "4", "--steps", "2", "--batch", "8", "--seeds", "0"]
        options = [*sizes, "--csv", str(tmp_path / "signs.csv"), "--ends", *ends]
        monkeypatch.setattr(sys, "argv", ["signs.py", *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        with (tmp_path / "signs.csv").open() as file:
            return list(csv.DictReader(file))

    first = run("1")
    assert [(row["layer"], row["estimator"]) for row in first] == [
        ("LFQ", "straight-through"), ("LFQ", "rectified, up to 1"),
        ("BSQ", "straight-through"), ("BSQ", "rectified, up to 1"),
    ]  # fmt: skip
    both = run("1", "3")
    assert both[:4] == first
    assert [row["estimator"] for row in both[4:]] == ["rectified, up to 3"] * 2
    assert both[4]["estimating_error"] < both[1]["estimating_error"]  # a higher power is nearer to the sign
    assert "| BSQ | rectified, up to 3 |" in (tmp_path / "signs.md").read_text()
