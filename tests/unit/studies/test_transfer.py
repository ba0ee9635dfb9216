"""Results that were made elsewhere are taken over from their tables, and nothing but those of the same settings."""

import contextlib
from pathlib import Path

import pytest
import yaml
from benchmarks.collect import collect
from tests.small_study import STUDY, Command, Counter, edited, table

from straightvq.cli import main
from straightvq.runs import write_log
from straightvq.studies.results import FINAL, Cell, Run, read_curves, recorded_curves


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, really run."""
    place = tmp_path_factory.mktemp("finished")
    (place / "mine.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    with contextlib.chdir(place):
        assert main(["reproduce", "mine.yaml", "--size", "s", "--out", "out"]) == 0
    return place / "out"


@pytest.fixture
def elsewhere(finished: Path, tmp_path: Path) -> Path:
    """The finished study's tables and pictures, without its runs."""
    return collect(finished, tmp_path / "kept")


def test_a_study_goes_on_from_its_tables_as_if_its_runs_were_there(
    study: Command, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    assert f"8 finished runs taken over from {elsewhere}\n" in study.says("--known", str(elsewhere))
    assert counter.titles == []
    for name in ("report.md", "report.tex", "results.csv", "curves.csv"):
        assert Path("out", name).read_bytes() == (elsewhere / name).read_bytes(), name
    for name in ("results.png", "curves.png"):
        assert Path("out", name).is_file()
    # Now they are this folder's own.
    assert "0 finished runs taken over" in study.says("--known", str(elsewhere))
    assert study() == 0
    assert counter.titles == []


@pytest.mark.parametrize("place", ["samples/digits-net-VQ.png", "runs/digits/net/VQ/seed0/samples/grid.png"])
def test_samples_come_along(place: str, study: Command, elsewhere: Path, trained: list[Run]) -> None:
    """Also from where older versions kept them."""
    (elsewhere / place).parent.mkdir(parents=True)
    (elsewhere / place).write_bytes(b"picture")
    assert study("--known", str(elsewhere)) == 0
    assert trained == []
    assert Path("out/samples/digits-net-VQ.png").read_bytes() == b"picture"
    assert "![digits net VQ](samples/digits-net-VQ.png)" in Path("out/report.md").read_text()


def test_what_the_tables_lack_is_run(study: Command, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table(elsewhere)
    lines = (elsewhere / "results.csv").read_text().splitlines(keepends=True)
    left = [line for line in lines if ",VQ,final,1," not in line]
    assert len(left) == len(lines) - 1
    (elsewhere / "results.csv").write_text("".join(left))
    counter = Counter(monkeypatch)
    assert study("--known", str(elsewhere)) == 0
    assert counter.titles == ["digits net VQ seed 1"]
    assert table() == whole


def test_results_of_other_settings_stay_where_they_are(study: Command, elsewhere: Path, trained: list[Run]) -> None:
    content = edited()
    content["rows"]["VQ"]["config"]["model.init_args.optimizer.lr"] = 0.02
    assert "4 finished runs taken over" in study.says("--known", str(elsewhere), content=content)
    assert {run.cell.row for run in trained} == {"VQ"}


def test_a_listing_counts_what_would_be_taken_over_and_writes_nothing(study: Command, elsewhere: Path) -> None:
    said = study.says("--known", str(elsewhere), "--dry-run")
    assert said.count(": finished") == 8
    assert not Path("out").exists()


def test_own_results_come_first(study: Command, elsewhere: Path, trained: list[Run]) -> None:
    assert study() == 0
    own = table()
    assert own != table(elsewhere)
    assert study("--known", str(elsewhere)) == 0
    assert table() == own


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.csv", None, "must be a folder with the results.csv of a study"),
        ("results.csv", "a,b\n1,2\n", "is not a table of results"),
        ("results.csv", "\x00\x01", "is not a table of results"),
        ("curves.csv", "a,b\n1,2\n", "is not a table of curves"),
        ("curves.csv", "set,model,row,seed,step,val/accuracy\nx,y,z,zero,1,2\n", "is not a table of curves"),
        ("curves.csv", "", "is not a table of curves"),
    ],
)
def test_what_is_no_table_is_named_and_nothing_is_written(
    study: Command, elsewhere: Path, name: str, content: str | None, message: str
) -> None:
    (elsewhere / name).unlink()
    if content is not None:
        (elsewhere / name).write_text(content)
    assert message in study.refuses("--known", str(elsewhere))
    assert not list(Path(".").glob("out/runs/*/*/*/*/result.json"))


def test_curves_come_back_from_their_table(tmp_path: Path) -> None:
    runs = [Run(Cell("a", "b, c", "d"), FINAL, seed, "", []) for seed in (0, 2)]
    write_log(tmp_path / runs[0].folder, "val/mse", [10, 20], [0.1, 1 / 3])
    write_log(tmp_path / runs[1].folder, "val/mse", [10], [5.0])
    curves = recorded_curves(tmp_path, [*runs, Run(Cell("a", "e", "d"), FINAL, 0, "", [])], "val/mse")
    assert curves.to_dict("split")["data"] == [
        ["a", "b, c", "d", 0, 10, 0.1], ["a", "b, c", "d", 0, 20, 1 / 3], ["a", "b, c", "d", 2, 10, 5.0]
    ]  # fmt: skip
    (tmp_path / "curves.csv").write_text(curves.to_csv(index=False))
    assert read_curves(tmp_path / "curves.csv").equals(curves)
