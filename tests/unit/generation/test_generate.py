"""`straightvq generate` from the command line: tokenizer, transformer, pictures, FID, and mistakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from straightvq.cli import main
from straightvq.diagnostics.fid import ClassifierFeatures
from straightvq.generation.generate import chosen_classes, image_grid, tokens_in_box
from straightvq.generation.tokenizer import Tokenizer
from straightvq.runs import RunFolder, load_weights

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")


def fit(*names: str, runs: Path, options: tuple[Any, ...] = ()) -> None:
    configs = [word for name in names for word in ("--config", name)]
    assert main(["fit", *configs, "--runs", str(runs), *map(str, options)]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a transformer with classes on its codes, and a classifier, each trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    fit("digits", "tiny", runs=folder, options=("--name", "tokenizer"))
    tokenizer = ("--model.init_args.tokenizer", folder / "tokenizer")
    fit("maskgit_digits", "tiny_maskgit", runs=folder, options=("--name", "maskgit", *tokenizer))
    few = ("--data.num_train", 64, "--data.num_test", 16, "--trainer.max_steps", 4, "--trainer.val_check_interval", 1)
    width = ("--model.model.init_args.width", 2)
    fit("classify_digits", "features", runs=folder, options=("--name", "classifier", *few, *width))
    return folder


def generate(runs: Path, *options: Any, run: str = "maskgit") -> int:
    return main(["generate", "--run", str(runs / run), *map(str, options)])


def read(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.array(image)


def test_pictures_and_grid_are_written(runs: Path, tmp_path: Path) -> None:
    assert generate(runs, "--num", 20, "--out", tmp_path / "a") == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [*(f"{number:04d}.png" for number in range(20)), "grid.png", "samples.json"]
    assert read(tmp_path / "a" / "0000.png").shape == (16, 16)
    assert len(list((runs / "tokenizer" / "cache").glob("tokens-*.safetensors"))) == 2  # training and validation
    height, width = read(tmp_path / "a" / "grid.png").shape
    assert (height % (2 * 17 + 1), width % (10 * 17 + 1)) == (0, 0)  # two rows of ten classes
    settings = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert settings["classes"] == [str(number % 10) for number in range(20)]
    assert (settings["steps"], settings["seed"], settings["step"]) == (2, 0, 8)


def test_a_seed_gives_the_same_pictures_and_more_of_them_the_same_first(runs: Path, tmp_path: Path) -> None:
    chosen = ("--classes", "3,any", "--temperature", 1, "--guidance", 1.5, "--steps", 4)
    for name, num, seed in (("a", 4, 7), ("b", 4, 7), ("more", 70, 7), ("other", 4, 8)):
        assert generate(runs, *chosen, "--num", num, "--seed", seed, "--out", tmp_path / name) == 0
    names = ("a", "b", "more", "other")
    grids = {name: np.stack([read(tmp_path / name / f"000{number}.png") for number in range(4)]) for name in names}
    assert np.array_equal(grids["a"], grids["b"])
    # Another size of the batch may round otherwise in the last bit.
    assert np.abs(grids["a"].astype(int) - grids["more"]).max() <= 1
    assert not np.array_equal(grids["a"], grids["other"])


def test_inpainting_keeps_the_given_tokens(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    seen: list[torch.Tensor] = []
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, tokens: seen.append(tokens) or decode(self, tokens))
    inpaint = ("--inpaint", tmp_path / "picture.png", "--num", 6)
    named = ("--tokenizer", runs / "tokenizer", "--out", tmp_path / "out")
    assert generate(runs, *inpaint, "--box", "0,0,8,5", *named) == 0
    settings = json.loads((tmp_path / "out" / "samples.json").read_text())
    places = {"inpaint": str(tmp_path / "picture.png"), "box": [0, 0, 8, 5], "tokenizer": str(runs / "tokenizer")}
    assert {name: settings.get(name) for name in (*places, "mask")} == places | {"mask": None}
    (tokens,) = seen
    given = Tokenizer.load(runs / "tokenizer").encode(torch.from_numpy(picture)[None, None] / 255)
    new = torch.zeros(4, 4, dtype=torch.bool)
    new[:2, :2] = True  # rows 0 to 4 touch the first two rows of tokens
    assert torch.equal(tokens[:, ~new], given[:, ~new].expand(6, -1))
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:5, :8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert generate(runs, *inpaint, "--mask", tmp_path / "mask.png", "--out", tmp_path / "out") == 0
    Image.fromarray(np.zeros_like(mask)).save(tmp_path / "dark.png")
    capsys.readouterr()
    assert generate(runs, *inpaint, "--mask", tmp_path / "dark.png", "--out", tmp_path / "dark") == 2
    assert "`mask` must be white where the picture is new" in capsys.readouterr().err
    assert not (tmp_path / "dark").exists()
    assert torch.equal(seen[1], tokens)
    # The grid begins with the picture and what was left of it.
    grid = read(tmp_path / "out" / "grid.png")
    factor = grid.shape[1] // (10 * 17 + 1)
    cells = grid[factor // 2 :: factor, factor // 2 :: factor]
    assert np.array_equal(cells[1:17, 1:17], picture)
    assert (cells[1:9, 18:26] == 128).all()
    assert np.array_equal(cells[9:17, 18:34], picture[8:])


def test_fid_in_the_features_of_a_classifier(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(runs / "maskgit" / "config.yaml")
    features = ("--model.init_args.features", str(runs / "classifier"))
    assert main(["test", "--config", config, "--runs", str(runs), "--ckpt_path", "best", *features]) == 0
    said = capsys.readouterr().out
    for name in ("test/fid", "test/fid_std", "test/rfid", f"ResNet18 of {runs / 'classifier'}"):
        assert name in said
    assert ClassifierFeatures.load(runs / "classifier").num_features == 16


def test_a_tokenizer_alone_has_the_same_rfid(runs: Path) -> None:
    measured = {}
    for run in ("maskgit", "tokenizer"):
        folder = RunFolder(runs / run)
        task, data = folder.build()
        load_weights(task, folder.checkpoint())
        task.features = str(runs / "classifier")
        trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        measured[run] = trainer.test(task, data, verbose=False)[0]["test/rfid"]
    assert measured["maskgit"] == pytest.approx(measured["tokenizer"], rel=1e-4)


def test_a_tokenizer_that_moved_is_found_and_another_one_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "tokenizer", tmp_path / "moved")
    shutil.copytree(runs / "maskgit", tmp_path / "maskgit")
    config = tmp_path / "maskgit" / "config.yaml"
    config.write_text(config.read_text().replace(str(runs / "tokenizer"), "nowhere"))
    assert generate(tmp_path, "--num", 2) == 2
    assert "`Tokenizer`: there is no folder 'nowhere'" in capsys.readouterr().err
    assert generate(tmp_path, "--num", 2, "--tokenizer", tmp_path / "moved") == 0
    assert (tmp_path / "maskgit" / "samples" / "grid.png").is_file()
    file = tmp_path / "moved" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["model.quantizer.codebook.raw"] += 1
    torch.save(content, file)
    assert generate(tmp_path, "--num", 2, "--tokenizer", tmp_path / "moved") == 2
    assert "`Generation`: `tokenizer` must be the one of the training" in capsys.readouterr().err


def test_the_data_of_the_training_are_not_needed(runs: Path, tmp_path: Path) -> None:
    for run in ("tokenizer", "maskgit"):
        shutil.copytree(runs / run, tmp_path / run)
        config = tmp_path / run / "config.yaml"
        text = config.read_text().replace(str(runs), str(tmp_path))
        config.write_text(text.replace("source: digits", "source: gone/for/good"))
        assert "gone/for/good" in config.read_text()
    assert generate(tmp_path, "--num", 2, "--classes", "3") == 0


def test_settings_give_the_same_pictures_again_and_no_others_stay(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "maskgit", tmp_path / "maskgit")
    file = tmp_path / "maskgit" / "best.ckpt"
    content = torch.load(file, weights_only=True)
    content["class_names"] = ["1", "10", "2", *"abcdefg"]
    torch.save(content, file)
    out = tmp_path / "out"
    assert generate(tmp_path, "--num", 6, "--classes", "10,g,any", "--out", out) == 0
    settings = json.loads((out / "samples.json").read_text())
    assert settings["classes"] == ["10", "g", "any"] * 2
    (out / "mine.png").touch()
    first = read(out / "0000.png")
    assert generate(tmp_path, "--num", 2, "--classes", ",".join(settings["classes"]), "--out", out) == 0
    assert np.array_equal(read(out / "0000.png"), first)
    names = ["0000.png", "0001.png", "grid.png", "mine.png", "samples.json"]
    assert sorted(path.name for path in out.iterdir()) == names


MISTAKES: dict[str, tuple[list[Any], str]] = {
    "no such run": (["--run", "nowhere"], "`generate`: there is no folder 'nowhere'"),
    "not a generation run": (["--run", "{runs}/tokenizer"], "is a run of Reconstruction"),
    "class too large": (["--classes", "10"], "`generate`: a class must be in [0, 10), a name, or any. Got 10."),
    "class negative": (["--classes=-1"], "a class must be in [0, 10)"),
    "class unknown": (["--classes", "boot"], "a class must be in [0, 10), a name, or any. Got boot."),
    "no pictures": (["--num", "0"], "`generate`: `num` must be an integer >= 1. Got 0"),
    "no steps": (["--steps", "0"], "`generate`: `steps` must be an integer >= 1. Got 0"),
    "temperature": (["--temperature=-1"], "`generate`: `temperature` must be a finite number in [0, inf]"),
    "guidance": (["--guidance=nan"], "`generate`: `guidance` must be a finite number in [0, inf]"),
    "seed": (["--seed=-1"], "`generate`: `seed` must be an integer >= 0"),
    "large seed": (["--seed=99999999999999999999"], "`generate`: `seed` must be below 2**63"),
    "device": (["--device", "tpu"], "`generate`: `device` must be one of auto, cpu"),
    "box without picture": (["--box", "0,0,4,4"], "`box` and `mask` belong to `inpaint`"),
    "picture without box": (["--inpaint", "{picture}"], "`inpaint` needs a region: either `box` or `mask`"),
    "box outside": (["--inpaint", "{picture}", "--box", "0,0,17,4"], "with x0 < x1 and y0 < y1. Got 0,0,17,4."),
    "box empty": (["--inpaint", "{picture}", "--box", "4,0,4,4"], "`box` must be inside the picture"),
    "box of three": (["--inpaint", "{picture}", "--box", "0,0,4"], "`box` must be four numbers"),
    "box of words": (["--inpaint", "{picture}", "--box", "a,b"], "`--box` must be four whole numbers"),
    "no picture": (["--inpaint", "nowhere.png", "--box", "0,0,4,4"], "there is no picture 'nowhere.png'"),
    "not a picture": (["--inpaint", "{text}", "--box", "0,0,4,4"], "cannot be read as a picture: not an image"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(
    mistake: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (20, 30)).save("picture.png")
    Path("text.png").write_text("no picture")
    places = {"runs": runs, "picture": "picture.png", "text": "text.png"}
    given, message = MISTAKES[mistake]
    arguments = [str(word).format(**places) for word in given]
    if "--run" not in arguments:
        arguments = ["--run", str(runs / "maskgit"), *arguments]
    assert main(["generate", *arguments, "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not Path("out").exists()


def test_another_codebook_size_than_the_tokenizers(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--config maskgit_digits --config tiny_maskgit --runs {runs}/no --model.tokenizer {runs}/tokenizer"
    assert main(["fit", *words.split(), "--model.model.codebook_size", "32"]) == 2
    assert "`codebook_size` of the model must be the tokenizer's, 16. Got 32." in capsys.readouterr().err


def test_boxes_cover_the_tokens_that_they_touch() -> None:
    assert tokens_in_box((3, 7, 4, 9), size=12, cell=4).int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert tokens_in_box((0, 0, 12, 12), size=12, cell=4).all()


def test_grid_shows_every_picture_once() -> None:
    pictures = [Image.new("RGB", (5, 4), (value, value, value)) for value in (10, 20, 30)]
    grid = np.array(image_grid(pictures, columns=2))
    factor = grid.shape[0] // 11
    assert grid.shape == (factor * 11, factor * 13, 3)
    small = grid[factor // 2 :: factor, factor // 2 :: factor]
    assert [int((small == value).sum()) for value in (10, 20, 30)] == [60, 60, 60]
    assert (small[6:10, 7:11] == 255).all()


def test_a_class_is_meant_by_its_name_before_its_number() -> None:
    names = ["1", "10", "2", "cat"]
    words = ["1", "10", "2", "cat", "3", "any"]
    assert chosen_classes(words, 4, names) == list(zip(words, [0, 1, 2, 3, 3, -1], strict=True))
    with pytest.raises(ValueError, match=r"a class must be in \[0, 4\), a name, or any. Got 4."):
        chosen_classes(["4"], 4, names)
    with pytest.raises(ValueError, match=r"or any. Got --5. The names are 1, 10, 2, cat."):
        chosen_classes(["cat", "--5"], 4, names)


def test_all_classes_are_drawn_in_turn_where_none_is_asked_for() -> None:
    for words in (None, []):
        assert chosen_classes(words, 3, ["cat", "10"]) == [("cat", 0), ("10", 1), ("2", 2)]
    assert chosen_classes(None, None, []) == []
    with pytest.raises(ValueError, match=r"`classes` must be left out: the network has none. Got 3,cat."):
        chosen_classes(["3", "cat"], None, [])
