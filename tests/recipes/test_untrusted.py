"""Checkpoints and configurations from elsewhere: nothing in them runs, and what is damaged is named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from straightvq.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # the runs here are copies
]

TINY = ["--config", "digits", "--config", "tiny"]


class Program:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with one run in it, `digits-tiny`, and its masked model."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["fit", *TINY, "--keep_every", "4", "--runs", str(runs)]) == 0
    tokenizer = str(runs / "digits-tiny")
    masked = ["--config", "maskgit_digits", "--config", "tiny_maskgit", "--model.init_args.tokenizer", tokenizer]
    assert main(["fit", *masked, "--name", "masked", "--runs", str(runs)]) == 0
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def train(runs: Path, *options: str) -> int:
    return main(["fit", *TINY, "--runs", str(runs), *options])


# What reads a checkpoint: the command, in the folder of runs, and the file that it reads.
DOORS = {
    "fit": ("fit {tiny} --ckpt_path last", "digits-tiny/last.ckpt"),
    "test": ("test {tiny} --ckpt_path best", "digits-tiny/best.ckpt"),
    "predict": ("predict {tiny} --ckpt_path {runs}/digits-tiny/best.ckpt", "digits-tiny/best.ckpt"),
    "analyze": ("analyze {runs}/digits-tiny", "digits-tiny/best.ckpt"),
    "generate": ("generate --run {runs}/masked --num 1", "masked/best.ckpt"),
    "tokenizer": ("generate --run {runs}/masked --tokenizer {runs}/digits-tiny", "digits-tiny/best.ckpt"),
    "features": ("test {tiny} --ckpt_path best --model.features {runs}/masked", "masked/best.ckpt"),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_program_in_a_checkpoint_is_refused(door: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, name = DOORS[door]
    content = torch.load(runs / name, weights_only=True)
    torch.save({**content, "program": Program(runs / "touched")}, runs / name)
    words = command.format(runs=runs, tiny=" ".join([*TINY, "--runs", str(runs)]))
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert "other objects than tensors and plain values, which are not loaded" in said
    assert name in said
    assert not (runs / "touched").exists()


def test_safe_loading_cannot_be_switched_off(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(runs, "--ckpt_path", "last", "--weights_only", "false") == 2
    assert "`weights_only` must be true" in capsys.readouterr().err


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: os.truncate(file, 0),
    "cut": lambda file: os.truncate(file, file.stat().st_size * 2 // 3),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "text": lambda file: file.write_text("words"),
    "other tensors": lambda file: torch.save({"weight": torch.zeros(2)}, file),
    "no weights": lambda file: torch.save({"state_dict": [1, 2], "global_step": 3}, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_the_newest_sound_one(
    damage: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = runs / "digits-tiny" / "last.ckpt"
    DAMAGES[damage](last)
    before = sorted((runs / "digits-tiny").rglob("*"))
    assert train(runs, "--ckpt_path", "last") == 2
    said = capsys.readouterr().err
    assert f"`--ckpt_path`: '{last}'" in said
    assert f"Pass --ckpt_path {runs / 'digits-tiny' / 'best.ckpt'}, the newest sound one there (step 8)" in said
    assert sorted((runs / "digits-tiny").rglob("*")) == before  # nothing was begun


def test_without_another_checkpoint_training_anew_is_the_way_out(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / "digits-tiny"
    shutil.rmtree(folder / "checkpoints")
    (folder / "best.ckpt").unlink()
    os.truncate(folder / "last.ckpt", 100)
    assert train(runs, "--ckpt_path", "last") == 2
    assert "leave --ckpt_path out to train anew" in capsys.readouterr().err


# What a configuration tries, and what the message says.
QUANTIZER = "model: {{init_args: {{model: {{init_args: {{quantizer: {{class_path: {}}}}}}}}}}}"
CALLBACK = "trainer: {{callbacks: [{{class_path: {}, init_args: {{{}}}}}]}}"
ATTEMPTS = {
    "a function as the task": ("model: {class_path: os.system, init_args: {command: touch touched}}", "os"),
    "a class as the task": ("model: {class_path: subprocess.Popen, init_args: {args: [touch]}}", "subproc"),
    "another part's class": ("data: {class_path: straightvq.models.Autoencoder}", "straightvq.models.Autoencoder"),
    "a function as the quantizer": (QUANTIZER.format("os.system"), "os"),
    "a function of another result": (QUANTIZER.format("straightvq.bypass"), "straightvq.bypass"),
    "a callback that calls": (
        CALLBACK.format("lightning.pytorch.callbacks.LambdaCallback", "on_fit_start: os.system"),
        "os",
    ),
    "a callback made of a class": (CALLBACK.format("subprocess.Popen", "args: [touch, touched]"), "subprocess"),
    "a tag": ("seed_everything: !!python/object/apply:os.system ['touch touched']", "python/object/apply"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_configuration_names_parts_and_nothing_else(
    attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overlay, name = ATTEMPTS[attempt]
    (tmp_path / "mine.yaml").write_text(overlay)
    assert main(["fit", *TINY, "--config", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert name in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_the_configuration_of_a_run_names_parts_and_nothing_else(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs / "digits-tiny" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["model"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(runs / "touched")]}}
    file.write_text(yaml.safe_dump(config))
    assert main(["analyze", str(runs / "digits-tiny")]) == 2
    assert "subprocess" in capsys.readouterr().err
    assert not (runs / "touched").exists()


def test_a_training_that_explodes_stops_with_its_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a learning rate that no network survives, after a checkpoint or two; the watch can be switched off."""
    words = "--model.optimizer.lr 1e30 --model.optimizer.warmup_steps 1000 --save_every 1 --trainer.max_steps 40"
    assert train(tmp_path, *words.split(), "--name", "run") == 2
    last = tmp_path / "run" / "last.ckpt"
    said = capsys.readouterr().err
    assert f"The last good checkpoint is {last}" in said
    assert "step " in said
    content = torch.load(last, weights_only=True)
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    train(tmp_path, *words.split(), "--stop_on_non_finite", "false", "--trainer.max_steps", "3")
    assert "StopOnNonFinite" not in capsys.readouterr().err
