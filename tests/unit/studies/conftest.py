from pathlib import Path
from typing import Any

import pytest
from tests.small_study import Command, CommandUponOthers

from straightvq.studies import engine
from straightvq.studies.results import Result, Run


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(capsys)


@pytest.fixture
def built_upon(study: Command) -> Command:
    return CommandUponOthers(study.capsys)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that would be trained, in place of their training."""
    runs: list[Run] = []

    def train(run: Run, place: Path, *args: Any, **kwargs: Any) -> Result:
        runs.append(run)
        place.mkdir(parents=True, exist_ok=True)
        (place / "last.ckpt").touch()
        return Result.of(run, 1.0, {"test/accuracy": 0.5, "val/accuracy": 0.5})

    monkeypatch.setattr(engine, "train", train)
    monkeypatch.setattr(engine, "Check", lambda: lambda run, place: None)
    monkeypatch.setattr("straightvq.studies.report.page.draw", lambda plan: None)
    return runs
