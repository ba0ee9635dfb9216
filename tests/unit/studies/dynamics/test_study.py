"""The study of dynamics as one command: what it writes, how it goes on, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from straightvq.cli import main
from straightvq.studies import load_study
from straightvq.studies.dynamics import experiments, run_dynamics
from straightvq.studies.dynamics.pictures import PICTURES
from straightvq.studies.dynamics.settings import Settings
from straightvq.studies.parts import COLUMNS, Part, Parts

TINY: dict[str, Any] = load_study("dynamics").sizes["tiny"].config


def part(name: str, calls: list[str], **given: Any) -> Part:
    def run() -> list[list[Any]]:
        calls.append(name)
        return [[0, 1.0, 2.0]]

    return Part("courses", name, "density", 0, given, run)


def test_finished_parts_are_not_computed_again(tmp_path: Path) -> None:
    calls: list[str] = []
    first, second = part("a", calls), part("b", calls)
    Parts(tmp_path, [first]).run()
    parts = Parts(tmp_path, [first, second])
    parts.run()
    assert calls == ["a", "b"]
    assert parts.table().values.tolist() == [["courses", name, "density", 0, 0, 1.0, 2.0] for name in "ab"]
    assert list(parts.table()) == COLUMNS


def test_a_part_that_was_stopped_is_computed_anew_and_the_others_stay(tmp_path: Path) -> None:
    calls: list[str] = []

    def stop() -> list[list[Any]]:
        raise KeyboardInterrupt

    first, stopped = part("a", calls), Part("courses", "b", "density", 0, {}, stop)
    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path, [first, stopped]).run()
    Parts(tmp_path, [first, part("b", calls)]).run()
    assert calls == ["a", "b"]


def test_a_part_of_other_settings_is_replaced(tmp_path: Path) -> None:
    calls: list[str] = []
    Parts(tmp_path, [part("a", calls, cells=1)]).run()
    Parts(tmp_path, [part("a", calls, cells=2)]).run()
    assert calls == ["a", "a"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_every_part_has_a_file_of_its_own_and_settings_that_can_be_told() -> None:
    plan = experiments.plan(Settings.of(TINY, 2))
    assert len({part.file for part in plan}) == len(plan)
    for one in plan:
        assert json.loads(json.dumps(one.given)) is not None


@pytest.mark.parametrize("content", ["{", "[]", '{"values": []}'])
def test_a_file_that_is_no_result_is_named(content: str, tmp_path: Path) -> None:
    one = part("a", [])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / one.file).write_text(content)
    with pytest.raises(ValueError, match=r"courses-a-density.json' is not a result of this version"):
        Parts(tmp_path, [one])


def test_the_time_of_leaving_is_found_between_two_times() -> None:
    assert experiments.left_plateau([0.0, 2.0, 4.0], [0.5, 0.5, 0.4]) == 3.0
    assert experiments.left_plateau([0.0, 2.0], [0.5, 0.46]) == float("inf")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"particels": 3}, ValueError, r"has no key 'particels'. Did you mean 'particles'\?"),
        ({"courses": []}, ValueError, "must have at least one simulation"),
        ({"courses": {"d": 4}}, TypeError, "`courses` must be a list"),
        ({"courses": [{"d": 5, "end": 1}]}, ValueError, "`d` must be even"),
        ({"plateau": {"d": 2, "end": 1}}, ValueError, "`d` must be an integer >= 4. Got 2"),
        ({"plateau": {"d": 4, "end": 0}}, ValueError, "`end` must be"),
        ({"plateau": {"d": 4, "end": 1, "runs": 0}}, ValueError, "`runs` must be an integer >= 1"),
        ({"rates": {"d": 4}}, ValueError, "end is not there"),
        ({"codes": 3}, TypeError, "`codes` must be a section"),
        ({"particles": 1}, ValueError, "`particles` must be an integer >= 2"),
        ({"dt": -0.1}, ValueError, "`dt` must be"),
        ({"cells": 2.5}, TypeError, "`cells` must be an integer >= 10"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Settings.of({**TINY, **change}, 2)


def test_settings_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError, match="dt is not there"):
        Settings.of({key: value for key, value in TINY.items() if key != "dt"}, 2)


def test_simulations_have_as_many_runs_as_the_size_has_seeds() -> None:
    settings = Settings.of(TINY, 7)
    assert (settings.plateau.runs, settings.histogram.runs) == (7, 1)


@pytest.mark.slow
def test_study_is_one_command_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "dynamics", "--size", "tiny"]) == 0
    folder = Path("studies/dynamics-tiny")
    names = {"report.md", "report.tex", "results.csv", "runs", ".reproduce.lock", *(f"{name}.png" for name in PICTURES)}
    assert {path.name for path in folder.iterdir()} == names
    report, values = (folder / "report.md").read_text(), pd.read_csv(folder / "results.csv")
    assert "`straightvq reproduce dynamics --size tiny`" in report
    assert str(tmp_path) not in report
    assert values["value"].notna().all()
    assert set(values.experiment) >= {"courses", "histogram", "plateau", "rest", "rates", "estimators", "codes"}
    capsys.readouterr()
    next((folder / "runs").glob("courses-*")).unlink()
    assert main(["reproduce", "dynamics", "--size", "tiny"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # the part and the report
    again = pd.read_csv(folder / "results.csv")
    pd.testing.assert_frame_equal(again, values)


def test_options_that_mean_nothing_here_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in (["--seeds", "3"], ["--keep"], ["--rows", "none"], ["--dry-run"]):
        assert main(["reproduce", "dynamics", *option]) == 2
        assert "takes no option but --size and --out" in capsys.readouterr().err
    assert main(["reproduce", "dynamics", "--size", "huge"]) == 2
    assert "the size 'huge' is not there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    import filelock

    size = load_study("dynamics").sizes["tiny"]
    (tmp_path / "runs").mkdir()
    with (
        filelock.FileLock(tmp_path / ".reproduce.lock"),
        pytest.raises(ValueError, match="another process is at the study"),
    ):
        run_dynamics(tmp_path, "Title", "About.", size)
