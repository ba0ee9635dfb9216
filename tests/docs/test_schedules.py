"""The recipe on the page about schedules trains as the page says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.docs.test_pages import FENCE, ROOT

from straightvq.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")


def test_recipe_of_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe,) = [m[2] for m in FENCE.finditer((ROOT / "docs" / "schedules.md").read_text()) if m[1] == "yaml"]
    overlay = tmp_path / "schedule.yaml"
    overlay.write_text(recipe)
    built: list[Any] = []
    monkeypatch.setattr("straightvq.training.Schedule.teardown", lambda self, trainer, task, stage: built.append(task))
    options = ["--trainer.max_steps", "10", "--trainer.val_check_interval", "5", "--runs", str(tmp_path / "runs")]
    words = [word for name in ("digits", "tiny", str(overlay)) for word in ("--config", name)]
    assert main(["fit", *words, *options, "--name", "run"]) == 0
    quantizer = built[0].model.quantizer
    assert (quantizer.losses[0].coefficient, quantizer.codebook.update.fraction) == (0.25, 0.1)
    state = torch.load(tmp_path / "runs" / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["model.quantizer.clock.step"] == 10 - 4
