"""A run becomes a folder that loads without it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import straightvq as svq
from straightvq.analysis import publish as room
from straightvq.cli import main
from straightvq.models import Autoencoder
from straightvq.runs import LOGS, RunFolder, read_checkpoint, write_log

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(["fit", "--config", "digits", "--config", "tiny", "--runs", str(runs), "--name", "small"]) == 0
    (runs / "small" / "pictures").mkdir()
    for name in ("reconstructions-00000002.png", "reconstructions-00000008.png", "usage-00000009.png"):
        (runs / "small" / "pictures" / name).write_text(name)
    return runs / "small"


def test_the_best_network_comes_with_its_measures_and_its_picture(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'pretrained'}\n"
    model = Autoencoder.from_pretrained(run / "pretrained")
    saved = read_checkpoint(run / "best.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][f"model.{name}"])
    page = (run / "pretrained" / "README.md").read_text()
    assert "# small\n" in page
    assert f"as a `Reconstruction`; these are the weights of step {saved['global_step']:,}." in page
    assert "Measured on the validation set:" in page
    steps, values = RunFolder(run).log("val/mse")
    value = values[steps.index(saved["global_step"])]
    assert f"| mse | {value:.4g} |" in page
    assert "![](reconstructions-00000008.png)" in page
    assert (run / "pretrained" / "reconstructions-00000008.png").read_text() == "reconstructions-00000008.png"


def test_measures_of_the_test_set_come_first(run: Path, tmp_path: Path) -> None:
    (run / LOGS / "version_9").mkdir()
    write_log(tmp_path, "test/mse", [1, 2], [0.5, 0.25])
    (tmp_path / LOGS / "version_0" / "metrics.csv").rename(run / LOGS / "version_9" / "metrics.csv")
    assert room.publish(run, out=tmp_path / "new", checkpoint="last") == str(tmp_path / "new")
    page = (tmp_path / "new" / "README.md").read_text()
    assert "Measured on the test set:\n\n| measure | value |\n| --- | --- |\n| mse | 0.25 |\n\n" in page
    assert "validation" not in page


def test_the_hub_gets_what_the_folder_has(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr(room, "push", lambda *args, **options: pushed.append((args, options)) or "https://there")
    assert room.publish(run, out=tmp_path / "new", push_to="me/small") == "https://there"
    ((model, name), options) = pushed[0]
    assert (type(model), name, options["notes"].name) == (Autoencoder, "me/small", "me/small")
    assert 'svq.from_pretrained("me/small")' in (tmp_path / "new" / "README.md").read_text()
    assert isinstance(svq.from_pretrained(tmp_path / "new"), Autoencoder)


def test_what_is_no_run_is_a_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(tmp_path / "nowhere")]) == 2
    assert "straightvq: `publish`: there is no folder" in capsys.readouterr().err
    assert main(["publish", str(run), "--checkpoint", "worst"]) == 2
    assert "has no checkpoint 'worst'" in capsys.readouterr().err
