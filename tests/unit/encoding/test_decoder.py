"""`decode`: what comes back, under which names, and what is refused."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from tests.encodings import PRESETS, content, image_run, pictures, run, sound_run, table, vector_run, vectors

import straightvq as svq
from straightvq.checkpoints import load_weights
from straightvq.data.files import ImageFiles
from straightvq.data.sound.decode import decode_sound
from straightvq.encoding import decode, encode
from straightvq.encoding.codes import CodesFolder
from straightvq.encoding.decoder import file_name
from straightvq.encoding.folder import read_footer
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.interop import to_state_dict
from straightvq.runs import open_run


def model_of(folder: Path) -> Any:
    opened, checkpoint = open_run(folder, "test")
    task: Any = opened.build_task()
    load_weights(task, checkpoint)
    return task.eval().model


# --- what comes back


def test_pictures_come_back_as_the_network_reconstructs_them(tmp_path: Path) -> None:
    folder, source = image_run(tmp_path / "run"), pictures(tmp_path / "pictures", 7, bad=(2,))
    (source / "b" / "late.jpg").write_bytes((source / "b" / "006.png").read_bytes())
    encode(folder, source, tmp_path / "codes", rows_per_shard=5)
    made = decode(folder, tmp_path / "codes", tmp_path / "out")
    assert (made["done"], made["shards"]) == (7, 2)
    keys = [f"{'ab'[number > 3]}/00{number}.png" for number in (0, 1, 3, 4, 5, 6)]
    rows = table(tmp_path / "out")
    assert rows == {"key": [*keys, "b/late.jpg"], "file": [*keys, "b/late.jpg.png"]}
    assert sorted(content(tmp_path / "out" / "files")) == rows["file"]
    pixels = torch.from_numpy(ImageFiles(source, keys, [0] * 6).decode(2, 8, 1))[None] / 255
    with torch.no_grad():
        expected = (model_of(folder)(pixels).reconstruction[0, 0].clamp(0, 1) * 255).round().byte()
    with Image.open(tmp_path / "out" / "files" / keys[2]) as image:
        assert np.array_equal(np.array(image), expected.numpy())
    assert expected.float().std() > 1


def test_pictures_in_colour_keep_it(tmp_path: Path) -> None:
    quantizer = {"class_path": f"{PRESETS}.vq_vae", "init_args": {"dim": 4, "codebook_size": 16, "channel_dim": 1}}
    data = {"source": "photos", "size": 8, "num_train": 4, "num_test": 2, "batch_size": 4}
    folder = run(
        tmp_path / "run", "Reconstruction", "Autoencoder", {"quantizer": quantizer, "hidden": 4}, "Images", data
    )
    encode(folder, "photos", tmp_path / "codes")
    decode(folder, tmp_path / "codes", tmp_path / "out")
    with Image.open(tmp_path / "out" / "files" / "test crop 1.png") as image:
        assert (image.mode, image.size) == ("RGB", (8, 8))


def test_clips_come_back_in_their_length(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    lengths = {"a.wav": 900, "b.wav": 81, "c.wav": 1600, "d.wav": 400, "e.wav": 399}
    for name, samples in lengths.items():
        soundfile.write(clips / name, np.sin(np.arange(samples) / 9) / 2, 8000)
    folder = sound_run(tmp_path / "run")
    encode(folder, clips, tmp_path / "codes")
    for levels in (None, 1):
        decode(folder, tmp_path / "codes", tmp_path / f"out {levels}", levels=levels)
    found = {name: decode_sound((tmp_path / "out None" / "files" / name).read_bytes(), 8000) for name in lengths}
    assert {name: len(clip) for name, clip in found.items()} == lengths
    model = model_of(folder)
    original = torch.from_numpy(decode_sound((clips / "b.wav").read_bytes(), 8000))[None, None]
    with torch.no_grad():
        expected = model(original).reconstruction[0, 0]
        of_one = model.detokenize(model.tokenize(original)[..., :1])[0, 0, :81]
    assert np.allclose(found["b.wav"], expected.numpy(), atol=2**-14)  # 16 bits
    fewer = decode_sound((tmp_path / "out 1" / "files" / "b.wav").read_bytes(), 8000)
    assert np.allclose(fewer, of_one.numpy(), atol=2**-14)
    assert np.abs(expected.numpy() - of_one.numpy()).max() > 2**-10


def test_vectors_come_back_in_their_own_units(tmp_path: Path) -> None:
    folder, source = vector_run(tmp_path / "run"), vectors(tmp_path / "v.parquet", 9, bad=(3,))
    encode(folder, source, tmp_path / "codes", rows_per_shard=4)
    decode(folder, tmp_path / "codes", tmp_path / "out")
    rows = table(tmp_path / "out")
    assert rows["key"] == [f"item {number}" for number in range(9) if number != 3]
    codes = torch.tensor(table(tmp_path / "codes")["indices"])
    quantizer = model_of(folder).quantizer
    # The scaling of the training was (x - (0, 0.5, ...)) / 2.
    expected = quantizer.decode(codes) * 2 + torch.arange(6) / 2
    assert torch.allclose(torch.tensor(rows["vector"]), expected)
    decode(folder, tmp_path / "codes", tmp_path / "two", levels=2)
    two = quantizer.decode(codes[:, :2]) * 2 + torch.arange(6) / 2
    assert torch.allclose(torch.tensor(table(tmp_path / "two")["vector"]), two)
    assert not torch.allclose(two, expected)


def test_a_shard_without_a_usable_row_is_decoded_to_none(tmp_path: Path) -> None:
    folder, source = vector_run(tmp_path / "run"), vectors(tmp_path / "v.parquet", 4, bad=(2, 3))
    encode(folder, source, tmp_path / "codes", rows_per_shard=2)
    decode(folder, tmp_path / "codes", tmp_path / "out")
    assert table(tmp_path / "out")["key"] == ["item 0", "item 1"]


def test_a_file_of_another_library_decodes_vectors(tmp_path: Path) -> None:
    layer = svq.presets.ema(6, 20)
    layer.set_codes(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))
    torch.save(to_state_dict(layer, "vqvae"), tmp_path / "model.pth")
    encode(None, vectors(tmp_path / "v.parquet", 9), tmp_path / "codes", file=tmp_path / "model.pth")
    decode(None, tmp_path / "codes", tmp_path / "out", file=tmp_path / "model.pth")
    codes = torch.tensor(table(tmp_path / "codes")["indices"])[:, 0]
    assert torch.allclose(torch.tensor(table(tmp_path / "out")["vector"]), layer.codes()[codes])


def test_files_are_on_the_disk_before_their_shard_says_that_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_run(tmp_path / "run")
    encode(folder, pictures(tmp_path / "pictures", 4), tmp_path / "codes", rows_per_shard=2)
    seen: list[set[str]] = []
    monkeypatch.setattr(os, "sync", lambda: seen.append({name for name in content(tmp_path / "out")}))
    decode(folder, tmp_path / "codes", tmp_path / "out")
    files = ["files/a/000.png", "files/a/001.png", "files/b/002.png", "files/b/003.png"]
    assert seen == [{"metadata.json", *files[:2]}, {"metadata.json", "part-00000.parquet", *files}]


def test_the_data_of_the_training_may_be_gone(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", 3)
    folder = image_run(tmp_path / "run", source=str(source))
    encode(folder, source, tmp_path / "codes")
    source.rename(tmp_path / "elsewhere")
    assert decode(folder, tmp_path / "codes", tmp_path / "out")["done"] == 3


# --- what is refused


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of vectors, and codes that it made."""
    folder = tmp_path_factory.mktemp("encoded")
    run_of_vectors = vector_run(folder / "run")
    encode(run_of_vectors, vectors(folder / "v.parquet", 9), folder / "codes", rows_per_shard=4)
    return run_of_vectors, folder / "codes"


