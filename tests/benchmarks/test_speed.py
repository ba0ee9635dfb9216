"""The benchmark's own arithmetic, and that a row which exceeds a limit says so."""

import contextlib
import csv
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.speed.__main__ import FIELDS, LINES
from benchmarks.speed.methods import METHODS, Kind, Problem, _start_step
from benchmarks.speed.report import PRODUCT, QUERY, RESIDUAL, SHARE_OF, START, Rows, promises, write_report

MIDDLE = (16384, 8192, 64)


def _write(path: Path, cells: dict[tuple[str, str, tuple[int, int, int]], tuple[float, float]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        for (kind, method, size), (seconds, extra) in cells.items():
            sizes = dict(zip(("vectors", "codes", "width"), size, strict=True))
            common = {"device": "cpu", "threads": 2, "date": "2026-01-01", "outcome": "ok" if seconds else "over 6 GB"}
            writer.writerow({"kind": kind, "method": method, "seconds": seconds, "extra_mb": extra, **sizes, **common})
    return path


def test_a_promise_is_a_ratio_of_two_rows_of_one_size(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "speed-cpu.csv",
        {
            ("step", "straightvq, EMA", MIDDLE): (0.2, 20.0),
            ("step", "vector-quantize-pytorch", MIDDLE): (3.2, 3000.0),
            ("search", "straightvq", MIDDLE): (0.1, 1.0),
            ("query", "straightvq", QUERY): (0.002, 1.0),
            ("query", "cdist + argmin", QUERY): (0.008, 1.0),
            ("start", "straightvq, EMA", START): (0.02, 1.0),
            ("start", "straightvq, EMA, during k-means init", START): (0.08, 1.0),
            ("growth", "search", MIDDLE): (0.1, 1.0),
            ("growth", "search, 2 x vectors", MIDDLE): (0.19, 1.0),
            ("growth", "search, 4 x vectors", MIDDLE): (0.4, 1.0),
            ("growth", "search, 2 x codes", MIDDLE): (0.2, 1.0),
            ("growth", "search, 4 x codes", MIDDLE): (0.41, 1.0),
            ("growth", "step", MIDDLE): (0.1, 1.0),  # without the rest
            ("search", "FAISS", MIDDLE): (0.0, 0.0),  # exceeded a limit
        },
    )
    found = {what: value for what, _, value, _ in promises(Rows(path))}
    assert found["step, 8,192 codes, EMA: speed-up over vector-quantize-pytorch"] == pytest.approx(16)
    assert found["step, 8,192 codes, EMA: its peak memory over ours"] == pytest.approx(150)
    assert found["search, 8,192 codes: time over FAISS"] is None
    assert found["search, one vector, 65,536 codes: time over cdist + argmin"] == pytest.approx(0.25)
    during_init = "step, 256 vectors, 8,192 codes, during k-means init: time over a later one"
    assert found[during_init] == pytest.approx(4)
    assert found["search: largest growth for a doubling, from 8,192 codes up"] == pytest.approx(0.4 / 0.19)
    assert found["step: largest growth for a doubling, from 8,192 codes up"] is None


def test_every_promise_is_about_rows_that_are_measured(tmp_path: Path) -> None:
    sizes = [*LINES, QUERY, RESIDUAL, PRODUCT, START, SHARE_OF["cpu"]]
    cells = {
        (kind, name, size): (1.0, 1.0)
        for kind, methods in METHODS.items()
        for name, method in methods.items()
        if "cpu" in method.devices
        for size in sizes
    }
    missing = [what for what, _, value, _ in promises(Rows(_write(tmp_path / "speed-cpu.csv", cells))) if value is None]
    assert missing == []


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_does_its_work(kind: Kind) -> None:
    """On a small size, but for a network's step and for packages that are not there."""
    for name, method in METHODS[kind].items():
        if "cpu" not in method.devices or kind == "share":
            continue
        with contextlib.suppress(ModuleNotFoundError):
            once = method.make(Problem(32, 256, 8, "cpu"))
            once()
            assert isinstance(once(), float) == ("during" in name)


def test_a_step_during_the_init_leaves_it_unfinished() -> None:
    """However often it is repeated, it is a step of the init."""
    once = _start_step(Problem(32, 128, 8, "cpu"))  # four batches would end it
    layer = inspect.getclosurevars(once).nonlocals["layer"]
    for _ in range(9):
        once()
        assert layer.codebook.filled.sum() == 64
        assert not layer.codebook.is_ready


def test_the_page_says_what_holds_and_which_limit_was_exceeded(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "speed-cpu.csv",
        {
            ("search", "straightvq", MIDDLE): (0.1, 1.0),
            ("search", "FAISS", MIDDLE): (0.05, 1.0),
            ("search", "cdist + argmin", MIDDLE): (0.0, 0.0),
            ("step", "straightvq, EMA", MIDDLE): (0.2, 20.0),
        },
    )
    page, picture = write_report(path, "--seconds 1")
    text = page.read_text()
    assert "| search, 8,192 codes: time over FAISS | <= 1.15 | 2 | **does not hold** |" in text
    assert "*over 6 GB*" in text
    assert "`python -m benchmarks.speed --seconds 1`" in text
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_every_row_runs_in_a_process_with_limits(tmp_path: Path) -> None:
    sizes = ["--vectors", "8192", "--codes", "2048", "--widths", "8", "--kinds", "search", "--repetitions", "1"]
    command = [sys.executable, "-m", "benchmarks.speed", *sizes, "--threads", "1", "--out", str(tmp_path)]
    subprocess.run([*command, "--memory-limit", "0.05"], check=True, capture_output=True)
    outcomes = {row["method"]: row["outcome"] for row in Rows(tmp_path / "speed-cpu.csv").all}
    assert outcomes["straightvq, torch only"] == "ok"
    assert outcomes["cdist + argmin"] == outcomes["matrix product alone"] == "over 0.05 GB"
    subprocess.run([*command, "--time-limit", "0.001"], check=True, capture_output=True)
    assert {row["outcome"] for row in Rows(tmp_path / "speed-cpu.csv").all} == {"over 0.001 s"}
