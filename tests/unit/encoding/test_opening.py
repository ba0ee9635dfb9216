"""What `straightvq encode` and `decode` say of arguments, runs and sources that they cannot use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tests.encodings import image_run, pictures, run, sound_run, table, vector_run, vectors

from straightvq.cli import main
from straightvq.encoding import encode
from straightvq.encoding.opening import ranks
from straightvq.errors import InvalidTypeError, InvalidValueError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of pictures, sound and vectors, and a source of each."""
    folder = tmp_path_factory.mktemp("opening")
    image_run(folder / "images")
    sound_run(folder / "sound")
    vector_run(folder / "vectors")
    pictures(folder / "pictures", 3)
    vectors(folder / "v.parquet", 5)
    return folder


def words(command: str, **options: Any) -> list[str]:
    named = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return [command, *(word for pair in named for word in pair)]


def test_a_folder_is_encoded_and_decoded_from_the_command_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, out = tmp_path / "codes", tmp_path / "out"
    checkpoint = place / "images" / "last.ckpt"
    assert main(words("encode", run=checkpoint, source=place / "pictures", out=codes, rows_per_shard=2, nearest=2)) == 0
    assert capsys.readouterr().out == f"{codes}/: 3 rows in 2 shard(s)\n"
    assert main(words("decode", run=place / "images", codes=codes, out=out)) == 0
    assert capsys.readouterr().out == f"{out}/: 3 rows in 2 shard(s)\n"
    settings = json.loads((codes / "metadata.json").read_text())["settings"]
    assert (settings["step"], settings["quantizer"], settings["nearest"]) == (7, "VectorQuantizer", 2)
    clips = tmp_path / "clips"
    clips.mkdir()
    soundfile.write(clips / "a.wav", np.sin(np.arange(900) / 9), 8000)
    assert main(words("encode", run=place / "sound", source=clips, out=tmp_path / "sound")) == 0
    assert main(words("decode", run=place / "sound", codes=tmp_path / "sound", out=tmp_path / "one", levels=1)) == 0


def test_bad_rows_and_shards_of_other_processes_are_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = words("encode", run=place / "vectors", source=vectors(tmp_path / "v.parquet", 5, bad=(2,)))
    out = tmp_path / "codes"
    command += ["--out", str(out), "--rows-per-shard", "3"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("1", "this process's shards are there, those of others are not yet"), ("0", "4 rows in 2 ")):
        monkeypatch.setenv("RANK", rank)
        assert main(command) == 0
        assert said in (told := capsys.readouterr().out)
    assert told == f"{out}/: 4 rows in 2 shard(s), 1 that cannot be used (bad.jsonl)\n"


