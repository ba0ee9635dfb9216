"""The recipe of the codec for sound through the real command line."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from straightvq.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")

QUANTIZER = "--model.init_args.model.init_args.quantizer.init_args"


def run(command: str, *options: Any, runs: Path, overlays: tuple[str, ...] = ()) -> int:
    configs = [word for name in ("speech", *overlays, "tiny_speech") for word in ("--config", name)]
    return main([command, *configs, "--runs", str(runs), "--name", "run", *map(str, options)])


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_codec_is_trained_taken_up_again_measured_and_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", runs=tmp_path) == 0
    folder = tmp_path / "run"
    log = rows(folder / "metrics" / "version_0" / "metrics.csv")
    measured = {"mel", "l1", "si_sdr", "bits_per_second", "entropy_bits_per_second", "perplexity_0", "codes_used_3"}
    assert {f"val/{name}" for name in measured} <= set(log[0])
    assert {"train/reconstruction", "train/commitment"} <= set(log[0])
    assert {path.name for path in (folder / "curves").iterdir()} >= {"step-00000004.csv", "step-00000008.png"}

    assert run("fit", "--ckpt_path", "last", "--trainer.max_steps", 10, runs=tmp_path) == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 10
    capsys.readouterr()

    assert run("test", "--ckpt_path", "best", runs=tmp_path) == 0
    said = capsys.readouterr().out
    assert "test/bits_per_second 1200" in said
    curve = rows(folder / "rate_distortion.csv")
    assert [float(row["bits_per_second"]) for row in curve] == [300, 600, 900, 1200]
    whole = dict(part.rsplit(" ", 1) for part in said.strip().splitlines()[-1].split(": ", 1)[1].split(", "))
    for name in ("mel", "l1", "si_sdr"):  # all levels of the curve are the codec itself
        assert float(curve[-1][name]) == pytest.approx(float(whole[f"test/{name}"]), rel=1e-3)
    assert (folder / "rate_distortion.png").stat().st_size > 1000

    assert run("predict", "--ckpt_path", "best", runs=tmp_path) == 0
    made = {path.name for path in (folder / "predictions").iterdir()}
    assert {"00000.wav", "00003.wav", "00000-original.wav", "00000-1.wav", "00000-4.wav", "00000.png"} <= made
    assert "00001.png" not in made  # of the first clip alone
    predicted = load_file(folder / "predictions.safetensors")
    assert predicted["indices"].shape == (predicted["frames"].sum(), 4)
    samples, rate = soundfile.read(folder / "predictions" / "00000-original.wav")
    assert rate == 8000
    assert -(-len(samples) // 80) == predicted["frames"][0]
    assert np.abs(samples).max() > 0.1


def test_going_on_is_exact(tmp_path: Path) -> None:
    options = ["--checkpoint.every_n_train_steps", 3, "--checkpoint.save_top_k", -1]
    options += ["--checkpoint.monitor", "null", "--checkpoint.filename", "{step}"]
    assert run("fit", *options, runs=tmp_path) == 0
    whole = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert run("fit", *options, "--ckpt_path", tmp_path / "run" / "step=3.ckpt", runs=tmp_path) == 0
    resumed = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(("overlay", "kind"), [("soundstream", "EMAUpdate"), ("dac", "GradientUpdate")])
def test_another_quantizer_is_laid_over(overlay: str, kind: str, tmp_path: Path) -> None:
    assert run("fit", f"{QUANTIZER}.num_quantizers", 2, runs=tmp_path, overlays=(overlay,)) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    quantizer = config["model"]["init_args"]["model"]["init_args"]["quantizer"]
    assert quantizer["class_path"] == f"straightvq.presets.{overlay}"
    assert quantizer["init_args"]["dropout"] == 0.5


def test_data_of_another_rate_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--data.sample_rate", 16000, runs=tmp_path) == 2
    assert "`sample_rate` must be that of the data, 16000. Got 8000." in capsys.readouterr().err


def test_a_codec_with_one_code_per_frame_has_no_curve(tmp_path: Path) -> None:
    given = {"class_path": "straightvq.presets.straight", "init_args": {"dim": 8, "codebook_size": 8, "channel_dim": 1}}
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({"model": {"init_args": {"model": {"init_args": {"quantizer": given}}}}}))
    command = ["--config", "speech", "--config", "tiny_speech", "--config", str(file), "--runs", str(tmp_path)]
    assert main(["fit", *command, "--name", "run"]) == 0
    assert not (tmp_path / "run" / "curves").exists()
    assert main(["predict", *command, "--name", "run", "--ckpt_path", "best"]) == 0
    assert load_file(tmp_path / "run" / "predictions.safetensors")["indices"].ndim == 1
