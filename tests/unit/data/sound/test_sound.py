"""Sound read from anywhere: what comes out, and what hostile files do."""

import contextlib
import io
import os
import pickle
import sys
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from straightvq.data import Sound, UnreadableSoundError
from straightvq.data.loader import EpochSampler
from straightvq.data.sound.decode import decode_sound
from straightvq.data.sound.vowels import vowels

fuzzed = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def encoded(samples, rate=8000, kind="WAV", **options):
    """Bytes of a file; samples (n,) or (n, channels)."""
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, dtype=np.float64), rate, format=kind, **options)
    return file.getvalue()


def ramp(count, value=0.5):
    """Clip i of a test has its own level, so that it can be told from the others."""
    return encoded(np.full(count, value))


@pytest.fixture
def folder(tmp_path):
    """Classes ``no`` and ``yes``, ten clips each, in nested folders; the level of clip i is (i + 1) / 32."""
    for i in range(20):
        place = tmp_path / "clips" / ("no" if i < 10 else "yes") / f"speaker{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02}.wav").write_bytes(encoded(np.full(100 + 10 * i, (i + 1) / 32), subtype="FLOAT"))
    return tmp_path / "clips"


def opened(source, stage=None, **options):
    data = Sound(str(source), **options)
    data.setup(stage)
    return data


def all_of(loader):
    """Every clip that a loader gives, without its padding."""
    return [clip[0, :n] for batch in loader for clip, n in zip(batch["audio"], batch["length"].tolist(), strict=True)]


# --- samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "atol"), [("WAV", 1e-4), ("FLAC", 1e-4), ("AIFF", 1e-4), ("OGG", 0.05)])
def test_formats_give_the_samples_that_were_written(kind, atol):
    samples = 0.5 * np.sin(np.arange(4000) * 0.1)
    found = decode_sound(encoded(samples, kind=kind), 8000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, samples, atol=atol)


def test_channels_are_mixed_down_to_their_mean():
    stereo = np.array([[0.5, 0.25], [-0.5, 0.0], [1.0, -1.0]])
    assert decode_sound(encoded(stereo, subtype="DOUBLE"), 8000).tolist() == [0.375, -0.25, 0.0]


@pytest.mark.parametrize("rate", [4000, 16000, 44100])
def test_other_rates_are_resampled(rate):
    def tone(rate):
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    found = decode_sound(encoded(tone(rate), rate=rate, subtype="FLOAT"), 8000)
    assert len(found) == 8000
    np.testing.assert_allclose(found[500:-500], tone(8000)[500:-500], atol=2e-3)


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_is_named_with_the_way_to_get_it(package, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ValueError, match=rf'`Sound`: sound needs the package {package}: `pip install "straightvq\[sound\]"`'
    ):
        opened(folder, sample_rate=4000)


# --- hostile files --------------------------------------------------------------------------------------------------

