"""Folders and files that are either whole or not there."""

from pathlib import Path

import pytest

from straightvq import io as files
from straightvq.io import results_folder


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


def test_a_folder_that_was_there_outlives_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), results_folder(tmp_path / "new" / "deep"):
        raise ValueError("broken")
    assert not (tmp_path / "new").exists()
    assert tmp_path.exists()


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
