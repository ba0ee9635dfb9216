"""The study of estimators of signs as one command: what it writes, how it goes on, and what it refuses."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import straightvq as svq
from straightvq.cli import main
from straightvq.studies import load_study
from straightvq.studies.binary import experiments, run_binary, training
from straightvq.studies.binary.estimators import CLIPPED, METHODS, TANH, rectified
from straightvq.studies.binary.settings import Settings
from straightvq.studies.binary.watching import INSTABILITY

TINY = load_study("binary").sizes["tiny"]
SETTINGS = Settings.of(TINY.config, 1)


def series(values: list[list[Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, _, value in values:
        found.setdefault(name, []).append(value)
    return found


def test_a_network_s_row_has_every_epoch_and_the_test_set_once() -> None:
    found = series(training.train_classifier(SETTINGS.classifiers["digits"], "digits", rectified(3), 0))
    assert {name: len(values) for name, values in found.items()} == {
        training.WEIGHTS: 2,
        training.ACTIVATIONS: 2,
        INSTABILITY: 2,
        training.VALIDATION: 2,
        training.SETTING: 2,
        training.ACCURACY: 1,
    }
    # Two epochs of two steps: the last step of each has done 1/4 and 3/4 of the training.
    assert found[training.SETTING] == pytest.approx([svq.reste_power(0.25), svq.reste_power(0.75)])


def test_a_tokenizer_s_row_has_both_indicators_and_its_end() -> None:
    for quantizer in training.QUANTIZERS:
        found = series(training.train_tokenizer(SETTINGS.tokenizer, quantizer, TANH, 0))
        assert {training.ERROR, INSTABILITY, training.MSE, training.USED} <= set(found)
        assert len(found[training.MSE]) == 1
        assert 0 < found[training.USED][0] <= 1


@pytest.mark.parametrize("train", ["network", "tokenizer"])
def test_a_training_depends_on_its_seed_alone(train: str) -> None:
    def run(seed: int) -> list[list[Any]]:
        if train == "network":
            return training.train_classifier(SETTINGS.classifiers["digits"], "digits", CLIPPED, seed)
        return training.train_tokenizer(SETTINGS.tokenizer, "LFQ", CLIPPED, seed)

    first = run(0)
    torch.rand(7)
    assert run(0) == first
    assert run(1) != first


def test_quantizers_have_the_same_number_of_codes() -> None:
    sizes = {make(8, 6, svq.ReSTE()).codebook_size for make in training.QUANTIZERS.values()}
    assert sizes == {64}


def test_every_part_has_a_file_of_its_own() -> None:
    plan = experiments.plan(Settings.of(TINY.config, 2), {"digits": None})
    assert len({part.file for part in plan}) == len(plan)
    networks = [part for part in plan if part.experiment == "digits"]
    assert len(networks) == 2 * len(METHODS)


def test_formulas_are_those_of_the_library() -> None:
    (part,) = [part for part in experiments.plan(SETTINGS, {}) if part.title.startswith("formula: o = 3")]
    found = {name: value for name, _, value in part.run()}
    assert found["error"] == pytest.approx(0.144, abs=6e-4)
    assert found["variance of the factor, authors"] == pytest.approx(2.16, abs=0.01)
    # Continuous: 1.547 within 0.1 (a share of .1585), the power beyond; by numerical integration.
    assert found["variance of the factor, continuous"] == pytest.approx(0.175, abs=1e-3)


@pytest.mark.slow
def test_study_is_one_command_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "binary", "--size", "tiny"]) == 0
    folder = Path("studies/binary-tiny")
    report, values = (folder / "report.md").read_text(), pd.read_csv(folder / "results.csv")
    assert "`straightvq reproduce binary --size tiny`" in report
    assert str(tmp_path) not in report
    assert "o_end = 3" in report
    for name in (
        "networks-ends",
        "networks-digits",
        "networks-trade-off",
        "tokenizers-ends",
        "tokenizers-BSQ",
        "formula",
    ):
        assert f"({name}.png)" in report
        assert (folder / f"{name}.png").is_file()
    assert values["value"].notna().all()
    capsys.readouterr()
    next((folder / "runs").glob("digits-*")).unlink()
    assert main(["reproduce", "binary", "--size", "tiny"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # the part and the report
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), values)


def test_a_stopped_study_reports_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "train_tokenizer", stop)
    with pytest.raises(KeyboardInterrupt, match="finished runs are in"):
        run_binary(tmp_path, "Title", "About.", TINY, {"digits": None})
    assert "## The formula" in (tmp_path / "report.md").read_text()


def test_options_that_mean_nothing_here_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in (["--seeds", "3"], ["--keep"], ["--rows", "none"], ["--dry-run"]):
        assert main(["reproduce", "binary", *option]) == 2
        assert "takes no option but --size, --data, --sets and --out" in capsys.readouterr().err
    assert main(["reproduce", "binary", "--size", "tiny", "--sets", "cifar10"]) == 2
    assert "pass --data" in capsys.readouterr().err
    (tmp_path / "sets" / "cifar10").mkdir(parents=True)
    assert main(["reproduce", "binary", "--size", "tiny", "--sets", "cifar10", "--data", "sets"]) == 2
    assert "says nothing of the set 'cifar10'. It has digits." in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


def test_without_data_the_digits_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    monkeypatch.setattr(experiments, "plan", lambda settings, sources: seen.append(sources) or [])
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "binary", "--size", "small"]) == 0
    assert seen == [{"digits": None}]
    assert "embedded digits stand in for fashion_mnist" in capsys.readouterr().out
