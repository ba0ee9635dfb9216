"""Every packaged recipe through the real command line, and the mistakes that people make there."""

import csv
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from straightvq.checkpoints import WholeFiles
from straightvq.cli import main
from straightvq.recipes import read_recipe, recipe_names, recipe_path, resolve

# A few steps of a tiny network may well use few codes.
pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")

BASES = ("digits", "fashion", "folder", "photos")
# With the tokenizer that they are trained on.
MASKED = {"maskgit_digits": "digits", "maskgit_fashion": "fashion"}
FROM_A_FOLDER = ("fashion", "folder")
OVERLAYS = ("ema", "plain_vq", "vq_ste_pp")
SHRINKING, SHRINKING_MASKED = "tiny", "tiny_maskgit"
# `tiny_steps` is below the ones that shrink; tests/recipes/test_classifiers.py has the classifiers.
OTHERS = ("tiny_steps", "unconditional", "features", "classify_digits", "classify_folder", "tiny_classify")
IDS = ("semantic_ids", "semantic_ids_ema", "semantic_ids_network")  # tests/unit/training/test_semantic_ids.py
SPEECH = ("speech", "soundstream", "dac", "tiny_speech")  # tests/recipes/test_speech.py


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty small pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(command: str, recipes: Sequence[str], *options: Any, runs: Path, shrinking: str = SHRINKING) -> int:
    """Later words win: recipes, the overlay that shrinks them, options."""
    configs = [word for name in (*recipes, shrinking) for word in ("--config", name)]
    return main([command, *configs, "--runs", str(runs), *map(str, options)])


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def logged(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics" / "version_0" / "metrics.csv").read_text().splitlines()))


def test_every_recipe_is_tested() -> None:
    tested = [*BASES, *MASKED, *OVERLAYS, SHRINKING, SHRINKING_MASKED, *OTHERS, *IDS, *SPEECH]
    assert sorted(tested) == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_every_field_of_a_recipe_has_a_comment(name: str) -> None:
    text = Path(recipe_path(name)).read_text()
    assert isinstance(yaml.safe_load(text), dict)
    assert text.startswith("# ")
    bare = [line for line in text.splitlines() if line.strip() and not line.rstrip().endswith(":") and "#" not in line]
    assert [line.strip() for line in bare if not line.strip().startswith("class_path:")] == []


@pytest.mark.parametrize("names", [*[(base,) for base in BASES], *[("photos", overlay) for overlay in OVERLAYS]])
def test_recipe_trains(names: tuple[str, ...], pictures: Path, tmp_path: Path) -> None:
    options = ("--data.source", pictures, "--data.val_fraction", 0.25) if names[0] in FROM_A_FOLDER else ()
    assert run("fit", names, *options, runs=tmp_path) == 0
    folder = tmp_path / "-".join([*names, SHRINKING])
    kept = load(folder / "last.ckpt")
    assert kept["global_step"] == 8
    assert kept["state_dict"]["model.quantizer.codebook.raw"].shape == (16, 4)
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["seed_everything"] == 0
    assert {"train/loss", "val/mse", "val/psnr", "val/perplexity", "val/codes_used"} <= set(logged(folder)[0])


@pytest.mark.parametrize("name", MASKED)
def test_recipe_of_a_masked_model_trains_on_its_tokenizer(name: str, pictures: Path, tmp_path: Path) -> None:
    tokenizer = MASKED[name]
    options = ("--data.source", pictures, "--data.val_fraction", 0.25) if tokenizer in FROM_A_FOLDER else ()
    assert run("fit", [tokenizer], *options, runs=tmp_path) == 0
    options += ("--model.init_args.tokenizer", str(tmp_path / f"{tokenizer}-tiny"))
    assert run("fit", [name], *options, runs=tmp_path, shrinking=SHRINKING_MASKED) == 0
    folder = tmp_path / f"{name}-{SHRINKING_MASKED}"
    assert {path.name for path in folder.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    columns = set(logged(folder)[0])
    assert {"train/loss", "val/cross_entropy", "val/accuracy"} <= columns
    assert "val/mse" not in columns


def test_the_best_checkpoint_is_that_of_the_lowest_validation_error(tmp_path: Path) -> None:
    assert run("fit", ["digits"], "--name", "run", "--model.optimizer.lr", 1e-2, runs=tmp_path) == 0
    folder = tmp_path / "run"
    errors = {int(row["step"]) + 1: float(row["val/mse"]) for row in logged(folder) if row["val/mse"]}
    assert len(set(errors.values())) == 2
    assert load(folder / "best.ckpt")["global_step"] == min(errors, key=lambda step: errors[step])


def test_masked_model_without_classes(tmp_path: Path) -> None:
    assert run("fit", ["digits"], runs=tmp_path) == 0
    options = ("--model.init_args.tokenizer", str(tmp_path / "digits-tiny"), "--name", "run")
    assert run("fit", ["maskgit_digits", "unconditional"], *options, runs=tmp_path, shrinking=SHRINKING_MASKED) == 0
    assert main(["generate", "--run", str(tmp_path / "run"), "--num", "2"]) == 0


def test_a_resume_that_is_refused_leaves_the_run_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", ["digits"], "--name", "run", runs=tmp_path) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    wider = ("--name", "run", "--ckpt_path", "last", "--model.model.hidden", 12, "--trainer.max_steps", 10)
    assert run("fit", ["digits"], *wider, runs=tmp_path) == 2
    said = capsys.readouterr().err
    assert "last.ckpt' is of another network than the configuration describes: it has model." in said
    assert "Traceback" not in said
    for name in ("config.yaml", "last.ckpt", "best.ckpt"):
        assert (tmp_path / "run" / name).read_bytes() == before[name]


def test_a_trained_model_is_measured_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole chain: fit, go on, validate, test, predict, and the saved configuration alone."""
    digits = ("digits",)
    assert run("fit", digits, runs=tmp_path) == 0
    folder = tmp_path / "digits-tiny"
    assert "best.ckpt" in capsys.readouterr().out
    header = (folder / "config.yaml").read_text().splitlines()[:2]
    assert header[0].startswith("# straightvq==")
    assert header[1].startswith("# straightvq fit --config digits --config tiny")
    assert run("fit", digits, "--ckpt_path", "last", "--trainer.max_steps", 10, runs=tmp_path) == 0
    assert load(folder / "last.ckpt")["global_step"] == 10
    assert not (tmp_path / "digits-tiny-2").exists()
    for command in ("validate", "test", "predict"):
        assert run(command, digits, "--ckpt_path", "best", runs=tmp_path) == 0
    said = capsys.readouterr().out
    assert f"{folder / 'best.ckpt'}: test/mse " in said
    assert f"{folder / 'best.ckpt'}: val/mse " in said
    predicted = load_file(folder / "predictions.safetensors")
    assert predicted["indices"].shape == (16, 4, 4)
    assert predicted["reconstruction"].shape == (16, 1, 16, 16)
    assert main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"]) == 0
    assert run("fit", digits, runs=tmp_path) == 0  # a new training does not touch the old one
    assert (tmp_path / "digits-tiny-2" / "last.ckpt").is_file()
    monkeypatch.setattr(lightning.Trainer, "world_size", property(lambda self: 2))
    assert run("predict", digits, "--ckpt_path", "best", runs=tmp_path) == 2
    assert "pass --trainer.devices 1. Got 2 processes." in capsys.readouterr().err
    assert not (tmp_path / "digits-tiny-2" / "predictions.safetensors").exists()


@pytest.mark.parametrize("overlay", ["vq_ste_pp", "plain_vq"])
def test_resume_from_the_command_line_is_exact(overlay: str, tmp_path: Path) -> None:
    """Going on from step 3 gives the same bits as never having stopped."""
    options: list[Any] = ["--name", "run", "--data.num_train", 36]
    options += ["--checkpoint.every_n_train_steps", 3, "--checkpoint.save_top_k", -1]
    options += ["--checkpoint.monitor", "null", "--checkpoint.filename", "{step}"]
    assert run("fit", ["photos", overlay], *options, runs=tmp_path) == 0
    whole = load(tmp_path / "run" / "last.ckpt")
    stopped = tmp_path / "run" / "step=3.ckpt"
    assert run("fit", ["photos", overlay], *options, "--ckpt_path", stopped, runs=tmp_path) == 0
    resumed = load(tmp_path / "run" / "last.ckpt")
    assert whole["global_step"] == resumed["global_step"] == 8
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert identical(resumed[part], whole[part]), part


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return bool(a == b)


# Arguments after the command, and what the message must say.
PHOTOS = "fit --config photos"
MISTAKES = {
    "unknown command": ("fitt", ["no command 'fitt'", "Did you mean 'fit'?"]),
    "unknown recipe": ("fit --config phots", ["no recipe 'phots'", "Did you mean 'photos'?", "Packaged:"]),
    "missing file": ("fit --config nowhere/mine.yaml", ["no file 'nowhere/mine.yaml'"]),
    "no configuration": ("fit", ["needs a configuration", "photos"]),
    "misspelt key": (
        f"{PHOTOS} --model.model.quantizer.codebok_size 3",
        ["straightvq: Option 'codebok_size' is not accepted (in model > model > quantizer", "'codebook_size'?"],
    ),
    "misspelt section": (f"{PHOTOS} --trainr.max_steps 3", ["'trainr' is not accepted", "mean 'trainer'?"]),
    "wrong type": (
        f"{PHOTOS} --model.model.quantizer.codebook_size many",
        ["Expected a <class 'int'>. Got value: many", "codebook_size"],
    ),
    "wrong preset": (
        f"{PHOTOS} --model.model.quantizer straightvq.presets.nothing",
        ["module 'straightvq.presets' has no attribute 'nothing'"],
    ),
    "base as an option": (f"{PHOTOS} --base digits", ["`--base` belongs in a recipe"]),
    "missing folder": ("fit --config folder", ["`Images`: `source` 'path/to/your/images' does not exist"]),
    "impossible value": (
        f"{PHOTOS} --model.model.downsample 3",
        ["`Autoencoder`: `downsample` must be a power of two. Got 3."],
    ),
    "contradiction": (
        f"{PHOTOS} --model.alternate.phase codebook",
        ["`Reconstruction`: `alternate`", "AlternatedUpdate"],
    ),
    "no checkpoint": ("test --config photos", ["needs a trained model", "--ckpt_path best"]),
    "nothing trained": ("test --config photos --ckpt_path best", ["there is no", "Train first"]),
    "missing checkpoint": ("test --config photos --ckpt_path a.ckpt", ["there is no file 'a.ckpt'"]),
    "demo of no steps": ("demo --steps 0", ["`DemoSettings`: `steps` must be an integer >= 2. Got 0."]),
    "unknown recipe to show": ("recipes --show tinny", ["Did you mean 'tiny'?"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, messages = MISTAKES[mistake]
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for message in messages:
        assert message in said
    assert list(tmp_path.iterdir()) == []


def test_misspelt_key_in_a_file_leads_with_the_innermost_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model:\n  init_args:\n    model:\n      init_args:\n        hiden: 8\n")
    assert main(["fit", "--config", "photos", "--config", str(mine)]) == 2
    where = "in model > model, straightvq.models.Autoencoder"
    assert capsys.readouterr().err.splitlines() == [
        f"straightvq: Option 'hiden' is not accepted ({where}). Did you mean 'hidden'? It accepts quantizer, "
        "in_channels, hidden, downsample, blocks.",
        "Add --verbose_errors to see the whole message.",
    ]
    assert main(["fit", "--config", "photos", "--config", str(mine), "--verbose_errors"]) == 2
    assert "Given value:" in capsys.readouterr().err


def test_a_recipe_lies_on_another(tmp_path: Path) -> None:
    """Packaged ones by name, others by a path from its own folder."""
    (tmp_path / "far").mkdir()
    below, mine = tmp_path / "far" / "below.yaml", tmp_path / "mine.yaml"
    below.write_text("base: digits\ntrainer: {max_steps: 7}\n")
    mine.write_text("base: [far/below.yaml, tiny]\nsave_every: 3\n")
    files = resolve(["fit", "-c", str(mine), "--config=ema", "--name", "run"])
    stems = [Path(word).stem for word in files if word.endswith(".yaml")]
    assert stems == ["photos", "digits", "below", "tiny_steps", "tiny", "mine", "ema"]
    assert (files[0], files[-2:]) == ("fit", ["--name", "run"])
    assert run("fit", [str(mine)], runs=tmp_path / "runs") == 0
    kept = yaml.safe_load((tmp_path / "runs" / "mine-tiny" / "config.yaml").read_text())
    assert (kept["base"], kept["data"]["init_args"]["source"], kept["save_every"]) == (None, "digits", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: phots", "no recipe 'phots'. Did you mean 'photos'?"),
        ("base: gone.yaml", "no file 'gone.yaml'"),
        ("base: mine.yaml", "`base`: a recipe must not lie on itself."),
        ("base: [1", "must be readable as YAML"),
    ],
)
def test_a_base_that_is_none_is_explained(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert main(["fit", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_a_copied_template_is_the_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--show", "folder"]) == 0
    shown = capsys.readouterr().out
    assert shown == Path(recipe_path("folder")).read_text()
    (tmp_path / "mine.yaml").write_text(shown)
    words = [resolve(["--config", name]) for name in ("folder", str(tmp_path / "mine.yaml"))]
    assert words[0][:-1] == words[1][:-1]
    assert read_recipe(words[0][-1]) == read_recipe(words[1][-1])


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in recipe_names())


def test_help_and_version_need_nothing_heavy() -> None:
    """In a process of its own: no torch, no lightning."""
    code = "import sys; from straightvq.cli import main; main(['--help']); print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "straightvq demo" in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_demo_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "4", "--codebook-size", "16", "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert "plain VQ" in said
    assert "straightvq fit --config photos" in said
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names == {"comparison.png", "metrics.csv", "plain.ckpt", "straight.ckpt"}
    rows = list(csv.DictReader((tmp_path / "demo" / "metrics.csv").read_text().splitlines()))
    splits = [(arm, split) for arm in ("plain VQ", "straight") for split in ("train", "test")]
    assert [(row["arm"], row["split"]) for row in rows] == splits
    columns = "arm split step loss mse psnr usage codes_used perplexity quantization_error seconds"
    assert list(rows[0]) == columns.split()
    assert [row["step"] for row in rows] == ["4"] * 4  # fewer than a window: the last step alone
    assert all(float(row["mse"]) > 0 for row in rows)
    assert all(1 <= float(row["perplexity"]) <= 16 for row in rows if row["split"] == "test")
    starts = [load(tmp_path / "demo" / f"{arm}.ckpt")["state_dict"] for arm in ("plain", "straight")]
    assert starts[0]["model.encoder.0.weight"].shape == starts[1]["model.encoder.0.weight"].shape


def test_progress_names_no_last_epoch_where_there_is_none_and_no_version_of_a_logger(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = ("--trainer.enable_progress_bar", "true")
    lengths = (("--trainer.max_steps", 2), ("--trainer.max_steps", -1, "--trainer.max_epochs", 1))
    for number, options in enumerate(lengths):
        assert run("fit", ["digits"], *options, *shown, "--name", f"run{number}", runs=tmp_path) == 0
    said = capfd.readouterr().out
    assert "Epoch 0  " in said
    assert "Epoch 0/0" in said
    assert "train/loss" in said
    assert re.search(r"Step \d+: val/mse [\d.]+, val/psnr", said), "the values of a validation are a line of their own"
    assert "Last validation: val/mse" in said
    assert "v_num" not in said
    assert "/-2" not in said


BY_EPOCH = ("--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--trainer.val_check_interval", 1.0)


@pytest.mark.parametrize("options", [(), (*BY_EPOCH, "--trainer.check_val_every_n_epoch", 1)], ids=["steps", "epochs"])
def test_the_last_checkpoint_is_written_behind_all_others_of_its_step(
    options: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is killed between two of them goes on from the last one, and repeats nothing of its step."""
    written: list[tuple[int, str]] = []
    write = WholeFiles.save_checkpoint

    def remember(self: WholeFiles, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        written.append((checkpoint["global_step"], Path(path).name))
        write(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeFiles, "save_checkpoint", remember)
    assert run("fit", ["digits"], "--save_every", 2, "--keep_every", 2, *options, runs=tmp_path) == 0
    assert {"best.ckpt", "last.ckpt", "step-00000004.ckpt"} <= {name for _, name in written}
    done = 0
    for step, name in written:
        assert step > done, (name, written)
        done = step if name == "last.ckpt" else done
