"""Studies through the real command line: whole, stopped and taken up again, with mistakes."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from straightvq.cli import main
from straightvq.studies import runner, training
from straightvq.studies.study import Run

# Two rows in one network of toy size, tuned over two settings; a second or so for each run.
STUDY: dict[str, Any] = {
    "title": "Two rows",
    "measures": {
        "test/accuracy": {"label": "accuracy", "better": "higher", "scale": 100, "unit": "%"},
        "test/perplexity": {"label": "perplexity"},
    },
    "tune": {
        "by": "val/accuracy",
        "settings": {"lr 1e-2": {"model.init_args.lr": 1e-2}, "lr 1e-3": {"model.init_args.lr": 1e-3}},
    },
    "base": {
        "model": {
            "class_path": "straightvq.tasks.Classification",
            "init_args": {
                "warmup_steps": 2,
                "model": {
                    "class_path": "straightvq.models.AlexNet",
                    "init_args": {"num_classes": 10, "in_channels": 1, "width": 2, "small_images": True},
                },
            },
        },
        "data": {
            "class_path": "straightvq.data.Images",
            "init_args": {"size": 8, "channels": 1, "batch_size": 16, "on_error": "raise"},
        },
        "trainer": {"accelerator": "cpu", "max_steps": -1, "num_sanity_val_steps": 0, "log_every_n_steps": 2},
        "checkpoint": {"monitor": None, "save_top_k": 0},
        "monitor": {"pictures_every": 0},
        "save_every": 3,
    },
    "sets": {
        "digits": {"config": {"data.init_args": {"source": "digits", "num_train": 80, "num_test": 32}}},
        "own": {"folder": "own", "config": {}},
    },
    "rows": {
        "VQ": {
            "config": {
                "model.init_args.model.init_args.quantizer": {
                    "class_path": "straightvq.studies.ablation",
                    "init_args": {"dim": 12, "codebook_size": 8, "channel_dim": 1},
                }
            },
            "paper": {"net": {"accuracy": 47.2}},
        },
        "unquantized": {"config": {"model.init_args.model.init_args.quantizer": None}},
    },
    "sizes": {
        "s": {
            "sets": ["digits"],
            "seeds": 2,
            "models": {"net": {"seconds": 2, "config": {}}},
            "config": {"trainer.max_epochs": 2},
            "tune": {"trainer.max_epochs": 1},
        },
        "own": {
            "sets": ["own"],
            "seeds": 1,
            "models": {"net": {"config": {}}},
            "config": {"trainer.max_epochs": 1},
        },
        "both": {
            "sets": ["own"],
            "without_data": ["digits"],
            "seeds": 1,
            "models": {"net": {"config": {}}},
            "config": {"trainer.max_epochs": 1},
        },
    },
}


def edited(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(STUDY, sort_keys=False))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = content
        for key in parents:
            place = place[key]
        place[last] = value
    return content


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the study in its own folder: ``study("--rows", "VQ", size="s", content=STUDY)``."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, size: str = "s", content: dict[str, Any] = STUDY) -> int:
        Path("mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return main(["reproduce", "mine.yaml", "--size", size, "--out", "out", *options])

    return run


def table(folder: Path = Path("out")) -> list[dict[str, str]]:
    """Without the seconds, which no two runs share."""
    with (folder / "results.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


class Counter:
    """Counts the trainings; stops before a given one as Ctrl-C would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None, at: int = -1) -> None:
        self.titles: list[str] = []
        real = training.train

        def counted(run: Run, *args: Any, **kwargs: Any) -> Any:
            if len(self.titles) == at and error is not None:
                raise error
            self.titles.append(run.title)
            return real(run, *args, **kwargs)

        monkeypatch.setattr(runner, "train", counted)


