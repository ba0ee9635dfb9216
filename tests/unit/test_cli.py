"""The command `straightvq`: what it says of mistakes, when it is stopped, and when the disk refuses."""

import errno
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tests.full_disk import fills_up

from straightvq import commands
from straightvq.cli import main
from straightvq.errors import InvalidValueError
from straightvq.training.command_line import quiet


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes a command end with this error."""

    def fails(args: list[str]) -> None:
        raise error

    monkeypatch.setattr(commands, "recipes", fails)


def test_ctrl_c_says_that_it_stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "straightvq: stopped\n"


REFUSED = InvalidValueError("`A`: `b` must be 1. Got 2.")
IN_A_SLOT = ValueError("in a slot")
IN_A_SLOT.__cause__ = REFUSED
INSTALL = '`pip install "straightvq[train]"` brings what this command needs.'
FULL = (errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(*FULL), "cannot read or write: No space left on device."),
        (OSError(*FULL, "a.png"), "cannot use 'a.png': No space left on device."),
        (REFUSED, "`A`: `b` must be 1. Got 2."),
        (IN_A_SLOT, "`A`: `b` must be 1. Got 2."),
        (ModuleNotFoundError("No module named 'x'"), f"No module named 'x'. {INSTALL}"),
    ],
)
def test_mistakes_and_errors_of_the_disk_are_a_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, error)
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == f"straightvq: {sentence}\n"
    assert main(["recipes", "--verbose_errors"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("`A` looks like ours"), RuntimeError("a fault"), OSError("a word")])
def test_a_fault_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["recipes"])


def test_a_reader_that_went_away_is_no_error_of_the_disk() -> None:
    code = "import sys; from straightvq.cli import main; sys.exit(main(['recipes']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_an_option_that_a_command_does_not_have_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "many"]) == 2
    assert capsys.readouterr().err == (
        "straightvq: argument --steps: invalid int value: 'many'. `straightvq demo --help` lists the options.\n"
    )


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


def test_a_warning_is_one_line_without_its_place_and_said_once() -> None:
    before = warnings.formatwarning
    with quiet():
        shown = [warnings.formatwarning(text, UserWarning, "a.py", 1) for text in ("new", "new")]
    assert shown == ["warning: new\n", ""]
    assert warnings.formatwarning is before
