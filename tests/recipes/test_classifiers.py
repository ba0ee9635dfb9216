"""The classifiers' recipes through the real command line."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from straightvq.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")

# Options beside the shrinking overlay: the second network is large.
_MODEL = "--model.init_args.model.init_args"
RECIPES: dict[str, tuple[Any, ...]] = {
    "classify_digits": (),
    "classify_folder": (f"{_MODEL}.width", 2, f"{_MODEL}.quantizer.init_args.dim", 4),
}
SHRINKING = "tiny_classify"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small pictures in folders of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(40):
        place = folder / ("dark" if number % 2 else "light")
        place.mkdir(exist_ok=True)
        low = 0 if number % 2 else 128
        Image.fromarray(generator.integers(low, low + 128, (20, 24, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return folder


def run(command: str, name: str, *options: Any, runs: Path, overlays: tuple[str, ...] = ()) -> int:
    configs = [word for recipe in (name, SHRINKING, *overlays) for word in ("--config", recipe)]
    return main([command, *configs, "--runs", str(runs), "--name", "run", *map(str, (*RECIPES[name], *options))])


def source(name: str, classes: Path) -> tuple[Any, ...]:
    return ("--data.source", classes, "--data.val_fraction", 0.25) if name == "classify_folder" else ()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_and_is_measured(
    name: str, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", name, *source(name, classes), runs=tmp_path) == 0
    folder = tmp_path / "run"
    assert {"best.ckpt", "last.ckpt", "config.yaml"} <= {path.name for path in folder.iterdir()}
    kept = torch.load(folder / "best.ckpt", weights_only=True)
    (state,) = [value for key, value in kept["callbacks"].items() if key.startswith("ModelCheckpoint")]
    assert state["monitor"] == "val/accuracy"
    rows = list(csv.DictReader((folder / "metrics" / "version_0" / "metrics.csv").read_text().splitlines()))
    assert {"train/loss", "train/cross_entropy", "val/accuracy", "val/perplexity", "val/codes_used"} <= set(rows[0])
    capsys.readouterr()
    for command in ("validate", "test"):
        assert run(command, name, *source(name, classes), "--ckpt_path", "best", runs=tmp_path) == 0
    assert "test/accuracy" in capsys.readouterr().out


def test_run_of_a_classifier_is_analysed(tmp_path: Path) -> None:
    assert run("fit", "classify_digits", "--save_every", 2, "--keep_every", 2, runs=tmp_path) == 0
    assert main(["analyze", str(tmp_path / "run")]) == 0
    folder = tmp_path / "run" / "analysis"
    assert {"report.md", "divergence.png", "tsne.png", "curves.png"} <= {path.name for path in folder.iterdir()}
    checkpoints = json.loads((folder / "analysis.json").read_text())["checkpoints"]
    assert len(checkpoints) > 1
    for values in (checkpoint["values"] for checkpoint in checkpoints):
        assert {"gradient_gap", "usage", "error", "update_delay", "codes_moved"} <= values.keys()
        assert values.pop("symmetric_kl") is None, "16 codes have no covariance in 48 channels"
        assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("overlay", ["plain_vq", "ema", "vq_ste_pp"])
def test_overlays_change_the_quantizer_of_a_classifier_too(overlay: str, tmp_path: Path) -> None:
    assert run("fit", "classify_digits", runs=tmp_path, overlays=(overlay,)) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    quantizer = config["model"]["init_args"]["model"]["init_args"]["quantizer"]
    assert quantizer["class_path"] != "straightvq.presets.straight"
    assert quantizer["init_args"]["codebook_size"] == 16


def test_two_phase_step_and_resume_from_the_command_line(tmp_path: Path) -> None:
    """Going on from the middle gives the same bits as never having stopped."""
    words = "--model.alternate.phase codebook_and_encoder --model.init_args.mixup 0.2 --data.num_train 36 "
    words += "--trainer.max_steps -1 --trainer.max_epochs 2 --trainer.val_check_interval 1.0 "
    words += "--trainer.check_val_every_n_epoch 1 --save_every 3 --keep_every 3"
    stopped = tmp_path / "run" / "checkpoints" / "step-00000003.ckpt"
    ends = []
    for more in ((), ("--ckpt_path", stopped)):
        options = (*words.split(), *more)
        assert run("fit", "classify_digits", *options, runs=tmp_path, overlays=("plain_vq",)) == 0
        ends.append(torch.load(tmp_path / "run" / "last.ckpt", weights_only=True))
    whole, resumed = ends
    assert whole["global_step"] == resumed["global_step"] > 3
    assert [n for n, value in whole["state_dict"].items() if not torch.equal(value, resumed["state_dict"][n])] == []


def test_labels_beyond_the_classes_are_explained(classes: Path, tmp_path: Path, capsys: Any) -> None:
    options = (*source("classify_folder", classes), "--model.init_args.model.init_args.num_classes", 1)
    assert run("fit", "classify_folder", *options, runs=tmp_path) == 2
    assert "`num_classes` of the model must be at least 2" in capsys.readouterr().err
