"""Whole comparisons of a few steps through the real command line: ranked, stopped and taken up, with mistakes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.small_study import Counter

from straightvq.cli import main
from straightvq.studies import compare_quantizers, engine
from straightvq.studies.results import Run

THREE = ("--presets", "straight", "vq_vae", "fsq")
CPU = ("--size", "tiny", "--accelerator", "cpu", "--out", "out")
TIMES = ["seconds", "test/layer_ms"]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    return lambda *options: main(["compare", *CPU, *options])


@pytest.fixture
def refuses(compare: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    counter = Counter(monkeypatch)

    def call(*options: str) -> str:
        assert compare(*options) == 2
        assert counter.titles == []
        return capsys.readouterr().err

    return call


def results(folder: str = "out") -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "results.csv").drop(columns=TIMES)


def test_three_quantizers_on_moving_data(compare: Callable[..., int]) -> None:
    assert compare(*THREE) == 0
    rows = results()
    assert len(rows) == 3 * (2 + 1)
    assert not rows.error.notna().any()
    finals = rows[rows.kind == "final"].set_index("row")
    # Without a network the task's error is the layer's: 3 squared is the variance of the last step.
    ratios = finals["test/mse"] / finals["test/distortion"]
    assert ratios.tolist() == pytest.approx([9] * 3, rel=0.05)
    page = Path("out/report.md").read_text()
    command = "straightvq compare --size tiny --accelerator cpu --presets straight vq_vae fsq"
    assert f"`{command}`. 3 of 3 runs are finished" in page
    assert page.index("| 1 | ") < page.index("| 2 | ") < page.index("| 3 | ")
    ranking = pd.read_csv("out/ranking.csv")
    assert ranking.distortion.is_monotonic_increasing
    assert Path("out/ranking.png").is_file()


@pytest.mark.slow
def test_three_quantizers_and_none_on_digits(compare: Callable[..., int]) -> None:
    options = (*THREE, "--data", "digits", "--grid", "lr=3e-3", "--reset", "with", "--init", "kmeans")
    assert compare(*options) == 0
    rows = results().set_index("row")
    assert sorted(rows.index) == ["fsq", "straight", "unquantized", "vq_vae"]
    assert set(rows.kind) == {"final"}, "one setting needs no tuning"
    assert rows.loc["unquantized"][["test/distortion", "test/usage", "test/gradient_gap"]].isna().all()
    assert rows.drop(index="unquantized")[["test/distortion", "test/psnr", "test/gradient_gap"]].notna().all(axis=None)
    ranking = pd.read_csv("out/ranking.csv").set_index("quantizer")
    assert ranking.reset[["straight", "vq_vae"]].all()
    assert ranking.reset[["fsq", "unquantized"]].isna().all()
    page = Path("out/report.md").read_text()
    assert "behind no quantizer, dB" in page
    assert "Start of the codes: k-means for all. Reset of dead codes: the same for all." in page


@pytest.mark.slow
def test_stopped_it_goes_on_and_repeats_nothing(
    compare: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--presets", "ema", "vq_vae", "--grid", "lr=1e-2", "--seeds", "1")
    with monkeypatch.context() as patch:
        Counter(patch, KeyboardInterrupt(), at=1)
        assert compare(*options) == 130
    assert "stopped; 1 finished runs are in out. The same command goes on" in capsys.readouterr().err
    counter = Counter(monkeypatch)
    assert compare(*options) == 0
    assert counter.titles == ["moving no network vq_vae seed 0"]
    assert main(["compare", *CPU, *options, "--steps", "12"]) == 2
    assert "2 result(s) in 'out' are of other settings" in capsys.readouterr().err


def test_a_run_that_crashes_becomes_a_row_and_the_others_go_on(
    compare: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.train

    def train(run: Run, *args: Any, **kwargs: Any) -> Any:
        if run.cell.row == "ema":
            raise RuntimeError("out of memory\nand more")
        return real(run, *args, **kwargs)

    monkeypatch.setattr(engine, "train", train)
    options = ("--presets", "ema", "vq_vae", "--grid", "lr=1e-2")
    assert compare(*options) == 0
    page = Path("out/report.md").read_text()
    assert "| – | ema | – | – | 1 of 1 seeds failed: RuntimeError: out of memory |" in page
    assert "| 1 | vq_vae |" in page
    monkeypatch.setattr(engine, "train", real)
    assert compare(*options, "--rerun") == 0
    assert "failed" not in Path("out/report.md").read_text()


def test_a_full_disk_is_no_row(compare: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    Counter(monkeypatch, OSError(28, "No space left on device"), at=0)
    assert compare("--presets", "ema", "--grid", "lr=1e-2") == 2
    assert "`compare`: cannot write the results: [Errno 28]" in capsys.readouterr().err


def test_own_quantizers_and_own_pictures(compare: Callable[..., int], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for number in range(60):
        pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{number}.png")
    Path("mine.yaml").write_text(
        "quantizers:\n"
        "  slow EMA: {class_path: straightvq.presets.ema, init_args: {decay: 0.999}}\n"
        "data: mine\n"
        "pixels: 16\n"
        "grid: {lr: [1.0e-3]}\n"
        "steps: 4\n"
    )
    assert compare("--config", "mine.yaml") == 0
    assert Path("out/runs/mine/autoencoder/slow-EMA/seed0/config.yaml").is_file()
    assert "One quantizer on mine" in Path("out/report.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "there must be something to compare"),
        (("--presets", "emma"), "the preset 'emma' is not there. Did you mean 'ema'?"),
        (("--presets", "ema", "--data", "nowhere"), "`source` 'nowhere' does not exist"),
        (("--presets", "ema", "--size", "huge"), "`size` must be one of tiny, small. Got 'huge'"),
        (("--presets", "ema", "--pixels", "32"), "`pixels` is the side of images, and 'moving' has none. Got 32"),
        (("--presets", "ema", "--data", "digits", "--pixels", "30"), "`pixels` must be a multiple of 4"),
        (("--presets", "ema", "--grid", "lr"), "`--grid` must be AXIS=VALUE,VALUE"),
        (("--presets", "ema", "--workers", "0"), "`workers` must be an integer >= 1"),
        (("--presets", "ema", "--codebook-size", "x"), "invalid int value: 'x'. `straightvq compare --help` lists"),
        (
            ("--config", "unequal.yaml"),
            "all quantizers must have as many bits per vector, within half a bit. 'ema' has",
        ),
        (("--config", "broken.yaml"), "Option 'decai' is not accepted"),
    ],
)
def test_mistakes_are_a_sentence_before_anything_is_trained(options: tuple[str, ...], words: str, refuses: Any) -> None:
    large = "{class_path: straightvq.presets.ema, init_args: {codebook_size: 64}}"
    Path("unequal.yaml").write_text(f"presets: [ema]\nquantizers: {{large: {large}}}\n")
    misspelt = "{class_path: straightvq.presets.ema, init_args: {decai: 0.9}}"
    Path("broken.yaml").write_text(f"quantizers: {{mine: {misspelt}}}\n")
    assert words in refuses(*options)
    assert not Path("out").exists()


def test_an_unreadable_picture_is_found_before_anything_is_trained(refuses: Any) -> None:
    Path("mine").mkdir()
    for number in range(20):
        Path("mine", f"{number}.png").write_bytes(b"no picture")
    assert "cannot be read" in refuses("--presets", "ema", "--data", "mine")


def test_pictures_of_one_colour_cannot_be_compared_on(refuses: Any) -> None:
    Path("mine").mkdir()
    for number in range(40):
        Image.new("RGB", (32, 32), "red").save(Path("mine", f"{number}.png"))
    assert "validation images that are not all of one colour" in refuses("--presets", "ema", "--data", "mine")


def test_a_dry_run_lists_and_writes_nothing(compare: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--presets", "ema", "--dry-run") == 0
    assert "moving no network ema tuning: lr 0.01: due" in capsys.readouterr().out
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_results(compare: Callable[..., int], tmp_path: Path) -> None:
    options = ("--presets", "vq_vae", "--grid", "lr=1e-2", "--steps", "600")
    assert compare(*options) == 0
    undisturbed = results()
    command = [sys.executable, "-m", "straightvq", "compare", *CPU[:-1], "killed", *options]
    # The same number of threads as here, since sums over several round differently.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=one_thread)
    last = tmp_path / "killed/runs/moving/no-network/vq_vae/seed0/last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 600
    compare_quantizers(
        presets=["vq_vae"],
        grid={"lr": [1e-2]},
        steps=600,
        size="tiny",
        accelerator="cpu",
        out=Path("killed"),
        keep=True,
    )
    pd.testing.assert_frame_equal(results("killed"), undisturbed)
    assert len(list(last.parent.glob("metrics/version_*"))) == 2, "it started again instead of going on"