WAV, FLAC = encoded(0.5 * np.sin(np.arange(3000) * 0.1)), encoded(0.5 * np.sin(np.arange(3000) * 0.1), kind="FLAC")
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no sound", ""),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), ""),
    "cut wav": (WAV[: len(WAV) // 2], "it ends after 3,022 of 6,044 bytes"),
    "cut flac": (FLAC[: len(FLAC) // 2], ""),
    "header alone": (WAV[:44], "it ends after 44 of 6,044 bytes"),
    "no samples": (encoded(np.zeros(0)), "it has no samples"),
    "nan": (encoded([0.5, np.nan], subtype="FLOAT"), "it has samples that are NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_are_refused_with_a_reason(name):
    data, why = BAD[name]
    with pytest.raises(UnreadableSoundError) as caught:
        decode_sound(data, 8000)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_a_header_with_an_absurd_rate_is_refused():
    damaged = bytearray(encoded(np.zeros(1 << 16)))
    damaged[24:28] = (1).to_bytes(4, "little")
    with pytest.raises(UnreadableSoundError, match=r"65,536 samples of 1 channel\(s\) at 1 Hz, more than the limit"):
        decode_sound(bytes(damaged), 8000)


@fuzzed
@given(st.sampled_from([WAV, FLAC]), st.integers(0, 80), st.binary(max_size=80))
def test_any_bytes_are_sound_or_refused(whole, kept, rest):
    with contextlib.suppress(UnreadableSoundError):
        assert np.isfinite(decode_sound(whole[:kept] + rest, 8000)).all()


@fuzzed
@given(st.sampled_from([WAV, FLAC]), st.floats(0, 0.999), st.binary(min_size=1, max_size=8))
def test_files_with_other_bytes_in_them(whole, place, other):
    data = bytearray(whole)
    start = int(place * len(data))
    data[start : start + len(other)] = other
    with contextlib.suppress(UnreadableSoundError):
        assert np.isfinite(decode_sound(bytes(data), 8000)).all()


@pytest.mark.parametrize("memory_limit_mb", [2048, 0])
def test_bad_files_are_named_once_and_skipped(folder, memory_limit_mb):
    for name, (data, _) in BAD.items():
        (folder / "no" / f"{name}.wav").write_bytes(data)
    (folder / "no" / "later.m4a").write_bytes(b"some other format")
    (folder / "README").write_text("no clip")
    os.mkfifo(folder / "no" / "pipe.wav")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = opened(folder, val_fraction=0.0, memory_limit_mb=memory_limit_mb, batch_size=4)
        clips = all_of(data.train_dataloader())
    messages = [str(each.message) for each in caught if "`Sound`" in str(each.message)]
    assert len(messages) == 1
    expected = "skipped 10 unreadable file(s)" if memory_limit_mb else "the next readable clip takes its place"
    assert expected in messages[0]
    assert {"no/empty.wav", "no/later.m4a", "no/pipe.wav", "no/cut flac.wav"} <= set(data.unreadable)
    assert {round(float(clip[0]) * 32) for clip in clips} == set(range(1, 21))


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match=r"skipped 1 unreadable file\(s\): a.wav \(the file is empty\)"),
        pytest.raises(ValueError, match=r"`Sound`: none of the training files of .* can be read"),
    ):
        opened(tmp_path)


def test_a_bad_file_can_be_refused(folder):
    (folder / "no" / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no/a.wav cannot be read: the file is empty. Pass on_error"):
        opened(folder, on_error="raise", val_fraction=0.0)


def test_folder_without_sound_says_what_is_there(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds no sound or Parquet file, but 1 other file\(s\): a.txt"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere"}, "'nowhere' does not exist. Sources are \"vowels\""),
        ({"source": 3}, "`source` must be a string"),
        ({"sample_rate": 0}, "`sample_rate` must be an integer >= 100"),
        ({"crop": 0}, "`crop` must be an integer >= 1"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"num_train": 0}, "`num_train`"),
        ({"num_test": 0}, "`num_test`"),
        ({"val_fraction": 0.5}, "`val_fraction`"),
        ({"seed": -1}, "`seed`"),
        ({"num_workers": -1}, "`num_workers`"),
        ({"memory_limit_mb": -1}, "`memory_limit_mb`"),
        ({"on_error": "stop"}, "`on_error`"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises((ValueError, TypeError), match="`Sound`") as caught:
        Sound(**options)
    assert message in str(caught.value)


# --- sources --------------------------------------------------------------------------------------------------------


def test_nested_folders_are_classes_and_whole_clips_come_with_lengths(folder):
    data = opened(folder, val_fraction=0.25, batch_size=3)
    assert (data.class_names, data.num_classes) == (["no", "yes"], 2)
    found = {}
    for split in ("train", "validation", "test"):
        clips = data._set(split, "fit")
        for i in range(len(clips)):
            item = clips[i]
            number = round(float(item["audio"][0, 0]) * 32) - 1
            assert item["length"] == 100 + 10 * number
            assert item["label"] == int(number >= 10)
            found[number] = split
    assert len(found) == 20  # no clip is in two splits
    assert set(found.values()) == {"train", "validation", "test"}
    batch = next(iter(data.val_dataloader()))
    assert batch["audio"].shape[2] == batch["length"].max()
    for clip, length in zip(batch["audio"], batch["length"], strict=True):
        assert (clip[0, length:] == 0).all()
        assert (clip[0, :length] != 0).all()


def write_parquet(path, clips, labels=None, kind=None, column="audio"):
    kind = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [clip if isinstance(clip, dict | str) else {"bytes": clip, "path": "a.wav"} for clip in clips]
    columns = {column: pa.array(cells, kind)} | ({} if labels is None else {"label": pa.array(labels, pa.int64())})
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("memory_limit_mb", [2048, 0])
def test_parquet_files_of_the_hugging_face_layout(tmp_path, memory_limit_mb, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train-0.parquet", [ramp(50, 0.25), ramp(60, 0.5), {"bytes": None}], [3, 1, 0])
    write_parquet(tmp_path / "set" / "test-0.parquet", [ramp(70, 0.75)], [2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = opened(tmp_path / "set", val_fraction=0.0, memory_limit_mb=memory_limit_mb)
        (batch,) = data.train_dataloader()
    assert any("row 2" in str(each.message) for each in caught)
    assert {50, 60} == set(batch["length"].tolist())
    assert {3, 1} <= set(batch["label"].tolist())
    assert data.num_classes == 4
    (batch,) = data.test_dataloader()
    assert batch["audio"].shape == (1, 1, 70)
    copied = pickle.loads(pickle.dumps(data._set("test", "test")))  # as loading processes get it
    assert (copied[0]["audio"] == batch["audio"][0]).all()


def test_parquet_files_without_sound_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x"], kind=pa.string())
    with pytest.raises(TypeError, match=r"`Sound`: column 'audio' of a.parquet must be binary or struct"):
        opened(tmp_path)
    write_parquet(tmp_path / "a.parquet", [ramp(3)], column="picture")
    with pytest.raises(ValueError, match=r"`Sound`: a.parquet must have a column 'audio' with encoded sound"):
        opened(tmp_path)
    write_parquet(tmp_path / "a.parquet", [ramp(3)], labels=[-5])
    with pytest.raises(ValueError, match=r"`Sound`: the labels of split 'train' must be"):
        opened(tmp_path)


def test_hub_set_is_read_by_the_types_of_its_columns(monkeypatch):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": ramp(40, 0.25), "path": None}], kind)
    features = datasets.Features({"words": datasets.Audio(), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = pa.table({"words": cells, "label": pa.array([1])})
    rows = datasets.Dataset(datasets.table.InMemoryTable(table), datasets.DatasetInfo(features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows, test=rows))
    data = opened("someone/words", val_fraction=0.0)
    assert data.class_names == ["no", "yes"]
    (batch,) = data.test_dataloader()
    assert batch["length"].tolist() == [40]


def test_hub_set_without_sound_is_refused(monkeypatch):
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows))
    with pytest.raises(ValueError, match=r"`Sound`: 'someone/words' has no column of audios. Got the columns text"):
        opened("someone/words")


def test_vowels_depend_on_seed_and_number_alone_and_have_their_pitch():
    few, many = (vowels(count, 2, seed=3).splits["train"] for count in (2, 5))
    assert (few.decode(1, 8000, 1) == many.decode(1, 8000, 1)).all()
    assert not np.array_equal(vowels(2, 2, 4).splits["train"].decode(1, 8000, 1), few.decode(1, 8000, 1))
    clip = few.decode(0, 8000, 1)
    assert np.isfinite(clip).all()
    assert 0.2 < np.abs(clip).max() <= 0.9
    spectrum = np.abs(np.fft.rfft(clip[400:1600] * np.hanning(1200), 8000))
    assert 90 < spectrum[60:400].argmax() + 60 < 400  # the first formant and the pitch of "heed" are below 400 Hz


# --- order and pieces -----------------------------------------------------------------------------------------------


def test_training_pieces_depend_on_seed_and_epoch_alone(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(np.arange(5000) / 8192, subtype="FLOAT"))

    def starts(seed, epochs):
        loader = opened(tmp_path, val_fraction=0.0, crop=100, seed=seed).train_dataloader()
        batches = [batch for _ in range(epochs) for batch in loader]
        assert all(batch["length"].tolist() == [100] for batch in batches)
        return [round(float(batch["audio"][0, 0, 0]) * 8192) for batch in batches]

    first = starts(0, 20)
    assert first == starts(0, 20)
    assert first != starts(1, 20)
    assert len(set(first)) > 10
    assert min(first) < 1500 < 3500 < max(first) <= 4900


def test_a_loader_goes_on_in_the_middle_of_an_epoch_with_the_same_pieces(folder):
    def loader():
        return opened(folder, val_fraction=0.0, crop=50, batch_size=4).train_dataloader()

    whole = loader()
    batches = [batch for _ in range(2) for batch in whole]
    stopped = loader()
    iterator = iter(stopped)
    for _ in range(2):
        next(iterator)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    rest = [batch for _ in range(2) for batch in resumed]
    assert len(rest) == len(batches) - 2
    for mine, theirs in zip(rest, batches[2:], strict=True):
        assert mine["epoch"] == theirs["epoch"]
        assert (mine["audio"] == theirs["audio"]).all()


def test_another_sampler_is_served_too(folder):
    data = opened(folder, val_fraction=0.0)
    clips = data._set("train", "fit")
    assert len(clips.__getitems__(list(EpochSampler(clips)))["length"]) == 20
