import json
import os
from pathlib import Path

import pytest
from PIL import Image

from straightvq.data.decode import FORMATS, UnreadableImageError
from straightvq.data.files import local

from .conftest import grey, huge_png, noise_jpeg, write_parquet

MIB = 1 << 20


def test_first_subfolder_is_the_class(folder):
    (folder / "b" / "deep").mkdir()
    (folder / "b" / "deep" / "x.png").write_bytes(grey(1))
    source = local(folder, MIB)
    train = source.splits["train"]
    assert source.class_names == ["a", "b"]
    assert {train.key(i): int(train.labels[i]) for i in (0, 20)} == {"a/00.png": 0, "b/00.png": 1}
    assert [train.labels[i] for i in range(len(train)) if train.key(i) == "b/deep/x.png"] == [1]
    assert train.decode(20, 4, 3).max() == 100


def test_flat_folder_has_no_labels(tmp_path):
    (tmp_path / "0.png").write_bytes(grey(0))
    source = local(tmp_path, MIB)
    assert source.class_names is None
    assert source.splits["train"].labels.tolist() == [-1]


@pytest.mark.parametrize("val", ["val", "validation"])
def test_split_folders_share_one_list_of_classes(tmp_path, val):
    for path in ("train/cat/0.png", "train/dog/0.png", f"{val}/dog/0.png", "test/eel/0.png", "stray.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(grey(0))
    source = local(tmp_path, MIB)
    assert source.class_names == ["cat", "dog", "eel"]
    labels = {split: records.labels.tolist() for split, records in source.splits.items()}
    assert labels == {"train": [0, 1], "validation": [1], "test": [2]}


def test_images_are_told_by_their_suffix_and_without_one_by_their_first_bytes(folder):
    for name in ("notes.txt", "LICENSE", ".hidden.png"):
        (folder / name).write_text("words")
    for name in ("damaged.png", "phone.heic", "layers.psd", "drawing.svg"):  # they claim to be images
        (folder / name).write_text("words")
    (folder / "a" / "plain").write_bytes(grey(9))
    (folder / "a" / "cut").write_bytes(noise_jpeg()[:-400])
    (folder / "a" / "bomb").write_bytes(huge_png(30_000, 30_000))
    os.mkfifo(folder / "pipe")
    paths = local(folder, MIB).splits["train"].paths
    known = {f"{name}/{i:02}.png" for name in "ab" for i in range(20)}
    claimed = {"damaged.png", "phone.heic", "layers.psd", "drawing.svg"}
    assert set(paths) - known == claimed | {"a/plain", "a/cut", "a/bomb"}


def test_linked_folders_are_followed_once(folder):
    os.symlink(folder, folder / "b" / "loop", target_is_directory=True)
    assert len(local(folder, MIB).splits["train"]) == 40


def test_vanished_file_is_unreadable(folder):
    train = local(folder, MIB).splits["train"]
    (folder / train.key(0)).unlink()
    with pytest.raises(UnreadableImageError, match="No such file"):
        train.decode(0, 4, 3)


@pytest.mark.parametrize("as_struct", [True, False], ids=["struct", "binary"])
def test_parquet_splits_labels_and_names_are_read(tmp_path, as_struct):
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(names)}
    (tmp_path / "data").mkdir()
    shards = {"train-00000-of-00002": [0, 1], "train-00001-of-00002": [2], "validation": [3], "test": [4, 5]}
    for name, values in shards.items():
        path = tmp_path / "data" / f"{name}.parquet"
        images = [grey(value) for value in values]
        write_parquet(path, images, [v % 2 for v in values], as_struct=as_struct, metadata=metadata)
    source = local(tmp_path, MIB)
    train = source.splits["train"]
    assert source.class_names == ["cat", "dog"]
    assert {split: len(records) for split, records in source.splits.items()} == {"train": 3, "validation": 1, "test": 2}
    assert [int(train.decode(i, 4, 1)[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert train.labels.tolist() == [0, 1, 0]
    assert train.key(2) == "train-00001-of-00002.parquet row 0"


def test_files_of_one_name_are_called_by_their_paths(tmp_path):
    for name, values in (("a", [0, 1]), ("b", [2])):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "train.parquet", [grey(value) for value in values])
    train = local(tmp_path, MIB).splits["train"]
    assert [train.key(i) for i in range(3)] == [
        "a/train.parquet row 0",
        "a/train.parquet row 1",
        "b/train.parquet row 0",
    ]
    assert int(train.decode(2, 4, 1)[0, 0, 0]) == 2


def test_single_parquet_file_is_one_training_set_without_labels(tmp_path):
    write_parquet(tmp_path / "test-pictures.parquet", [grey(1), grey(2)])
    source = local(tmp_path / "test-pictures.parquet", MIB)
    assert source.splits["train"].labels.tolist() == [-1, -1]


def test_parquet_rows_without_bytes_are_unreadable_and_without_label_unlabelled(tmp_path):
    write_parquet(tmp_path / "train.parquet", [None, grey(2)], [None, 1])
    train = local(tmp_path, MIB).splits["train"]
    assert train.labels.tolist() == [-1, 1]
    with pytest.raises(UnreadableImageError, match="holds no bytes"):
        train.decode(0, 4, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test/0.png": grey(0)}, r"has the split folder\(s\) test but no images in train"),
        ({"train/0.png": grey(0), "val/0.png": grey(0), "validation/0.png": grey(0)}, "has both val and validation"),
        ({}, "holds no image or Parquet file, but no file at all"),
        ({"notes.txt": b"words"}, r"but 1 other file\(s\): notes.txt"),
        ({"train.parquet": b"PAR1 and nothing else"}, r"train.parquet is not a readable Parquet file"),
    ],
)
def test_folder_that_cannot_be_used_says_why(tmp_path, files, message):
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        local(tmp_path, MIB)


def test_parquet_without_image_column_or_training_file_says_what_there_is(tmp_path):
    for name in ("test", "validation"):
        write_parquet(tmp_path / f"{name}.parquet", [grey(1)])
    with pytest.raises(ValueError, match=r"named train\*. Got test.parquet, validation.parquet"):
        local(tmp_path, MIB)
    write_parquet(tmp_path / "train.parquet", [grey(1)], [0], column="picture")
    with pytest.raises(ValueError, match=r"must have a column 'image'.* Got the columns picture, label"):
        local(tmp_path, MIB)


def test_other_file_is_refused(tmp_path):
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"must be a folder or a .parquet file"):
        local(tmp_path / "archive.zip", MIB)


@pytest.mark.parametrize(("name", "classes", "count"), [("cifar10", 10, 50_000), ("tiny_imagenet50", 50, 24_999)])
def test_real_parquet_sets_open(name, classes, count):
    root = os.environ.get("STRAIGHTVQ_DATA")
    if root is None or not (Path(root) / name).exists():
        pytest.skip(f"needs the folder {name} in the folder that STRAIGHTVQ_DATA names")
    source = local(Path(root) / name, 1 << 30)
    assert len(source.class_names) == classes
    assert len(source.splits["train"]) == count
    assert source.splits["test"].decode(0, 32, 3).std() > 0


def test_every_format_that_is_read_has_suffixes_that_are_looked_for():
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert suffixes
    assert all(Image.MIME[Image.registered_extensions()[suffix]].startswith("image/") for suffix in suffixes)
