"""What the tasks share: settings of the optimizer, by hand and from the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from straightvq.cli import main
from straightvq.training import Alternation, Classification, OptimizerSettings, Reconstruction


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lion"}, r"`OptimizerSettings`: `name` must be one of 'adamw', 'sgd'. Got 'lion'"),
        ({"lr": 0.0}, r"`OptimizerSettings`: `lr` must be a finite number in \(0, inf\]"),
        ({"lr": "high"}, r"`lr` must be a number"),
        ({"codebook_lr": -1.0}, r"`codebook_lr` must be a finite number"),
        ({"weight_decay": -1.0}, r"`weight_decay` must be a finite number"),
        ({"betas": (0.9, 1.0)}, r"`betas` must be a finite number"),
        ({"betas": (0.9,)}, r"`betas` must be two numbers. Got \(0.9,\)"),
        ({"momentum": 0.9}, r'`momentum` must be None with "adamw"'),
        ({"momentum": 1.0, "name": "sgd"}, r"`momentum` must be a finite number in \[0, 1\)"),
        ({"warmup_steps": -1}, r"`warmup_steps` must be an integer >= 0"),
        ({"schedule": "linear"}, r"`schedule` must be one of 'cosine', 'constant'. Got 'linear'"),
        ({"phase": "yes"}, r"`Alternation`: `phase` must be one of 'codebook', 'codebook_and_encoder'. Got 'yes'"),
        ({"phase": "codebook", "steps": 0}, r"`steps` must be an integer >= 1"),
        ({"phase": "codebook", "lr": -0.1}, r"`lr` must be a finite number"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    kind = Alternation if "phase" in arguments else OptimizerSettings
    with pytest.raises((ValueError, TypeError), match=message):
        kind(**arguments)


@pytest.mark.parametrize(("task", "kind"), [(Reconstruction, "AutoencoderBase"), (Classification, "ClassifierBase")])
def test_a_task_takes_networks_of_its_kind(task: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"`{task.__name__}`: `model` must be an instance of {kind}"):
        task(nn.Identity())


def test_sgd_has_a_momentum_unless_another_is_given() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))]}]
    assert OptimizerSettings("sgd").build(groups).defaults["momentum"] == 0.9


def test_an_endless_training_keeps_its_rate() -> None:
    settings = OptimizerSettings(warmup_steps=2)
    optimizer = settings.build([{"params": [nn.Parameter(torch.ones(1))]}])
    factor = settings.scheduler(optimizer, float("inf")).lr_lambdas[0]
    assert [factor(step) for step in (0, 1, 2, 1000)] == [0.5, 1.0, 1.0, 1.0]


def read(tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, overlay: str, *options: str) -> Any:
    """The arguments of the task after a recipe, an overlay of its ``init_args`` and options."""
    file = tmp_path / "overlay.yaml"
    file.write_text(f"model: {{init_args: {overlay}}}")
    with pytest.raises(SystemExit):
        main(["fit", "--config", recipe, "--config", str(file), *options, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]


@pytest.mark.parametrize("recipe", ["photos", "classify_digits", "maskgit_digits"])
def test_overlays_and_options_keep_what_they_do_not_name(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(tmp_path, capsys, recipe, "{}")["optimizer"]
    after = read(tmp_path, capsys, recipe, "{optimizer: {lr: 5.0e-4}}", "--model.optimizer.warmup_steps", "7")
    assert after["optimizer"] == before | {"lr": 5e-4, "warmup_steps": 7}
    assert after["optimizer"]["schedule"] == "cosine"


@pytest.mark.parametrize(
    ("task", "defaults"),
    [
        ("Reconstruction", {"weight_decay": 1e-4, "betas": [0.9, 0.95]}),
        ("Classification", {"weight_decay": 0.03, "betas": [0.9, 0.95]}),
        ("Generation", {"weight_decay": 0.045, "betas": [0.9, 0.96]}),
    ],
)
def test_options_keep_the_defaults_of_their_task(
    task: str, defaults: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    room = "generation" if task == "Generation" else "training"
    options = ["--model", f"straightvq.{room}.{task}", "--data", "straightvq.data.Images"]
    with pytest.raises(SystemExit):
        main(["fit", *options, "--model.optimizer.lr", "0.5", "--print_config"])
    optimizer = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
    assert optimizer.items() >= {"lr": 0.5, "name": "adamw", "warmup_steps": 100, **defaults}.items()


def test_two_phases_are_chosen_changed_and_called_off_in_files_and_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def alternate(overlay: str, *options: str) -> Any:
        return read(tmp_path, capsys, "photos", overlay, *options)["alternate"]

    assert alternate("{}") is None
    assert alternate("{}", "--model.alternate.phase", "codebook") == {"phase": "codebook", "steps": 1, "lr": None}
    both = alternate("{alternate: {phase: codebook, lr: 0.1}}", "--model.alternate.steps", "2")
    assert both == {"phase": "codebook", "steps": 2, "lr": 0.1}
    assert alternate("{alternate: {phase: codebook}}", "--model.alternate", "null") is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model.optimizer.lr", "0"], "`OptimizerSettings`: `lr` must be a finite number in (0, inf]. Got 0.0."),
        (["--model.optimizer.momentum", "0.9"], '`OptimizerSettings`: `momentum` must be None with "adamw"'),
        (["--model.optimizer.name", "lion"], "Got value: lion"),
        (["--model.optimizer.lrr", "1"], "OptimizerSettings). Did you mean 'lr'? It accepts name, lr, codebook_lr,"),
        (["--model.alternate.stps", "1"], "Alternation). Did you mean 'steps'? It accepts phase, steps, lr."),
        (["--model.lr", "1"], "Option 'lr' is not accepted"),
        (["--trainer.mx_steps", "1"], "Option 'mx_steps' is not accepted (in trainer). Did you mean 'max_steps'?"),
        (["--nmae", "a"], "Option 'nmae' is not accepted (at the top level). Did you mean 'name'?"),
        (["--model.alternate.steps", "2"], "phase"),
        (["--model.alternate.phase", "both"], "Got value: both"),
    ],
)
def test_mistakes_are_explained_on_the_command_line(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "photos", "--config", "tiny", "--runs", str(tmp_path), *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
