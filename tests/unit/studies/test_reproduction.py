"""Studies through the real command line: whole, stopped and taken up again, with mistakes."""

import dataclasses
import errno
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
import yaml
from tests.full_disk import fills_up
from tests.small_study import UNTUNED, Command, Counter, edited, table

from straightvq.cli import main
from straightvq.generation import Tokenizer
from straightvq.studies import engine, load_study, reproduction
from straightvq.studies.plan import Plan
from straightvq.studies.results import Cell, Result, Results, Run
from straightvq.studies.train import words
from straightvq.training.command_line import TrainingCLI, quiet


def test_whole_study(study: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter(monkeypatch)
    said = study.says()
    assert counter.titles[:2] == ["digits net VQ tuning: lr 1e-2", "digits net VQ tuning: lr 1e-3"]
    assert len(counter.titles) == 8
    assert "digits net VQ seed 1: accuracy" in said
    rows = table()
    assert len(rows) == 8
    assert {(row["row"], row["kind"], row["number"]) for row in rows} == {
        (row, kind, number) for row in ("VQ", "unquantized") for kind in ("tune", "final") for number in "01"
    }
    finals = [row for row in rows if row["kind"] == "final"]
    assert all(0 <= float(row["test/accuracy"]) <= 1 for row in finals)
    assert all(row["test/perplexity"] for row in finals if row["row"] == "VQ")
    assert not any(row["test/perplexity"] for row in finals if row["row"] == "unquantized")
    page = Path("out/report.md").read_text()
    assert "4 of 4 runs are finished" in page
    assert "47.2" in page
    for name in ("report.tex", "results.png", "curves.png"):
        assert Path("out", name).is_file()
    # The setting that was best on the validation set is the one of the final runs.
    tuned = {row["setting"]: float(row["val/accuracy"]) for row in rows if row["kind"] == "tune" and row["row"] == "VQ"}
    assert {row["setting"] for row in finals if row["row"] == "VQ"} == {max(tuned, key=lambda name: tuned[name])}
    # Nothing is repeated; a finished run leaves no checkpoint behind, and can be repeated by itself.
    assert study() == 0
    assert len(counter.titles) == 8
    place = Path("out/runs/digits/net/VQ/seed1")
    assert not list(place.glob("*.ckpt"))
    assert main(["fit", "--config", str(place / "config.yaml"), "--name", "again", "--runs", "again"]) == 0
    assert main(["test", "--config", str(place / "config.yaml"), "--ckpt_path", "again/again/last.ckpt"]) == 0
    expected = next(row["test/accuracy"] for row in finals if (row["row"], row["number"]) == ("VQ", "1"))
    shown = capsys.readouterr().out
    assert expected[:6] in shown


@pytest.mark.slow
def test_a_killed_study_goes_on_to_the_same_results(study: Command, tmp_path: Path) -> None:
    """Killed in the middle of a run, without a chance to clean up."""
    content = edited(sizes__s__config={"trainer": {"max_epochs": 40}})
    options = ("--rows", "VQ", "--seeds", "1")
    assert study(*options, content=content) == 0
    undisturbed = table()
    command = [sys.executable, "-m", "straightvq", "reproduce", "mine.yaml", "--size", "s", "--out", "killed", *options]
    # The same number of threads as here, since sums over several round differently.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread)
    last = tmp_path / "killed/runs/digits/net/VQ/seed0/last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not last.with_name("result.json").exists()
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert 0 < stopped_at < 200
    assert main(["reproduce", "mine.yaml", "--size", "s", "--out", "killed", "--keep", *options]) == 0
    assert table(Path("killed")) == undisturbed
    assert len(list(last.parent.glob("metrics/version_*"))) == 2, "it started again instead of going on"


def test_ctrl_c_says_how_to_go_on(
    study: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        Counter(patch, KeyboardInterrupt(), at=2)
        assert study("--rows", "VQ") == 130
    assert "stopped; 2 finished runs are in out. The same command goes on" in capsys.readouterr().err
    assert len(table()) == 2
    counter = Counter(monkeypatch)
    assert study("--rows", "VQ") == 0
    assert len(counter.titles) == 2


def test_full_disk_leaves_finished_results_intact(study: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Counter(patch, OSError(errno.ENOSPC, "No space left on device"), at=1)
        said = study.refuses("--rows", "VQ")
    assert "cannot write the results: [Errno 28] No space left on device. The 1 finished runs in 'out' are" in said
    assert len(table()) == 1
    assert study("--rows", "VQ") == 0
    assert len(table()) == 4


@pytest.fixture
def stopped(study: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], int]:
    """A study of one run whose disk filled within its second checkpoint, as `capsys` heard; it goes on when called."""
    go_on = functools.partial(study, "--rows", "unquantized", "--seeds", "1", content=UNTUNED)
    with monkeypatch.context() as patch:
        fills_up(patch, after=1)
        assert go_on() == 2
    return go_on


def test_a_disk_that_fills_within_a_checkpoint_leaves_the_one_before(
    stopped: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    said = capsys.readouterr().err
    last = Path("out/runs/digits/net/unquantized/seed0/last.ckpt")
    assert said.startswith("straightvq: `reproduce`: cannot write the results: [Errno 28] No space left on device: ")
    assert f"{str(last)!r}. The 0 finished runs in 'out' are intact" in said
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert stopped() == 0
    assert len(list(last.parent.glob("metrics/version_*"))) == 2, "it started again instead of going on"


@pytest.mark.parametrize("owner", ["", "[]", '{"settings": "another"}'])
def test_a_checkpoint_of_nobody_or_of_other_settings_is_not_gone_on_from(
    owner: str, stopped: Callable[[], int]
) -> None:
    place = Path("out/runs/digits/net/unquantized/seed0")
    assert len(json.loads((place / "study_run.json").read_text())["settings"]) == 12
    (place / "study_run.json").write_text(owner)
    assert stopped() == 0
    assert len(list(place.glob("metrics/version_*"))) == 1


def test_a_damaged_checkpoint_is_named_with_a_way_out(
    stopped: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    place = Path("out/runs/digits/net/unquantized/seed0")
    (place / "last.ckpt").write_bytes(b"half")
    assert stopped() == 2
    said = capsys.readouterr().err
    assert f"`reproduce`: '{place}/last.ckpt' cannot be read as a checkpoint" in said
    assert f"Remove the folder '{place}', and the same command makes this run anew; finished runs are intact." in said
    assert "--ckpt_path" not in said
    shutil.rmtree(place)
    assert stopped() == 0


def test_another_error_of_the_disk_does_not_speak_of_room(study: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Counter(monkeypatch, PermissionError(errno.EACCES, "Permission denied"), at=0)
    assert "are intact; the same command goes on once that is put right." in study.refuses("--rows", "VQ")


def test_a_file_in_the_place_of_the_folder_is_named(study: Command) -> None:
    Path("out").write_text("mine")
    said = study.refuses("--rows", "VQ")
    assert said.startswith("straightvq: `reproduce`: cannot write the results: ")
    assert "'out" in said
    assert Path("out").read_text() == "mine"


def test_the_result_is_written_before_the_checkpoint_goes(
    built_upon: Command, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Results, run: Run, result: Result) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", full)
        assert built_upon("--rows", "VQ", "--seeds", "1") == 2
    assert Path("out/same/runs/digits/net/VQ/seed0/last.ckpt").is_file()


def test_a_folder_that_another_process_is_at_is_refused(study: Command, trained: list[Run]) -> None:
    Path("out").mkdir()
    with filelock.FileLock("out/.reproduce.lock", is_singleton=False):
        assert "another process is at the study in 'out'. Wait for it, take" in study.refuses("--seeds", "1")
        assert study("--dry-run") == 0, "a listing disturbs nobody"
    assert trained == []
    assert study("--seeds", "1") == 0


def test_what_another_process_finished_before_it_left_is_not_repeated(
    study: Command, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while this one reads the configurations."""

    def meanwhile() -> Callable[[Run, Path], None]:
        def read(run: Run, place: Path) -> None:
            if run.cell.row == "unquantized":
                Results(Path("out")).add(run, Result.of(run, 1.0, {"test/accuracy": 0.25}))

        return read

    monkeypatch.setattr(engine, "Check", meanwhile)
    assert study("--seeds", "1", content=UNTUNED) == 0
    assert [run.cell.row for run in trained] == ["VQ"]
    assert [(row["row"], row["test/accuracy"]) for row in table()] == [("VQ", "0.5"), ("unquantized", "0.25")]


def test_several_workers_need_ray(study: Command) -> None:
    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed")
    said = study.refuses("--workers", "2", "--seeds", "1")
    assert "`workers` must be 1 where Ray is not installed. Got 2. Several need the extra" in said
    assert "straightvq[cluster]" in said
    assert not Path("out").exists()


@pytest.mark.slow
def test_workers_of_ray_come_to_the_same_results(study: Command) -> None:
    pytest.importorskip("ray")
    assert study("--rows", "VQ") == 0
    alone = table()
    shutil.rmtree("out")
    assert study("--rows", "VQ", "--workers", "2") == 0
    assert table() == alone


def test_several_workers_do_every_run_once_and_no_row_before_its_tuning(
    study: Command, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads in place of Ray's processes; the first two wait for one another."""
    both, train = threading.Barrier(2), engine.train

    def together(run: Run, place: Path, show: Any) -> Result:
        if run.kind == "tune" and run.cell.row == "VQ":
            both.wait(60)
        return dataclasses.replace(train(run, place, show), metrics={"test/accuracy": 0.5, "val/accuracy": run.number})

    monkeypatch.setattr(engine, "train", together)
    monkeypatch.setattr(reproduction, "executor", ThreadPoolExecutor)
    assert study("--workers", "2", "--seeds", "4") == 0
    assert len({run.title for run in trained}) == len(trained) == len(table()) == 12
    assert {row["setting"] for row in table() if row["kind"] == "final"} == {"lr 1e-3"}


def test_an_error_of_a_worker_is_told_as_one_of_this_process(
    study: Command, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(run: Run, place: Path, show: Any) -> Result:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine, "train", failing)
    monkeypatch.setattr(reproduction, "executor", ThreadPoolExecutor)
    assert "cannot write the results: [Errno 28] No space left on device. The 0 finished" in study.refuses(
        "--workers", "2"
    )


def test_the_table_of_all_runs_is_made_anew_even_where_nothing_is_due(study: Command, trained: list[Run]) -> None:
    assert study(content=UNTUNED) == 0
    before = table()
    Path("out/results.csv").write_text("garbage")
    assert study(content=UNTUNED) == 0
    assert table() == before


def test_results_of_other_settings_stay_out_of_the_report(study: Command, trained: list[Run]) -> None:
    """Of rows that are not run now, and so are not refused."""
    content = edited(tune=UNTUNED["tune"])
    assert study("--seeds", "1", content=content) == 0
    changed = edited(tune=UNTUNED["tune"], rows__unquantized__config={"model.init_args.optimizer.lr": 0.5})
    assert study("--seeds", "1", "--rows", "VQ", content=changed) == 0
    page = Path("out/report.md").read_text()
    assert "1 of 2 runs are finished" in page
    assert "Results left out because the study has other settings now: 1." in page
    assert "| unquantized | – |" in page


def test_another_set_joins_the_report_in_place_of_the_first(study: Command, trained: list[Run]) -> None:
    content = edited(tune=UNTUNED["tune"])
    content["sets"]["half"] = content["sets"]["digits"]
    assert study("--seeds", "1", content=content) == 0
    assert study("--seeds", "1", "--sets", "half", content=content) == 0
    page = Path("out/report.md").read_text()
    assert "## net on digits" in page
    assert "## net on half" in page
    assert "`straightvq reproduce mine.yaml --size s --sets digits half --seeds 1`" in page


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"tune__by": "val/acuracy"}, "digits net VQ tuning: lr 1e-2 has no value 'val/acuracy'"),
        (
            {"measures": {"test/acc": {"label": "accuracy", "better": "higher"}}},
            "digits net VQ seed 0 has no value 'test/acc'",
        ),
    ],
)
def test_a_value_that_is_not_logged_is_named_after_the_first_run_which_is_not_lost(
    change: dict[str, Any], wrong: str, study: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    untuned = {} if "tune__by" in change else {"tune": {"by": "val/accuracy", "settings": {}}}
    said = study.refuses("--rows", "VQ", content=edited(**change, **untuned))
    assert wrong in said
    assert "/accuracy'?" in said
    name = "tune0" if "tune__by" in change else "seed0"
    state = torch.load(Path(f"out/runs/digits/net/VQ/{name}/last.ckpt"), weights_only=True)
    assert state["global_step"] > 0
    assert study("--rows", "VQ", "--seeds", "1", content=edited(**untuned)) == 0
    assert len(list(Path(f"out/runs/digits/net/VQ/{name}/metrics").glob("version_*/metrics.csv"))) == 1


def test_changed_settings_are_refused_until_asked_for(study: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    content = edited(tune=UNTUNED["tune"])
    assert study(content=content) == 0
    before = table()
    changed = edited(tune=UNTUNED["tune"], rows__VQ__config={
        "model.init_args.model.init_args.quantizer": {
            "class_path": "straightvq.studies.ablation",
            "init_args": {"dim": 12, "codebook_size": 6, "channel_dim": 1},
        }
    })  # fmt: skip
    said = study.refuses(content=changed)
    assert "2 result(s) in 'out' are of other settings than the study has now: digits net VQ seed 0" in said
    assert "--rerun" in said
    assert table() == before
    counter = Counter(monkeypatch)
    assert study("--rerun", content=changed) == 0
    assert counter.titles == ["digits net VQ seed 0", "digits net VQ seed 1"]
    after = table()
    assert [row["settings"] for row in after if row["row"] == "unquantized"] == [
        row["settings"] for row in before if row["row"] == "unquantized"
    ]
    assert len(after) == len(before)
    assert after != before


def test_precision_is_a_setting_of_every_run_and_the_report_names_it(
    study: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    options = ("--rows", "VQ", "--seeds", "1")
    assert study(*options, "--precision", "bf16-mixed") == 0
    assert len(counter.titles) == 3
    for name in ("tune0", "seed0"):
        config = yaml.safe_load(Path(f"out/runs/digits/net/VQ/{name}/config.yaml").read_text())
        assert config["trainer"]["precision"] == "bf16-mixed"
    page = Path("out/report.md").read_text()
    assert "`straightvq reproduce mine.yaml --size s --seeds 1 --precision bf16-mixed`" in page
    before = table()
    assert "give the options they were made with" in study.refuses(*options)
    assert table() == before
    assert study(*options, "--precision", "bf16-mixed") == 0
    assert len(counter.titles) == 3


def test_a_training_that_diverges_is_recorded_and_the_study_goes_on(
    study: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = edited(tune=UNTUNED["tune"], base__model__init_args__optimizer__lr=1e30)
    assert study("--seeds", "1", content=content) == 0
    errors = {row["row"]: row["error"] for row in table()}
    assert errors["VQ"].startswith("`VectorQuantizer`: `z` must be finite")
    assert errors["unquantized"].startswith("`StopOnNonFinite`: the loss of step 2 is nan")
    assert "## Failed runs" in Path("out/report.md").read_text()
    counter = Counter(monkeypatch)
    assert study("--seeds", "1", content=content) == 0
    assert counter.titles == []
    failed = [f"digits net {row['row']} seed 0" for row in table() if row["error"]]
    assert study("--seeds", "1", "--rerun", content=content) == 0
    assert counter.titles == failed


def test_dry_run_lists_and_estimates_and_writes_nothing(study: Command) -> None:
    lines = study.says("--dry-run").splitlines()
    assert lines[0] == "  digits net VQ tuning: lr 1e-2: due, about 1 s"
    assert len(lines) == 9
    assert lines[-1].startswith("8 runs in out; about 0 min to go")
    assert not Path("out").exists()


def test_embedded_data_stand_in_with_a_clear_sentence(study: Command) -> None:
    said = study.says("--rows", "VQ", "--dry-run", size="both")
    assert "No --data was given: embedded digits stand in for own" in said
    assert "digits net VQ seed 0: due" in said


def test_a_set_that_is_named_twice_is_taken_once(study: Command) -> None:
    listed = study.says("--sets", "digits", "digits", "--rows", "VQ", "--seeds", "1", "--dry-run")
    assert listed.splitlines()[-1].startswith("3 runs in out;")


def test_networks_and_rows_can_be_chosen(study: Command) -> None:
    content = edited(tune=UNTUNED["tune"])
    content["sizes"]["s"]["models"]["wide"] = {"config": {}}
    options = ("--models", "wide", "--rows", "unquantized", "--seeds", "1", "--dry-run")
    listed = study.says(*options, content=content)
    assert listed.startswith("  digits wide unquantized seed 0: due\n1 runs in out; ")
    assert listed.endswith(", and 1 runs of unknown length\n")


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (("--rows", "VQQ"), "s", "`--rows` 'VQQ' is not there. Did you mean 'VQ'? There are: VQ, unquantized."),
        (("--models", "nett"), "s", "`--models` 'nett' is not there. Did you mean 'net'?"),
        (("--sets", "digit"), "s", "`--sets` 'digit' is not there. Did you mean 'digits'?"),
        (("--seeds", "0"), "s", "`seeds` must be an integer >= 1. Got 0."),
        ((), "large", "in mine, the size 'large' is not there. There are: s, own, both."),
        ((), "own", "mine in size own needs own: pass --data with the folder that holds own."),
        (("--data", "nowhere"), "own", "needs the set own in 'nowhere/own', which is not there."),
    ],
)
def test_mistakes_on_the_command_line(options: tuple[str, ...], size: str, message: str, study: Command) -> None:
    said = study.refuses(*options, size=size)
    assert said.startswith("straightvq: `reproduce`: ")
    assert message in said
    assert not Path("out").exists()


def test_unreadable_image_stops_the_study_by_name(study: Command) -> None:
    for name in ("a", "b"):
        folder = Path("sets/own", name)
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.png").write_text("not a picture")
    said = study.refuses("--data", "sets", "--rows", "unquantized", size="own")
    assert said.startswith("straightvq: `Images`: ")
    assert said.endswith("The run was: own net unquantized seed 0.\n")
    assert "cannot be read: not an image" in said


def test_misspelt_key_in_an_overlay_leads_with_the_innermost_line(study: Command) -> None:
    content = edited(rows__VQ__config={"model.init_args.label_smothing": 0.1})
    assert "Option 'label_smothing' is not accepted" in study.refuses("--rows", "VQ", content=content)


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_misspelt_key_in_a_later_row_is_found_before_the_first_one_runs(
    options: tuple[str, ...], study: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    content = edited(rows__unquantized__settings={"a": {}, "b": {"model.init_args.label_smothing": 0.1}})
    said = study.refuses(*options, content=content)
    assert said.startswith("straightvq: Option 'label_smothing' is not accepted")
    assert said.endswith("The run was: digits net unquantized tuning: b.\n")
    assert counter.titles == []
    assert not Path("out").exists()


def test_configurations_are_read_once_for_each_network_row_and_setting_that_is_due(
    study: Command, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = edited()
    content["sets"]["half"] = content["sets"]["digits"]
    content["sizes"]["s"]["sets"] = ["digits", "half"]
    read: list[str] = []
    monkeypatch.setattr(engine, "Check", lambda: lambda run, place: read.append(run.title))
    assert study("--rows", "VQ", content=content) == 0
    assert read == ["digits net VQ tuning: lr 1e-2", "digits net VQ tuning: lr 1e-3", "half net VQ tuning: lr 1e-2"]
    read.clear()
    assert study(content=content) == 0
    assert read == [
        f"{name} net unquantized tuning: lr 1e-{n}" for name, n in (("digits", 2), ("digits", 3), ("half", 2))
    ]
    read.clear()
    assert study(content=content) == 0
    assert read == []


def test_damaged_result_is_named(study: Command) -> None:
    place = Path("out/runs/digits/net/VQ/seed0")
    place.mkdir(parents=True)
    (place / "result.json").write_text("{")
    assert "seed0/result.json' is not a result of this version" in study.refuses("--dry-run")


def test_toy_is_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "toy"]) == 0
    assert Path("studies/toy/toy.png").is_file()
    for option in (["--seeds", "3"], ["--seeds", "0"], ["--size", "paper"], ["--keep"], ["--rerun"]):
        assert main(["reproduce", "toy", *option]) == 2
        assert "takes no option but --out" in capsys.readouterr().err


def test_a_figure_cannot_take_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    assert main(["reproduce", "toy", "--out", "taken"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("straightvq: ")
    assert "taken" in said


def test_a_full_disk_under_a_figure_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("straightvq.studies.toy.draw_toy", full)
    assert main(["reproduce", "toy"]) == 2
    assert capsys.readouterr().err == (
        "straightvq: `reproduce`: cannot write the results: [Errno 28] No space left on device. "
        "The same command makes them anew once there is room.\n"
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("straightvq.studies.toy.draw_toyy", "has no attribute 'draw_toyy'"),
        ("straightvq.studies.toi.draw_toy", "straightvq.studies.toi"),
        ("draw_toy", "Expected a dot import path string: draw_toy"),
        ("straightvq.studies.toy.LR", "expects a function or a callable class"),
    ],
)
def test_misspelt_script_is_named(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({"title": "A", "about": "B", "script": script}))
    assert main(["reproduce", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("straightvq: `reproduce`: in 'mine.yaml', `the study`: Parser key \"script\"")
    assert message in said


def titles(runs: list[Run]) -> list[str]:
    """Of the runs since the last call."""
    found = [run.title for run in runs]
    runs.clear()
    return found


def test_what_a_study_is_built_upon_runs_first_and_only_once(built_upon: Command, trained: list[Run]) -> None:
    assert built_upon() == 0
    runs = list(trained)
    finals = [f"digits net {row} seed {seed}" for seed in (0, 1) for row in ("VQ", "unquantized")]
    assert titles(trained) == [*finals, "digits net classifier seed 0", *finals]
    upon = {run.title: {option: folder for option, (folder, _) in run.upon.items()} for run in runs[5:]}
    assert upon["digits net VQ seed 1"] == {
        "model.init_args.tokenizer": "out/same/runs/digits/net/VQ/seed1",
        "model.init_args.features": "out/single/runs/digits/net/classifier/seed0",
    }
    page = Path("out/report.md").read_text()
    assert "Built on [same](same/report.md), [single](single/report.md)" in page
    single = Path("out/single/report.md").read_text()
    assert "`straightvq reproduce mine.yaml --size s`" in single
    assert "1 of 1 runs are finished" in single
    assert built_upon() == 0
    assert titles(trained) == []


def test_chosen_rows_need_only_what_serves_them(built_upon: Command, trained: list[Run]) -> None:
    assert built_upon.says("--rows", "unquantized", "--seeds", "1", "--dry-run").splitlines() == [
        "  digits net unquantized seed 0: due, about 2 s",
        "1 runs in out/same; about 0 min to go",
        "  digits net classifier seed 0: due, about 2 s",
        "1 runs in out/single; about 0 min to go",
        "  digits net unquantized seed 0: due, about 2 s",
        "1 runs in out; about 0 min to go",
    ]
    assert titles(trained) == []
    assert not Path("out").exists()


def test_precision_is_that_of_what_a_study_is_built_upon_too(built_upon: Command, trained: list[Run]) -> None:
    assert built_upon("--rows", "VQ", "--seeds", "1", "--precision", "bf16-mixed") == 0
    assert {run.overlays[2]["trainer"]["precision"] for run in trained} == {"bf16-mixed"}
    assert len(titles(trained)) == 3


def test_results_are_stale_when_what_they_are_built_upon_has_other_settings(
    built_upon: Command, trained: list[Run]
) -> None:
    assert built_upon("--rows", "VQ", "--seeds", "1") == 0
    titles(trained)
    listed = built_upon.says("--rows", "VQ", "--seeds", "1", "--dry-run", lr=1e-3)
    assert listed.count("digits net VQ seed 0: other settings") == 2
    assert "digits net classifier seed 0: finished" in listed
    assert "1 result(s) in 'out/same' are of other" in built_upon.refuses("--rows", "VQ", "--seeds", "1", lr=1e-3)
    assert titles(trained) == []
    assert built_upon("--rows", "VQ", "--seeds", "1", "--rerun", lr=1e-3) == 0
    assert titles(trained) == ["digits net VQ seed 0", "digits net VQ seed 0"]


def test_a_run_built_upon_a_failed_one_fails_with_it(
    built_upon: Command, trained: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = engine.train

    def failing(run: Run, *args: Any, **kwargs: Any) -> Result:
        is_tokenizer = run.cell.row == "VQ" and not run.upon
        return Result.of(run, 1.0, {}, error="diverged") if is_tokenizer else train(run, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train", failing)
        assert built_upon("--seeds", "1") == 0
    assert titles(trained) == [
        "digits net unquantized seed 0",
        "digits net classifier seed 0",
        "digits net unquantized seed 0",
    ]
    errors = {row["row"]: row["error"] for row in table()}
    assert errors == {"VQ": "its run of same failed: diverged", "unquantized": ""}
    assert built_upon("--seeds", "1", "--rerun") == 0
    assert titles(trained) == ["digits net VQ seed 0", "digits net VQ seed 0"]
    assert not any(row["error"] for row in table())


def test_a_checkpoint_that_is_gone_is_named_and_can_be_made_anew(built_upon: Command, trained: list[Run]) -> None:
    assert built_upon("--rows", "VQ", "--seeds", "1") == 0
    place = Path("out/same/runs/digits/net/VQ/seed0")
    (place / "last.ckpt").unlink()
    assert built_upon("--rows", "VQ", "--seeds", "1") == 0, "everything is finished"
    Path("out/runs/digits/net/VQ/seed0/result.json").unlink()
    said = built_upon.refuses("--rows", "VQ", "--seeds", "1")
    assert f"digits net VQ seed 0 is built upon the checkpoint in '{place}', which is gone" in said
    shutil.rmtree(place)
    titles(trained)
    assert built_upon("--rows", "VQ", "--seeds", "1") == 0
    assert titles(trained) == ["digits net VQ seed 0", "digits net VQ seed 0"]


@pytest.mark.parametrize(
    ("follows", "message"),
    [
        ("sme", "the study 'sme' is not there. There are: autoencoder"),
        ("toy", "in toy, the size 's' is not there."),
        ("mine.yaml", "mine is built upon, and must not follow another study itself."),
    ],
)
def test_mistakes_in_what_is_followed(follows: str, message: str, built_upon: Command, trained: list[Run]) -> None:
    assert message in built_upon.refuses(follows=follows)
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "autoencoder"])
def test_shipped_study_runs_in_its_tiny_size(name: str, tmp_path: Path) -> None:
    assert main(["reproduce", name, "--size", "tiny", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text()
    assert "Failed runs" not in page
    assert "straight" in page


def test_maskgit_in_its_tiny_size_draws_what_it_learnt(tmp_path: Path) -> None:
    assert main(["reproduce", "maskgit", "--size", "tiny", "--rows", "all", "--out", str(tmp_path)]) == 0
    (row,) = table(tmp_path)
    assert not row["error"]
    assert float(row["test/rfid"]) > 0
    assert float(row["test/fid"]) > 0
    picture = "samples/digits-MaskGIT-all.png"
    assert f"![digits MaskGIT all]({picture})" in (tmp_path / "report.md").read_text()
    drawn = tmp_path / "runs/digits/MaskGIT/all/seed0/samples/grid.png"
    assert (tmp_path / picture).read_bytes() == drawn.read_bytes()
    assert (tmp_path / "curves.png").is_file(), "FID has no course in training, the cross-entropy has"
    # Only the checkpoints that something is built upon outlive the study.
    kept = [tmp_path / name / "runs/digits" for name in ("maskgit_tokenizer", "maskgit_features")]
    assert sorted(tmp_path.rglob("*.ckpt")) == [
        kept[1] / "ResNet-18/classifier/seed0/last.ckpt",
        kept[0] / "SQ-VAE-net/all/seed0/last.ckpt",
    ]


def built(run: Run, folder: Path, *options: str) -> Any:
    """Task and data of a run, without a trainer and a single step."""

    class Parsed(TrainingCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Any:
            raise StopIteration

        def instantiate_classes(self) -> None:
            self.config_init = self.parser.instantiate_classes(self.config)

        def _run_subcommand(self, subcommand: str) -> None: ...

    with quiet():
        return Parsed(["fit", *words(run, folder / "run"), *options], "x", "").config_init["fit"]


def plan_of(name: str, size: str, sets: Iterable[str] | None = None, rows: Sequence[str] | None = None) -> Plan:
    """All networks of a packaged study on what is not there."""
    study = load_study(name)
    chosen = study.sizes[size]
    places = chosen.sets if sets is None else sets
    cells = [Cell(p, model, row) for p in places for model in chosen.models for row in rows or study.rows]
    return Plan(study, chosen, Results(Path("nowhere")), dict.fromkeys(places, "photos"), cells, cells, 1)


@pytest.mark.parametrize("name", ["classification", "autoencoder"])
@pytest.mark.parametrize("size", ["small", "paper"])
def test_every_configuration_of_a_shipped_study_builds(name: str, size: str, tmp_path: Path) -> None:
    """All rows, and all networks."""
    plan = plan_of(name, size)
    rows, first = ("all", "unquantized"), next(iter(plan.size.models))
    kept = [cell for cell in plan.cells if cell.row in rows or (size == "small" and cell.model == first)]
    for cell in kept:
        config = built(plan.final(cell, 1), tmp_path)
        assert config["model"].quantize == (cell.row != "unquantized")
        assert config["data"].seed == 1


@pytest.mark.parametrize("name", ["classification", "autoencoder"])
def test_the_small_networks_take_every_set(name: str, tmp_path: Path) -> None:
    """Also those that a study does not take by itself."""
    plan = plan_of(name, "small", load_study(name).sets, ["all"])
    for cell in plan.cells:
        if (cell.model, cell.set) == ("ViT", "imagenet100"):
            continue  # has the images of size `paper`
        config = built(plan.final(cell, 0), tmp_path)
        data, task = config["data"], config["model"].eval()
        assert task(torch.zeros(1, data.channels, data.size, data.size)).quantizer.indices.numel() > 1


@pytest.mark.parametrize("size", ["small", "paper"])
def test_maskgit_fits_its_tokenizers(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [*load_study("maskgit").sizes[size].sets, *load_study("maskgit").sizes[size].without_data]
    plan, tokenizers = plan_of("maskgit", size, sets, ["all"]), plan_of("maskgit_tokenizer", size, sets)
    for cell in plan.cells:
        first = built(tokenizers.serving(cell, 0), tmp_path / "first")
        monkeypatch.setattr(Tokenizer, "load", lambda path, model=first["model"].model: Tokenizer(model))
        short = ("--model.init_args.model.init_args.layers", "1", "--model.init_args.tokenizer", "here")
        config = built(plan.final(cell, 0), tmp_path / "second", *short)
        own, other = config["data"], first["data"]
        same = ("size", "channels", "val_fraction", "seed", "num_train", "flip")
        assert {name: getattr(own, name) for name in same} == {name: getattr(other, name) for name in same}
        config["model"]._check_size(torch.zeros(1, own.channels, own.size, own.size))
