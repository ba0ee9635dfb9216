"""`encode`: which codes each row gets, how they are written, and what becomes of rows that cannot be used."""

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from tests.encodings import (
    PRESETS,
    bad_rows,
    image_run,
    pictures,
    run,
    sound_run,
    table,
    vector_run,
    vectors,
)

import straightvq as svq
from straightvq.checkpoints import load_weights
from straightvq.data.files import ImageFiles
from straightvq.encoding import decode, encode
from straightvq.errors import InvalidValueError
from straightvq.interop import to_state_dict
from straightvq.runs import open_run


def trained(folder: Path) -> tuple[Any, Any]:
    """The network of a run, in evaluation mode, and its data."""
    opened, checkpoint = open_run(folder, "test")
    task, data = opened.build()
    load_weights(task, checkpoint)
    return task.eval().model, data


def unflattened(rows: dict[str, list[Any]]) -> dict[str, NDArray[Any]]:
    """Indices by key."""
    return {
        key: np.array(flat).reshape(shape)
        for key, flat, shape in zip(rows["key"], rows["indices"], rows["shape"], strict=True)
    }


# --- what the codes are


def test_pictures_get_the_codes_that_a_test_of_the_run_gives_them(tmp_path: Path) -> None:
    folder = image_run(tmp_path / "run", batch_size=100)
    made = encode(folder, "digits", tmp_path / "codes", rows_per_shard=700)
    assert (made["rows"], made["done"], made["shards"]) == (1797, 1797, 3)
    rows = table(tmp_path / "codes")
    assert rows["key"] == [f"digit {number}" for number in range(1797)]
    model, data = trained(folder)
    with torch.no_grad():
        batches = (data.on_after_batch_transfer(batch, 0)["image"] for batch in data.test_dataloader())
        expected = torch.cat([model.tokenize(image) for image in batches]).numpy()
    found = np.stack(list(unflattened(rows).values()))
    assert found.shape == (1797, 2, 2)
    assert np.array_equal(found[-360:], expected)  # the test split
    assert len(np.unique(found)) > 2


def test_pictures_of_a_folder_are_scaled_and_cut_and_called_by_their_paths(tmp_path: Path) -> None:
    folder, source = image_run(tmp_path / "run"), pictures(tmp_path / "pictures", 5)
    encode(folder, source, tmp_path / "codes", rows_per_shard=2)
    codes = unflattened(table(tmp_path / "codes"))
    assert list(codes) == ["a/000.png", "a/001.png", "a/002.png", "b/003.png", "b/004.png"]
    model, _ = trained(folder)
    pixels = ImageFiles(source, ["b/003.png"], [0]).decode(0, 8, 1)
    expected = model.tokenize(torch.from_numpy(pixels)[None] / 255)
    assert np.array_equal(codes["b/003.png"], expected[0].numpy())