def test_codes_of_another_network_are_refused(encoded: tuple[Path, Path], tmp_path: Path) -> None:
    smaller = {"class_path": f"{PRESETS}.vq_vae", "init_args": {"dim": 6, "codebook_size": 16}}
    with pytest.raises(InvalidValueError) as refused:
        decode(vector_run(tmp_path / "other", smaller), encoded[1], tmp_path / "out")
    said = str(refused.value)
    assert "`decode`: the codes must be those of the same network. They were made by weights" in said
    assert "quantizer ResidualQuantizer, codebook_sizes [300, 300, 300]" in said
    assert "quantizer VectorQuantizer, codebook_sizes [16]" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["too large", "too many", "fewer levels"])
def test_indices_that_no_code_has_are_refused(change: str, encoded: tuple[Path, Path], tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    codes.mkdir()
    for file in encoded[1].iterdir():
        (codes / file.name).write_bytes(file.read_bytes())
    file = codes / "part-00001.parquet"
    rows = pq.read_table(file)
    lists, shapes = rows.column("indices").to_pylist(), rows.column("shape").to_pylist()
    if change == "too large":
        lists[2][1] = 300
    elif change == "too many":
        lists[2].append(1)
    else:
        lists, shapes = [each[:2] for each in lists], [[2]] * 4
    columns = {"key": rows.column("key"), "indices": lists, "shape": pa.array(shapes, pa.list_(pa.int32()))}
    pq.write_table(pa.table(columns, metadata=rows.schema.metadata), file)
    named = "item 4" if change == "fewer levels" else "item 6"
    with pytest.raises(
        InvalidValueError, match=rf"the indices of '{named}' in part-00001.parquet are none of Residual"
    ):
        decode(encoded[0], codes, tmp_path / "out")


def test_indices_beyond_a_single_codebook_are_refused(tmp_path: Path) -> None:
    layer = svq.presets.ema(6, 20)
    layer.set_codes(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))
    torch.save(to_state_dict(layer, "vqvae"), tmp_path / "model.pth")
    codes = tmp_path / "codes"
    encode(None, vectors(tmp_path / "v.parquet", 3), codes, file=tmp_path / "model.pth")
    shard = codes / "part-00000.parquet"
    rows = pq.read_table(shard)
    lists = pa.array([[19], [20], [0]], pa.list_(pa.uint8()))
    pq.write_table(rows.set_column(1, "indices", lists), shard)
    with pytest.raises(InvalidValueError, match=r"the indices of 'item 1' .* 1 code\(s\) of 20. Got 1 of .* up to 20"):
        decode(None, codes, tmp_path / "out", file=tmp_path / "model.pth")