def test_whole_study(
    study: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counter = Counter(monkeypatch)
    assert study() == 0
    assert counter.titles[:2] == ["digits net VQ tuning: lr 1e-2", "digits net VQ tuning: lr 1e-3"]
    assert len(counter.titles) == 8
    said = capsys.readouterr().out
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
def test_a_killed_study_goes_on_to_the_same_results(study: Callable[..., int], tmp_path: Path) -> None:
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
    study: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        Counter(patch, KeyboardInterrupt(), at=2)
        assert study("--rows", "VQ") == 130
    assert "stopped; 2 finished runs are in out. The same command goes on" in capsys.readouterr().err
    assert len(table()) == 2
    counter = Counter(monkeypatch)
    assert study("--rows", "VQ") == 0
    assert len(counter.titles) == 2


def test_full_disk_leaves_finished_results_intact(
    study: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        Counter(patch, OSError(errno.ENOSPC, "No space left on device"), at=1)
        assert study("--rows", "VQ") == 2
    said = capsys.readouterr().err
    assert "cannot write the results: [Errno 28] No space left on device. The 1 finished runs in 'out' are" in said
    assert len(table()) == 1
    assert study("--rows", "VQ") == 0
    assert len(table()) == 4


def test_changed_settings_are_refused_until_asked_for(
    study: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = edited(tune={"by": "val/accuracy", "settings": {}})
    assert study(content=content) == 0
    before = table()
    changed = edited(tune=content["tune"], rows__VQ__config={
        "model.init_args.model.init_args.quantizer": {
            "class_path": "straightvq.studies.ablation",
            "init_args": {"dim": 12, "codebook_size": 6, "channel_dim": 1},
        }
    })  # fmt: skip
    capsys.readouterr()
    assert study(content=changed) == 2
    said = capsys.readouterr().err
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


def test_a_training_that_diverges_is_recorded_and_the_study_goes_on(
    study: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = edited(tune={"by": "val/accuracy", "settings": {}}, base__model__init_args__lr=1e30)
    assert study("--seeds", "1", content=content) == 0
    errors = {row["row"]: row["error"] for row in table()}
    assert errors["VQ"].startswith("`VectorQuantizer`: `z` must be finite")
    assert errors["unquantized"] == "test/cross_entropy is not finite"
    assert "## Failed runs" in Path("out/report.md").read_text()
    counter = Counter(monkeypatch)
    assert study("--seeds", "1", content=content) == 0
    assert counter.titles == []
    failed = [f"digits net {row['row']} seed 0" for row in table() if row["error"]]
    assert study("--seeds", "1", "--rerun", content=content) == 0
    assert counter.titles == failed


def test_dry_run_lists_and_estimates_and_writes_nothing(
    study: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  digits net VQ tuning: lr 1e-2: due, about 1 s"
    assert len(lines) == 9
    assert lines[-1].startswith("8 runs in out; about 0 min to go")
    assert not Path("out").exists()


def test_embedded_data_stand_in_with_a_clear_sentence(
    study: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("--rows", "VQ", "--dry-run", size="both") == 0
    said = capsys.readouterr().out
    assert "No --data was given: embedded digits stand in for own" in said
    assert "digits net VQ seed 0: due" in said


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (("--rows", "VQQ"), "s", "`--rows` 'VQQ' is not there. Did you mean 'VQ'? There are: VQ, unquantized."),
        (("--models", "nett"), "s", "`--models` 'nett' is not there. Did you mean 'net'?"),
        (("--sets", "digit"), "s", "`--sets` 'digit' is not there. Did you mean 'digits'?"),
        (("--seeds", "0"), "s", "`seeds` must be an integer >= 1. Got 0."),
        ((), "large", "the size 'large' is not there. There are: s, own, both."),
        ((), "own", "mine in size own needs own: pass --data with the folder that holds own."),
        (("--data", "nowhere"), "own", "needs the set own in 'nowhere/own', which is not there."),
    ],
)
def test_mistakes_on_the_command_line(
    options: tuple[str, ...], size: str, message: str, study: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(*options, size=size) == 2
    said = capsys.readouterr().err
    assert said.startswith("straightvq: `reproduce`: ")
    assert message in said
    assert not Path("out").exists()


def test_unreadable_image_stops_the_study_by_name(
    study: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        folder = Path("sets/own", name)
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.png").write_text("not a picture")
    assert study("--data", "sets", "--rows", "unquantized", size="own") == 2
    said = capsys.readouterr().err
    assert "`reproduce`: own net unquantized seed 0 cannot be run: `Images`: " in said
    assert "cannot be read: not an image" in said


def test_misspelt_key_in_an_overlay_leads_with_the_innermost_line(
    study: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    content = edited(rows__VQ__config={"model.init_args.label_smothing": 0.1})
    assert study("--rows", "VQ", content=content) == 2
    assert "Option 'label_smothing' is not accepted" in capsys.readouterr().err


def test_damaged_result_is_named(study: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("out/runs/digits/net/VQ/seed0")
    place.mkdir(parents=True)
    (place / "result.json").write_text("{")
    assert study("--dry-run") == 2
    assert "seed0/result.json' is not a result of this version" in capsys.readouterr().err


def test_toy_is_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "toy"]) == 0
    assert Path("studies/toy/toy.png").is_file()
    assert main(["reproduce", "toy", "--seeds", "3"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "autoencoder"])
def test_shipped_study_runs_in_its_tiny_size(name: str, tmp_path: Path) -> None:
    assert main(["reproduce", name, "--size", "tiny", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text()
    assert "Failed runs" not in page
    assert "straight" in page


@pytest.mark.parametrize("name", ["classification", "autoencoder"])
@pytest.mark.parametrize("size", ["small", "paper"])
def test_every_configuration_of_a_shipped_study_builds(name: str, size: str, tmp_path: Path) -> None:
    """All rows, and all networks, without a single step."""
    from straightvq.studies import Study
    from straightvq.tasks.command_line import TrainingCLI, quiet

    class Parsed(TrainingCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Any:
            raise StopIteration

        def instantiate_classes(self) -> None:
            self.config_init = self.parser.instantiate_classes(self.config)

        def _run_subcommand(self, subcommand: str) -> None: ...

    study = Study.load(name)
    chosen = study.sizes[size]
    rows, first = ("all", "unquantized"), next(iter(chosen.models))
    kept = [
        cell
        for cell in study.cells(chosen, chosen.sets, None, None)
        if cell.row in rows or (size == "small" and cell.model == first)
    ]
    for cell in kept:
        words = training._words(study.final(chosen, cell, 1, "", "photos"), tmp_path / "run", tmp_path / "configs")
        with quiet():
            cli = Parsed(["fit", *words], "x", "")
        task = cli.config_init["fit"]["model"]
        assert task.quantize == (cell.row != "unquantized")
        assert cli.config_init["fit"]["data"].seed == 1
