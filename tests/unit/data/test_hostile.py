"""Files that nobody should be hurt by: random, cut, mislabelled, endless, or with a program in them."""

import contextlib
import os
import shutil
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from straightvq.data import Images
from straightvq.data.decode import FORMATS, UnreadableImageError, decode_image
from straightvq.data.files import local

from .conftest import encoded, grey, noise_jpeg, write_parquet

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA")
WHOLE = {kind: encoded((10, 200, 30), size=(9, 7), kind=kind) for kind in KINDS} | {"noise": noise_jpeg(16)}
fuzzed = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def decode_or_refuse(data):
    """All that may happen: a picture of the right shape, or a refusal."""
    with contextlib.suppress(UnreadableImageError):
        pixels = decode_image(data, 4, 3)
        assert pixels.shape == (3, 4, 4)
        assert pixels.dtype == np.uint8


@fuzzed
@given(st.sampled_from(["", *sorted(WHOLE)]), st.binary(max_size=200))
def test_random_bytes_alone_and_behind_a_true_beginning(kind, data):
    decode_or_refuse(WHOLE.get(kind, b"")[:12] + data)


@fuzzed
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1))
def test_cut_files(kind, share):
    decode_or_refuse(WHOLE[kind][: int(share * len(WHOLE[kind]))])


@fuzzed
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 0.999), st.binary(min_size=1, max_size=8))
def test_files_with_other_bytes_in_them(kind, place, other):
    data = bytearray(WHOLE[kind])
    start = int(place * len(data))
    data[start : start + len(other)] = other
    decode_or_refuse(bytes(data))


@pytest.fixture(scope="module")
def whole_parquet(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "whole.parquet"
    write_parquet(path, [grey(value) for value in range(12)], [value % 3 for value in range(12)])
    return path.read_bytes()


@fuzzed
@example(0.46875, b"\x80", False)  # the name of a column is no text any more
@given(st.floats(0, 0.999), st.binary(max_size=6), st.booleans())
def test_parquet_files_that_are_cut_or_changed(whole_parquet, tmp_path_factory, place, other, is_cut):
    start = int(place * len(whole_parquet))
    rest = b"" if is_cut else whole_parquet[start + len(other) :]
    folder = tmp_path_factory.mktemp("changed")
    (folder / "train.parquet").write_bytes(whole_parquet[:start] + other + rest)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`Images`: ")
        try:
            data = Images(source=str(folder), size=4, batch_size=4, val_fraction=0.0)
            data.setup("fit")
            said = f"`Images`: {len(list(data.train_dataloader()))} batches"
        except (ValueError, TypeError) as error:
            said = str(error)
    assert said.startswith("`Images`: ")
    shutil.rmtree(folder)


# --- a folder of many faults ------------------------------------------------------------------------------------------


def postscript():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(touched) (w) file closefile\nshowpage\n"


@pytest.fixture
def hostile(tmp_path):
    """Twenty sound pictures among all kinds of others."""
    for i in range(20):
        (tmp_path / f"{i:02}.png").write_bytes(grey(i * 10))
    (tmp_path / "cut.jpg").write_bytes(noise_jpeg()[:-500])
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.png").write_text("these are words")
    (tmp_path / "program.jpg").write_bytes(b"\x7fELF" + os.urandom(64))
    (tmp_path / "postscript.png").write_bytes(postscript())
    (tmp_path / "mislabelled.jpg").write_bytes(grey(7))  # a PNG: the content counts
    (tmp_path / "drawing.eps").write_bytes(postscript())
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "program").write_bytes(b"\x7fELF" + os.urandom(64))
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


UNREADABLE = {"cut.jpg", "empty.png", "words.png", "program.jpg", "postscript.png"}


