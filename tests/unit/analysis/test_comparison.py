"""`straightvq analyze` of several runs: who is called what, what is averaged, and its messages."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from straightvq.analysis import comparison
from straightvq.analysis.comparison import FILES, Measurements, compare, method_names
from straightvq.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")


def analysis(run: Path, usages: list[float], rates: list[float] | None = None, **more: float) -> dict[str, Any]:
    """What `analyze` returns of a run with these usages at its checkpoints."""
    return {
        "run": run.name,
        "date": "2026-01-01T00:00:00+00:00",
        "versions": {"straightvq": "1", "torch": "2"},
        "settings": {"images": 7},
        "checkpoints": [
            {"step": 10 * number, "values": {"usage": usage, "learning_rate": rate, **more}}
            for number, (usage, rate) in enumerate(zip(usages, rates or [1.0] * len(usages), strict=True), 1)
        ],
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[Path, dict[str, Any]]:
    """Analyses by run, in place of real ones."""
    known: dict[Path, dict[str, Any]] = {}
    monkeypatch.setattr(comparison, "analyze", lambda run, **_: known[run])
    monkeypatch.setattr(comparison, "RunFolder", lambda run: SimpleNamespace(checkpoints=[]))
    return known


def table(page: str) -> dict[str, dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    header, _, *rows = lines
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_runs_are_called_by_what_differs_in_their_paths() -> None:
    assert method_names([Path("/a/VQ/seed0"), Path("/a/affine/seed0")]) == ["VQ", "affine"]
    assert method_names([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert method_names([Path("/a/s1/n/VQ/seed3"), Path("/a/s2/n/VQ/seed0")]) == ["s1", "s2"]
    assert method_names([Path("/a/run"), Path("/a/run/deeper")]) == ["run", "deeper"]


def test_table_has_means_over_moving_checkpoints_and_spread_over_seeds(
    measured: dict[Path, dict[str, Any]], tmp_path: Path
) -> None:
    runs = [tmp_path / "VQ" / "seed0", tmp_path / "VQ" / "seed1", tmp_path / "all" / "seed0"]
    measured[runs[0]] = analysis(runs[0], [0.1, 0.3, 0.9], rates=[1.0, 1.0, 0.0])  # the last one does not count
    measured[runs[1]] = analysis(runs[1], [0.3, 0.5, 0.9], rates=[1.0, 1.0, 0.0])
    measured[runs[2]] = analysis(runs[2], [1.0, 0.5], rates=[0.0, 0.0], gradient_sparsity=0.25)
    target = compare(runs, console=Console(quiet=True))
    assert target == tmp_path / "comparison"
    page = (target / "comparison.md").read_text()
    assert "(../VQ/seed0/analysis/divergence.png)" in page
    assert "(../all/seed0/analysis/tsne.png)" in page
    assert "seed1" not in page
    rows = table(page)
    assert rows["VQ"] == {"method": "VQ", "seeds": "2", "usage": "0.3 ± 0.141", "codes with a gradient": ""}
    assert rows["all"] == {"method": "all", "seeds": "1", "usage": "0.75", "codes with a gradient": "0.25"}
    with (target / "comparison.csv").open() as file:
        numbers = list(csv.DictReader(file))
    assert [(n["method"], n["run"], n["step"], n["usage"]) for n in numbers][2:4] == [
        ("VQ", "seed0", "30", "0.9"),
        ("VQ", "seed1", "10", "0.3"),
    ]


def test_lines_are_means_of_seeds_and_keep_their_colour_where_a_method_lacks_a_number() -> None:
    seeds = [analysis(Path("seed0"), [0.2, 0.4, 0.8]), analysis(Path("seed1"), [0.4, 0.8])]
    other = analysis(Path("seed0"), [1.0, 1.0], rates=[1.0, 0.0], codes_moved=0.5)  # the end moves nothing
    measured = Measurements(["VQ", "all", "VQ"], [seeds[0], other, seeds[1]])
    plots = {plot.title: plot.lines for plot in measured.curves()}
    assert set(plots) == {"Usage", "Codes moved by a step"}
    assert plots["Usage"]["VQ"] == ([10, 20], pytest.approx([0.3, 0.6]))
    assert plots["Codes moved by a step"] == {"VQ": ([], []), "all": ([10], [0.5])}


def test_a_place_for_the_results_that_is_none_is_found_before_anything_is_measured(
    measured: dict[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """No analysis is known here, and none is asked for."""
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match="taken"):
        compare([tmp_path / "a", tmp_path / "b"], out=tmp_path / "taken", console=Console(quiet=True))


def test_a_bar_in_a_name_ends_no_column(measured: dict[Path, dict[str, Any]], tmp_path: Path) -> None:
    runs = [tmp_path / "a|b", tmp_path / "c"]
    measured.update({run: analysis(run, [0.5]) for run in runs})
    page = (compare(runs, console=Console(quiet=True)) / "comparison.md").read_text()
    assert "\n| a\\|b | 0.5 |\n" in page


def test_page_tells_how_the_gradient_gap_follows_the_error() -> None:
    values = {"a": (0.1, 0.2), "b": (0.2, 0.3), "c": (0.4, 0.5), "d": (0.5, 0.6)}
    results = [analysis(Path(name), [1.0, 1.0], error=error, gradient_gap=gap) for name, (error, gap) in values.items()]
    sentence = (
        "Correlation of quantization error and gradient gap over the 4 methods: 1.00 to 1.00 at the 2 checkpoints."
    )
    assert sentence in Measurements([*values], results).page()
    # Deviations of the errors -.2, -.1, .1, .2 and of the gaps -.1, 0, .2, -.1: .02 / (.316 * .245).
    results[3]["checkpoints"][1]["values"]["gradient_gap"] = 0.2
    assert "methods: 0.26 to 1.00 at" in Measurements([*values], results).page()
    assert "Correlation" not in Measurements([*values][:3], results[:3]).page()


def test_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, overlay in (("plain", "plain_vq"), ("narrow", "ema")):
        configs = [word for recipe in ("digits", overlay, "tiny") for word in ("--config", recipe)]
        assert main(["fit", *configs, "--runs", str(tmp_path), "--name", name]) == 0
    out = tmp_path / "both"
    runs = [str(tmp_path / "plain"), str(tmp_path / "narrow")]
    assert main(["analyze", *runs, "--num-images", "8", "--device", "cpu", "--out", str(out)]) == 0
    assert sorted(f.name for f in out.iterdir()) == sorted(FILES)
    assert (tmp_path / "plain" / "analysis" / "report.md").is_file()
    rows = table((out / "comparison.md").read_text())
    assert list(rows) == ["plain", "narrow"]
    assert rows["plain"]["codes with a gradient"]
    assert not rows["narrow"]["codes with a gradient"]
    with Image.open(out / "comparison.png") as picture:
        picture.load()


def test_mistakes_are_told_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["analyze", run, f"{run}/../run"]) == 2
    assert "`compare`: `runs` must be at least two different folders." in capsys.readouterr().err
    assert main(["analyze", *(str(tmp_path / f"run{i}") for i in range(7))]) == 2
    assert "at most 6 methods, one for each colour. Got 7: run0, run1" in capsys.readouterr().err
    assert main(["analyze", run, str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "there is no folder" in told.err
    assert not told.out
