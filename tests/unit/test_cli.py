"""The command `straightvq`: what it says when it is stopped, and when the disk refuses."""

import errno
from pathlib import Path

import pytest
from tests.full_disk import fills_up

from straightvq import cli
from straightvq.cli import main


def test_ctrl_c_says_that_it_stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(args: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_recipes", stopped)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "straightvq: stopped\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot read or write: No space left on device."),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "cannot use 'a.png': No space left on device."),
    ],
)
def test_every_error_of_the_disk_is_a_sentence(error: OSError, sentence: str) -> None:
    with pytest.raises(cli.UsageError) as told, cli._explained():
        raise error
    assert str(told.value) == sentence
    with pytest.raises(OSError, match="No space left"), cli._explained(is_verbose=True):
        raise error


def test_a_reader_that_went_away_is_no_error_of_the_disk() -> None:
    with pytest.raises(BrokenPipeError), cli._explained():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_training_on_a_full_disk_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fills_up(monkeypatch, after=0)
    options = ["--runs", str(tmp_path), "--name", "mine", "--checkpoint.save_top_k", "0"]
    assert main(["fit", "--config", "digits", "--config", "tiny", *options]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"straightvq: cannot use '{tmp_path}/mine/last.ckpt': No space left on device.\n")
    assert "Traceback" not in said
    assert not [file.name for file in (tmp_path / "mine").iterdir() if "ckpt" in file.name]