def test_codes_that_are_not_complete_are_refused(encoded: tuple[Path, Path], tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    codes.mkdir()
    for name in ("metadata.json", "part-00000.parquet", "part-00001.parquet"):
        (codes / name).write_bytes((encoded[1] / name).read_bytes())
    with pytest.raises(InvalidValueError, match=r"part-00002.parquet' is missing, damaged, or of other settings"):
        decode(encoded[0], codes, tmp_path / "out")


@pytest.mark.parametrize("kind", ["nothing", "a file", "an empty folder", "a decoded folder"])
def test_what_is_no_folder_of_codes_is_refused(kind: str, encoded: tuple[Path, Path], tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("x")
    elif kind == "an empty folder":
        place.mkdir()
    elif kind == "a decoded folder":
        decode(*encoded, place)
    with pytest.raises(InvalidValueError, match=r"`codes` must be a folder that `straightvq encode` made"):
        decode(encoded[0], place, tmp_path / "out")


def test_levels_are_those_of_a_residual_quantizer(encoded: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"`levels` must be at most the quantizer's 3. Got 4"):
        decode(*encoded, tmp_path / "out", levels=4)
    with pytest.raises(InvalidValueError, match=r"`levels` must be an integer >= 1. Got 0"):
        decode(*encoded, tmp_path / "out", levels=0)
    folder = image_run(tmp_path / "run")
    encode(folder, pictures(tmp_path / "pictures", 2), tmp_path / "codes")
    with pytest.raises(InvalidValueError, match=r"`levels` needs a ResidualQuantizer. Got VectorQuantizer"):
        decode(folder, tmp_path / "codes", tmp_path / "out", levels=1)
    with pytest.raises(InvalidTypeError, match=r"`codes` must be a path. Got 3"):
        decode(folder, 3, tmp_path / "out")


def test_a_classifier_has_no_way_back(tmp_path: Path) -> None:
    quantizer = {"class_path": f"{PRESETS}.vq_vae", "init_args": {"dim": 12, "codebook_size": 8, "channel_dim": 1}}
    network = {"quantizer": quantizer, "num_classes": 10, "in_channels": 1, "width": 2, "small_images": True}
    data = {"source": "digits", "size": 16, "channels": 1}
    folder = run(tmp_path / "run", "Classification", "AlexNet", network, "Images", data)
    encode(folder, pictures(tmp_path / "pictures", 2), tmp_path / "codes")
    with pytest.raises(InvalidValueError, match=r"`decode`: the network must be an autoencoder. Got AlexNet"):
        decode(folder, tmp_path / "codes", tmp_path / "out")


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/a", "", ".", "a\0b"])
def test_keys_that_lead_out_of_the_folder_are_refused(key: str) -> None:
    with pytest.raises(InvalidValueError, match="a key must be a name or a path within a folder"):
        file_name(key, ".png")


def test_two_rows_of_one_file_are_refused(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", 2)
    (source / "a" / "000").write_bytes((source / "a" / "000.png").read_bytes())
    folder = image_run(tmp_path / "run")
    encode(folder, source, tmp_path / "codes")
    with pytest.raises(InvalidValueError, match=r"Got 'a/000.png' for several keys"):
        decode(folder, tmp_path / "codes", tmp_path / "out")


def test_codes_are_read_as_they_were_written(encoded: tuple[Path, Path]) -> None:
    codes = CodesFolder(encoded[1])
    assert codes.sizes == [4, 4, 1]
    shard = codes.read(2, model_of(encoded[0]).quantizer)
    assert (shard.keys, shard.lengths) == (["item 8"], [None])
    assert shard.indices[0].tolist() == table(encoded[1])["indices"][8]
    assert (read_footer(encoded[1] / "part-00002.parquet") or ())[1:] == (1, [])
