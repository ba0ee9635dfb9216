"""Folders and files that are either whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from straightvq import io as files
from straightvq.io import remove_unfinished, replacing, results_folder, write_text


def write_in_part(folder: Path) -> None:
    (folder / "half").touch()
    raise ValueError("broken")


def test_a_folder_for_results_is_there_within_the_block_and_stays_if_it_is_used(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    with results_folder(place):
        assert list(place.iterdir()) == []
    assert place.is_dir()
    with pytest.raises(ValueError, match="broken"), results_folder(tmp_path / "c"):
        write_in_part(tmp_path / "c")
    assert (tmp_path / "c" / "half").exists()
    with pytest.raises(ValueError, match="broken"), results_folder(tmp_path / "new" / "deep"):
        raise ValueError("broken")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "c"]


def test_a_place_that_cannot_be_written_to_is_found_before_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**options: object) -> None:
        raise PermissionError(13, "Permission denied", "something temporary")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    with pytest.raises(PermissionError) as error, results_folder(tmp_path / "new"):
        pytest.fail("it went on")
    assert error.value.filename == str(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def written_in_part(path: Path, error: Exception, cause: Exception | None = None) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text("half")
        if cause is None:
            raise error
        try:
            raise cause
        except OSError:
            raise error  # noqa: B904 (as `torch.save` does it)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [(FULL,), (RuntimeError("of its archive"), FULL)], ids=["the disk's", "a writer's"])
def test_a_file_that_the_disk_refuses_is_named_and_stays_as_it_was(
    error: tuple[Exception, ...], tmp_path: Path
) -> None:
    write_text(tmp_path / "a.txt", "before")
    with pytest.raises(OSError, match="No space left") as refused:
        written_in_part(tmp_path / "a.txt", *error)
    assert refused.value.filename == str(tmp_path / "a.txt")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "before")]


@pytest.mark.parametrize("error", [RuntimeError("a fault"), FileNotFoundError(errno.ENOENT, "none", "elsewhere")])
def test_errors_that_are_not_of_the_file_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised:
        written_in_part(tmp_path / "a.txt", error)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (told.append("flushed"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append("renamed"), rename(a, b)))
    write_text(tmp_path / "a.txt", "whole")
    assert told == ["flushed", "renamed"]


def test_only_what_writers_of_this_file_left_is_removed(tmp_path: Path) -> None:
    for name in (".a[1].txt.0.tmp", ".a1.txt.0.tmp", "a[1].txt"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "a[1].txt")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a1.txt.0.tmp", "a[1].txt"]