@pytest.mark.parametrize("memory_limit_mb", [2048, 0], ids=["decoded once", "decoded as read"])
def test_an_epoch_over_a_hostile_folder_ends(hostile, memory_limit_mb):
    data = Images(source=str(hostile), size=4, batch_size=4, val_fraction=0.0, memory_limit_mb=memory_limit_mb)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
        served = sum(len(batch["label"]) for batch in data.train_dataloader())
    assert served == (21 if memory_limit_mb else 21 + len(UNREADABLE))
    named = set(data.unreadable) | set(getattr(data._set("train", "fit"), "unreadable", {}))
    assert named == UNREADABLE
    expected = "skipped 5 unreadable file(s)" if memory_limit_mb else "the next readable picture takes its place"
    assert any(expected in str(warning.message) for warning in caught)


def test_loading_processes_outlive_a_hostile_folder(hostile):
    data = Images(source=str(hostile), size=4, batch_size=4, val_fraction=0.0, memory_limit_mb=0, num_workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also in the loading process, which is forked from here
        data.setup("fit")
        assert sum(len(batch["label"]) for batch in data.train_dataloader()) == 21 + len(UNREADABLE)


def test_no_format_that_starts_a_program_is_tried(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("started Ghostscript"))
    assert "EPS" not in FORMATS
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(postscript(), 4, 3)


def test_a_pipe_and_a_giant_are_not_read(tmp_path):
    """Opening a pipe would wait for ever."""
    (tmp_path / "00.png").write_bytes(grey(1))
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "giant.png").open("wb") as file:
        file.truncate(2 << 30)  # a hole: takes no room
    train = local(tmp_path, 1 << 20).splits["train"]
    assert [train.key(i) for i in range(3)] == ["00.png", "giant.png", "pipe.png"]
    assert train.decode(0, 4, 3).max() == 1
    for i, reason in ((1, "more than the limit"), (2, "not a plain file")):
        with pytest.raises(UnreadableImageError, match=reason):
            train.decode(i, 4, 3)


def test_pillow_without_a_format_still_reads_the_others(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "JPEG")
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(noise_jpeg(), 4, 3)
    assert decode_image(grey(3), 4, 1).max() == 3


# --- tables that disagree with themselves -----------------------------------------------------------------------------


@pytest.mark.parametrize("label", [-2, 5])
def test_labels_outside_of_the_class_names_are_refused_before_the_epoch(tmp_path, label):
    names = '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    write_parquet(tmp_path / "train.parquet", [grey(1)] * 3, [0, 1, label], metadata={"huggingface": names})
    with pytest.raises(ValueError, match=rf"labels of split 'train' must be \[0, 2\).*Got .*{label}"):
        Images(source=str(tmp_path), size=4).setup("fit")


def test_files_of_one_split_with_other_columns_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [grey(1)], [0])
    write_parquet(tmp_path / "train-1.parquet", [grey(1)])
    expected = r"same columns. train-0.parquet has 'image' and 'label', train-1.parquet has 'image'"
    with pytest.raises(ValueError, match=expected):
        local(tmp_path, 1 << 20)


def test_a_damaged_page_is_named_whether_read_or_mapped(tmp_path):
    write_parquet(tmp_path / "train.parquet", [noise_jpeg(32)] * 8, list(range(8)))
    data = bytearray((tmp_path / "train.parquet").read_bytes())
    data[4:600] = bytes(596)  # the footer is sound
    (tmp_path / "train.parquet").write_bytes(data)
    for limit in (1 << 20, 0):
        with pytest.raises(ValueError, match="holds a damaged Parquet file"):
            local(tmp_path, limit)


def test_a_table_without_rows_says_so(tmp_path):
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="none of the training files"):
        Images(source=str(tmp_path), size=4).setup("fit")


def test_labels_too_large_for_an_index_are_refused(tmp_path):
    column = pa.array([2**63 + 1], pa.uint64())
    pq.write_table(pa.table({"image": pa.array([grey(1)]), "label": column}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"`Images`: "):
        local(tmp_path, 1 << 20)