Change = Callable[[Path], dict[str, Any]]
REFUSED: dict[str, tuple[Change, str]] = {
    "no run": (lambda place: {"run": place / "nowhere"}, "there is no folder"),
    "no checkpoint of that name": (lambda place: {"run": place / "images" / "best.ckpt"}, "has no checkpoint 'best'"),
    "neither run nor file": (lambda place: {"run": None}, "there must be either `run` or `file`. Got neither."),
    "both": (lambda place: {"file": place / "v.parquet"}, "there must be either `run` or `file`. Got both."),
    "a layout of no file": (lambda place: {"layout": "vqvae"}, "`layout` belongs to `file`. Got 'vqvae' and no file."),
    "no file": (lambda place: {"run": None, "file": place / "no.pth"}, "there is no file"),
    "no source": (lambda place: {"source": place / "nothing"}, "does not exist"),
    "sound for a network of images": (lambda place: {"source": "vowels"}, "`Images`: `source` 'vowels' does not exist"),
    "vectors for it": (lambda place: {"source": place / "v.parquet"}, "must have a column 'image'"),
    "pictures for a codec": (
        lambda place: {"run": place / "sound", "source": place / "pictures"},
        "holds no sound or Parquet file",
    ),
    "pictures for vectors": (
        lambda place: {"run": place / "vectors", "source": place / "pictures"},
        "must hold .parquet or .npy files",
    ),
    "vectors of another width": (
        lambda place: {"run": place / "vectors", "source": "digits"},
        "the vectors must have 6 numbers, as those of the training. Got 64 in 'digits'",
    ),
    "several codebooks": (
        lambda place: {"run": place / "vectors", "source": place / "v.parquet", "nearest": 2},
        "`nearest` needs a quantizer with one codebook. Got ResidualQuantizer.",
    ),
    "more than all codes": (
        lambda place: {"nearest": 17},
        "`nearest` must be at most the codebook_size 16. Got 17.",
    ),
    "no nearest": (lambda place: {"nearest": 0}, "`nearest` must be an integer >= 1. Got 0."),
    "no rows": (lambda place: {"rows_per_shard": 0}, "`rows_per_shard` must be an integer >= 1. Got 0."),
    "no readers": (lambda place: {"readers": -1}, "`readers` must be an integer >= 0. Got -1."),
    "no device": (lambda place: {"device": "tpu"}, "`device` must be one of auto, cpu"),
    "another engine": (lambda place: {"engine": "slurm"}, "`engine` must be one of 'here', 'ray'. Got 'slurm'."),
    "no workers": (lambda place: {"workers": 0}, "`workers` must be an integer >= 1. Got 0."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_by_a_sentence(
    case: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = REFUSED[case]
    options = {"run": place / "images", "source": place / "pictures", "out": tmp_path / "codes", **change(place)}
    given = {name: value for name, value in options.items() if value is not None}
    assert main(words("encode", **given)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "codes").exists()


@pytest.mark.parametrize("name", ["source", "out"])
def test_an_option_that_is_needed_is_asked_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"run": "runs/a", "source": "b", "out": "c"}
    given.pop(name)
    assert main(words("encode", **given)) == 2
    assert f"the following arguments are required: --{name}" in capsys.readouterr().err


def test_arguments_of_a_wrong_type_are_refused(place: Path, tmp_path: Path) -> None:
    run_of_images, source, out = place / "images", place / "pictures", tmp_path / "codes"
    given: dict[str, Any]
    for given in ({"run": 3}, {"source": None}, {"out": 1.5}, {"file": 3, "run": None}):
        with pytest.raises(InvalidTypeError, match=f"`encode`: `{next(iter(given))}` must be a path"):
            encode(**{"run": run_of_images, "source": source, "out": out, **given})
    for given in ({"rows_per_shard": 2.5}, {"nearest": "3"}, {"readers": None}, {"workers": True}):
        with pytest.raises(InvalidTypeError, match=f"`{next(iter(given))}` must be an integer"):
            encode(run_of_images, source, out, **given)
    given = {"file": saved(tmp_path), "layout": 3}
    with pytest.raises(InvalidTypeError, match="`layout` must be the name of a layout"):
        encode(None, source, out, **given)
    assert not out.exists()


def saved(folder: Path) -> Path:
    torch.save({"_embedding.weight": torch.ones(4, 2)}, folder / "model.pth")
    return folder / "model.pth"


def test_a_run_without_codes_of_its_own_is_refused(place: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    network = {"quantizer": None, "num_classes": 10, "in_channels": 1, "width": 2}
    run(bare, "Classification", "ResNet18", network, "Images", {"source": "digits", "size": 8, "channels": 1})
    with pytest.raises(InvalidValueError, match=r"is a run of Classification without a quantizer of its own"):
        encode(bare, place / "pictures", tmp_path / "codes")
    config = yaml.safe_load((place / "images" / "config.yaml").read_text())
    config["model"]["init_args"]["quantize"] = False
    unquantized = image_run(tmp_path / "unquantized")
    (unquantized / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InvalidValueError, match="was trained with `quantize: false`, so its codes mean nothing"):
        encode(unquantized, place / "pictures", tmp_path / "codes")


def test_vectors_need_the_scaling_of_their_training(place: Path, tmp_path: Path) -> None:
    folder = vector_run(tmp_path / "run")
    content = torch.load(folder / "last.ckpt", weights_only=True)
    torch.save({name: value for name, value in content.items() if name != "Vectors"}, folder / "last.ckpt")
    with pytest.raises(InvalidValueError, match="does not say how its vectors were scaled"):
        encode(folder, place / "v.parquet", tmp_path / "codes")


def test_other_data_than_pictures_sound_and_vectors_are_refused(place: Path, tmp_path: Path) -> None:
    folder = vector_run(tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"] = {"class_path": "straightvq.data.MovingVectors", "init_args": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InvalidValueError, match="source"):
        encode(folder, place / "v.parquet", tmp_path / "codes")


def test_another_checkpoint_source_or_size_of_shards_is_another_folder(place: Path, tmp_path: Path) -> None:
    folder, source, out = image_run(tmp_path / "run"), pictures(tmp_path / "pictures", 4), tmp_path / "codes"
    encode(folder, source, out, rows_per_shard=3)
    with pytest.raises(InvalidValueError, match="was made with other settings: rows_per_shard 3, now 2"):
        encode(folder, source, out, rows_per_shard=2)
    with pytest.raises(InvalidValueError, match=r"was made with other settings: source '.*pictures', now 'digits'"):
        encode(folder, "digits", out, rows_per_shard=3)
    (source / "b" / "003.png").rename(source / "b" / "004.png")
    with pytest.raises(InvalidValueError, match="was made with other settings: keys"):
        encode(folder, source, out, rows_per_shard=3)
    (source / "b" / "004.png").rename(source / "b" / "003.png")
    content = torch.load(folder / "last.ckpt", weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] += 1
    torch.save({**content, "global_step": 9}, folder / "last.ckpt")
    with pytest.raises(InvalidValueError, match="was made with other settings: step 7, now 9; weights"):
        encode(folder, source, out, rows_per_shard=3)
    assert len(table(out)["key"]) == 4


def test_a_file_fits_vectors_of_its_width(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((3, 2), dtype=np.float32))
    made = encode(None, tmp_path / "v.npy", tmp_path / "codes", file=saved(tmp_path))
    assert (made["settings"]["width"], made["done"]) == (2, 3)
    np.save(tmp_path / "w.npy", np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(InvalidValueError, match="the vectors must have 2 numbers"):
        encode(None, tmp_path / "w.npy", tmp_path / "other", file=saved(tmp_path))


def test_a_process_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks("encode") == (0, 1)
