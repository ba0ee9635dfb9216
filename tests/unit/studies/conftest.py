from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.small_study import STUDY

from straightvq.cli import main
from straightvq.studies import engine
from straightvq.studies.results import Result
from straightvq.studies.run import Run


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the study in its own folder: ``study("--rows", "VQ", size="s", content=STUDY)``."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, size: str = "s", content: dict[str, Any] = STUDY) -> int:
        Path("mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return main(["reproduce", "mine.yaml", "--size", size, "--out", "out", *options])

    return run


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
    monkeypatch.setattr("straightvq.studies.engine.draw", lambda plan: None)
    return runs