def test_names_that_are_no_text_are_written_and_decoded(tmp_path: Path) -> None:
    folder, source = image_run(tmp_path / "run"), pictures(tmp_path / "pictures", 1)
    odd = os.path.join(os.fsencode(source), b"b\xff.png")  # no UTF-8
    os.rename(source / "a" / "000.png", odd)
    encode(folder, source, tmp_path / "codes")
    assert table(tmp_path / "codes")["key"] == ["b\\udcff.png"]
    decode(folder, tmp_path / "codes", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out" / "files").iterdir()] == ["b\\udcff.png"]


def test_the_splits_of_a_source_follow_one_another(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / "source" / split, 2)
    encode(image_run(tmp_path / "run"), tmp_path / "source", tmp_path / "codes")
    rows = table(tmp_path / "codes")
    assert rows["key"] == ["test/a/000.png", "test/b/001.png", "train/a/000.png", "train/b/001.png"]
    assert rows["indices"][:2] == rows["indices"][2:]


def test_vectors_are_scaled_as_in_the_training_and_keep_their_names(tmp_path: Path) -> None:
    one = {"class_path": f"{PRESETS}.vq_vae", "init_args": {"dim": 2, "codebook_size": 2}}
    folder = vector_run(tmp_path / "run", one, width=2)
    content = torch.load(folder / "last.ckpt", weights_only=True)
    (table_of_codes,) = (name for name in content["state_dict"] if name.endswith("raw"))
    content["state_dict"][table_of_codes] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    torch.save(content, folder / "last.ckpt")
    # The scaling is (x - (0, 0.5)) / 2: (1, 1.5) becomes (0.5, 0.5), just between the codes.
    np.save(tmp_path / "v.npy", np.array([[1.1, 1.5], [0.9, 1.5], [9.0, 9.0]], dtype=np.float32))
    encode(folder, tmp_path / "v.npy", tmp_path / "codes")
    assert table(tmp_path / "codes") == {"key": ["0", "1", "2"], "indices": [[1], [0], [1]], "shape": [[], [], []]}
    encode(vector_run(tmp_path / "levels"), vectors(tmp_path / "v.parquet", 5), tmp_path / "named")
    rows = table(tmp_path / "named")
    assert rows["key"] == [f"item {number}" for number in range(5)]
    assert rows["shape"] == [[3]] * 5


def test_clips_get_the_codes_that_they_get_alone(tmp_path: Path) -> None:
    folder = sound_run(tmp_path / "run")
    encode(folder, "vowels", tmp_path / "codes", rows_per_shard=230)
    rows = table(tmp_path / "codes")
    codes = unflattened(rows)
    assert len(codes) == 460
    model, data = trained(folder)
    records = data.find().everything()
    for number in (0, 1, 229, 459):
        clip = torch.from_numpy(records.decode(number, 8000, 1))
        alone = model.tokenize(clip[None, None])[0]
        assert rows["length"][number] == len(clip)
        assert alone.shape == (-(-len(clip) // 80), 3)
        assert np.array_equal(codes[records.key(number)], alone.numpy())


def test_a_quantized_classifier_encodes_too(tmp_path: Path) -> None:
    quantizer = {
        "class_path": f"{PRESETS}.vq_vae",
        "init_args": {"dim": 12, "codebook_size": 8, "channel_dim": 1},
    }
    network = {"quantizer": quantizer, "num_classes": 10, "in_channels": 1, "width": 2, "small_images": True}
    data = {"source": "digits", "size": 16, "channels": 1, "num_train": 20}
    folder = run(tmp_path / "run", "Classification", "AlexNet", network, "Images", data)
    encode(folder, pictures(tmp_path / "pictures", 3), tmp_path / "codes")
    assert table(tmp_path / "codes")["shape"] == [[4, 4]] * 3


def test_a_file_of_another_library_encodes_vectors(tmp_path: Path) -> None:
    layer = svq.presets.ema(6, 20)
    layer.set_codes(torch.randn(20, 6, generator=torch.Generator().manual_seed(1)))
    torch.save(to_state_dict(layer, "vqvae"), tmp_path / "model.pth")
    source = vectors(tmp_path / "v.parquet", 9)
    made = encode(None, source, tmp_path / "codes", file=tmp_path / "model.pth", layout="vqvae")
    assert made["settings"]["layout"] == "vqvae"
    given = torch.tensor(pq.read_table(source).column("vector").to_pylist())
    assert [[index] for index in layer.encode(given).tolist()] == table(tmp_path / "codes")["indices"]


def test_nearest_codes_and_their_distances(tmp_path: Path) -> None:
    one = {"class_path": f"{PRESETS}.vq_vae", "init_args": {"dim": 6, "codebook_size": 16}}
    folder, source = vector_run(tmp_path / "run", one), vectors(tmp_path / "v.parquet", 10)
    encode(folder, source, tmp_path / "codes", nearest=3)
    rows = table(tmp_path / "codes")
    model, _ = trained(folder)
    x = (torch.tensor(pq.read_table(source).column("vector").to_pylist()) - torch.arange(6) / 2) / 2
    distances, order = torch.cdist(x, model.quantizer.codes()).sort(1)
    assert rows["neighbors"] == order[:, :3].tolist()
    assert torch.allclose(torch.tensor(rows["distances"]), distances[:, :3], atol=1e-5)
    assert [each[:1] for each in rows["neighbors"]] == rows["indices"]


# --- how they are written


@pytest.mark.parametrize(("size", "kind"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65_537, "uint32")])
def test_indices_have_the_narrowest_type_that_holds_all_codes(size: int, kind: str, tmp_path: Path) -> None:
    one = {"class_path": f"{PRESETS}.vq_vae", "init_args": {"dim": 6, "codebook_size": size}}
    encode(vector_run(tmp_path / "run", one), vectors(tmp_path / "v.parquet", 3), tmp_path / "codes", nearest=2)
    schema = pq.read_schema(tmp_path / "codes" / "part-00000.parquet")
    assert str(schema.field("indices").type.value_type) == kind
    assert str(schema.field("neighbors").type.value_type) == kind


def test_every_shard_has_the_rows_of_its_place(tmp_path: Path) -> None:
    folder, source = image_run(tmp_path / "run"), pictures(tmp_path / "pictures", 11, bad=(1, 10))
    made = encode(folder, source, tmp_path / "codes", rows_per_shard=5)
    shards = [pq.read_table(tmp_path / "codes" / f"part-0000{number}.parquet") for number in range(3)]
    assert [shard.column("key").to_pylist() for shard in shards] == [
        ["a/000.png", "a/002.png", "a/003.png", "a/004.png"],
        ["a/005.png", "b/006.png", "b/007.png", "b/008.png", "b/009.png"],
        [],
    ]
    assert (made["rows"], made["done"], made["bad"], made["shards"]) == (11, 9, 2, 3)
    assert sorted(bad_rows(tmp_path / "codes")) == ["a/001.png", "b/010.png"]
    names = {"bad.jsonl", "metadata.json", *(f"part-0000{number}.parquet" for number in range(3))}
    assert {file.name for file in (tmp_path / "codes").iterdir()} == names


def test_processes_that_read_change_nothing(tmp_path: Path) -> None:
    folder, source = vector_run(tmp_path / "run"), vectors(tmp_path / "v.parquet", 30, bad=(4,))
    for readers in (0, 2):
        encode(folder, source, tmp_path / f"codes {readers}", rows_per_shard=9, readers=readers)
    assert table(tmp_path / "codes 0") == table(tmp_path / "codes 2")
    assert bad_rows(tmp_path / "codes 0") == bad_rows(tmp_path / "codes 2")


def test_few_pictures_are_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = ImageFiles.decode
    alive: set[int] = set()
    most = 0

    class Pixels(np.ndarray):
        """Can be referred to weakly."""

    def counted(self: ImageFiles, i: int, size: int, channels: int) -> NDArray[Any]:
        nonlocal most
        found = decode(self, i, size, channels).view(Pixels)
        alive.add(i)
        weakref.finalize(found, alive.discard, i)
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(ImageFiles, "decode", counted)
    encode(image_run(tmp_path / "run"), pictures(tmp_path / "pictures", 90), tmp_path / "codes", rows_per_shard=40)
    assert 4 < most <= 4 * 8  # batches of four: some wait, one is read, one is encoded


# --- rows that cannot be used


def test_a_vector_that_overflows_in_the_network_spoils_no_other_one(tmp_path: Path) -> None:
    source = tmp_path / "v.npy"
    drawn = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    np.save(source, drawn)
    folder = vector_run(tmp_path / "run")
    encode(folder, source, tmp_path / "sound")
    drawn[2] = 1e30
    np.save(source, drawn)
    encode(folder, source, tmp_path / "codes")
    assert bad_rows(tmp_path / "codes") == {"2": "what the network makes of it is not finite"}
    kept = [row for row in range(6) if row != 2]
    whole = table(tmp_path / "sound")["indices"]
    assert table(tmp_path / "codes")["indices"] == [whole[row] for row in kept]


def test_sound_that_is_empty_is_named(tmp_path: Path) -> None:
    import soundfile

    clips = tmp_path / "clips"
    clips.mkdir()
    soundfile.write(clips / "a.wav", np.sin(np.arange(900) / 9), 8000)
    soundfile.write(clips / "b.wav", np.zeros(0), 8000)
    (clips / "c.wav").write_bytes(b"")
    encode(sound_run(tmp_path / "run"), clips, tmp_path / "codes")
    assert table(tmp_path / "codes")["key"] == ["a.wav"]
    assert bad_rows(tmp_path / "codes") == {"b.wav": "it has no samples", "c.wav": "the file is empty"}


def test_no_row_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    folder, source = image_run(tmp_path / "run"), pictures(tmp_path / "pictures", 3, bad=(0, 1, 2))
    for _ in range(2):
        with pytest.raises(InvalidValueError, match="none of the 3 rows can be used"):
            encode(folder, source, tmp_path / "codes")
    assert len(bad_rows(tmp_path / "codes")) == 3
