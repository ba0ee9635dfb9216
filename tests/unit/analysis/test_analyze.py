"""`straightvq analyze` on tiny runs: what it writes, that its numbers are true, and its messages."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from straightvq.analysis.analyze import FILES, MAX_CHECKPOINTS, analyze, select_checkpoints
from straightvq.analysis.probe import Probe, resume_for_a_step
from straightvq.analysis.quantities import QUANTITIES, concerns
from straightvq.cli import main
from straightvq.diagnostics import functional, usage, usage_counts
from straightvq.runs import Checkpoint, RunFolder, load_weights

# A few steps of a tiny network may well use few codes.
pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")


Said = Callable[..., str]


def fit(runs: Path, name: str, *options: Any, overlays: tuple[str, ...] = ()) -> Path:
    configs = [word for recipe in ("digits", *overlays, "tiny") for word in ("--config", recipe)]
    assert main(["fit", *configs, "--runs", str(runs), "--name", name, *map(str, options)]) == 0
    return runs / name


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps, all of them kept."""
    return fit(tmp_path_factory.mktemp("runs"), "kept", "--keep_every", 1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a codebook that is trained by gradient, of which only the end was kept."""
    return fit(tmp_path_factory.mktemp("runs"), "plain", overlays=("plain_vq",))


@pytest.fixture(scope="module")
def result(kept: Path) -> dict[str, Any]:
    before = digests(kept)
    assert main(["analyze", str(kept), "--num-images", "13", "--device", "cpu"]) == 0
    after = digests(kept)
    assert {name: after[name] for name in before} == before  # the run is only read
    return json.loads((kept / "analysis" / "analysis.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*") if f.is_file()}


def silent() -> Console:
    return Console(quiet=True)


class TestWholeRun:
    def test_writes_all_files(self, kept: Path, result: dict[str, Any]) -> None:
        assert sorted(f.name for f in (kept / "analysis").iterdir()) == sorted(FILES)
        for name in FILES[2:]:
            with Image.open(kept / "analysis" / name) as picture:
                assert picture.width >= 800
                picture.load()

    def test_measures_every_checkpoint_in_order(self, result: dict[str, Any]) -> None:
        assert [c["step"] for c in result["checkpoints"]] == list(range(1, 9))
        assert "last" in result["checkpoints"][-1]["names"]
        assert sum("best" in c["names"] for c in result["checkpoints"]) == 1
        assert result["settings"] == {"images": 13, "vectors": 13 * 16, "seed": 0, "device": "cpu"}
        assert result["quantizer"] == {
            **{"name": "VectorQuantizer", "codebook_size": 16, "codebook_dim": 4},
            "has_codebook": True,
        }
        for values in (checkpoint["values"] for checkpoint in result["checkpoints"]):
            assert 0 < values["usage"] <= 1
            assert 1 <= values["perplexity"] <= 16
            assert -1 <= values["gradient_cosine"] <= 1
            assert values["wasserstein_full"] >= values["mean_distance"] >= 0
            assert values["update_delay"] == pytest.approx(values["delay_after"] - values["delay_aimed"], abs=1e-6)
            # All of the table but these: alternated updates take no gradient, and the codes are no signs.
            assert {q.name for q in QUANTITIES} - values.keys() == {"gradient_sparsity", *OF_SIGNS}

    def test_numbers_are_those_of_a_pass_over_the_test_images(self, kept: Path, result: dict[str, Any]) -> None:
        folder = RunFolder(kept)
        task, data = folder.build()
        load_weights(task, folder.checkpoints[2])
        data.setup("test")
        images = torch.cat([data.on_after_batch_transfer(b, 0)["image"] for b in data.test_dataloader()])[:13]
        with torch.no_grad():
            out = task.eval()(images).quantizer
        values = result["checkpoints"][2]["values"]
        assert values["usage"] == pytest.approx(float(usage(usage_counts(out.indices, 16))))

    def test_the_further_step_is_the_next_one_of_the_run(self, kept: Path) -> None:
        folder = RunFolder(kept)
        for first, second in ((2, 3), (3, 4)):  # an epoch ends after step 7, a validation after 4
            task, data = folder.build()
            start, end = folder.checkpoints[first - 1], folder.checkpoints[second - 1]
            load_weights(task, start)
            resume_for_a_step(task, data, start, {})
            expected = torch.load(end.path, weights_only=True)["state_dict"]
            state = task.state_dict()
            assert all(torch.equal(state[name], expected[name]) for name in expected)

    def test_is_deterministic(self, kept: Path, result: dict[str, Any], tmp_path: Path) -> None:
        again = analyze(kept, out=tmp_path / "again", num_images=13, device="cpu", console=silent())
        assert again["checkpoints"] == result["checkpoints"]
        # The same pixels; a PNG file also names the program that wrote it.
        with Image.open(kept / "analysis" / "tsne.png") as a, Image.open(tmp_path / "again" / "tsne.png") as b:
            assert a.tobytes() == b.tobytes()

    def test_report_has_the_numbers_and_their_meaning(self, kept: Path, result: dict[str, Any]) -> None:
        report = (kept / "analysis" / "report.md").read_text()
        assert report.startswith("# Analysis of kept\n")
        for label in ("usage", "Wasserstein, full", "gradient gap", "update delay"):
            assert f"\n| {label} | " in report
        assert "(last)" in report or ", last)" in report
        assert str(kept) not in report


OF_SIGNS = {"estimating_error", "gradient_instability"}
RESIDUAL = {"class_path": "straightvq.presets.straight_residual", "init_args": {"num_quantizers": 2}}
FSQ = {"class_path": "straightvq.presets.fsq", "init_args": {"dim": 4, "levels": [4, 3], "channel_dim": 1}}
LARGE = {"class_path": "straightvq.presets.lfq", "init_args": {"dim": 4, "bits": 40, "channel_dim": 1}}


def fit_other(folder: Path, quantizer: dict[str, Any], *options: Any) -> Path:
    """A run of the tiny recipe with another quantizer, which may take the sizes of the recipe or bring its own."""
    (folder / "other.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"model": {"init_args": {"quantizer": quantizer}}}}})
    )
    before, after = ("tiny", "other") if "dim" in quantizer["init_args"] else ("other", "tiny")
    configs = [str(folder / "other.yaml") if name == "other" else name for name in ("digits", before, after)]
    words = [word for config in configs for word in ("--config", config)]
    assert main(["fit", *words, "--runs", str(folder), "--name", "run", *map(str, options)]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysed run with two levels."""
    run = fit_other(tmp_path_factory.mktemp("residual"), RESIDUAL, "--keep_every", 4)
    assert main(["analyze", str(run), "--num-images", "13", "--device", "cpu"]) == 0
    return run


class TestParts:
    def test_every_level_has_its_numbers_at_every_checkpoint(self, residual: Path) -> None:
        result = json.loads((residual / "analysis" / "analysis.json").read_text())
        parts = result["quantizer"].pop("parts")
        assert result["quantizer"] == {"name": "ResidualQuantizer", "num_quantizers": 2}
        assert result["settings"]["vectors"] == 13 * 16
        for part in parts.values():
            assert (part["name"], part["codebook_size"], part["codebook_dim"]) == ("VectorQuantizer", 16, 4)
        for checkpoint in result["checkpoints"]:
            whole, of_parts = checkpoint["values"], checkpoint["parts"]
            assert list(of_parts) == list(parts) == ["level 0", "level 1"]
            for values in of_parts.values():
                assert {q.name for q in QUANTITIES} - values.keys() == {"gradient_sparsity", *OF_SIGNS}
            # The last level's gap is the whole one's; the errors multiply, but for what the means of residuals add.
            assert of_parts["level 1"]["gradient_gap"] == pytest.approx(whole["gradient_gap"])
            assert whole["error"] <= of_parts["level 0"]["error"]
            assert whole.keys() >= {"error", "effective_dimension", "gradient_gap", "gradient_cosine", "learning_rate"}
            assert "usage" not in whole

    def test_numbers_of_a_level_are_those_of_a_pass_over_the_test_images(self, residual: Path) -> None:
        result = json.loads((residual / "analysis" / "analysis.json").read_text())
        folder = RunFolder(residual)
        task, data = folder.build()
        load_weights(task, folder.checkpoints[-1])
        data.setup("test")
        images = torch.cat([data.on_after_batch_transfer(b, 0)["image"] for b in data.test_dataloader()])[:13]
        with torch.no_grad():
            indices = task.eval()(images).quantizer.indices
        for number, values in enumerate(result["checkpoints"][-1]["parts"].values()):
            assert values["usage"] == pytest.approx(float(usage(usage_counts(indices[..., number], 16))))

    def test_report_and_pictures_show_the_levels(self, residual: Path) -> None:
        report = (residual / "analysis" / "report.md").read_text()
        assert "ResidualQuantizer: 2 codes for each vector. " in report
        assert "\n## Parts, at the end\n" in report
        for level in ("level 0", "level 1"):
            assert f"\n| {level} | VectorQuantizer: 16 codes of 4 channels | " in report
        assert sorted(f.name for f in (residual / "analysis").iterdir()) == sorted(FILES)

    def test_it_is_compared_with_other_runs(self, residual: Path, plain: Path, tmp_path: Path) -> None:
        assert main(["analyze", str(residual), str(plain), "--num-images", "4", "--out", str(tmp_path / "both")]) == 0
        assert "/run | " in (tmp_path / "both" / "comparison.md").read_text()


@pytest.mark.parametrize("quantizer", [FSQ, LARGE], ids=["fsq", "2^40 codes"])
def test_a_quantizer_without_a_codebook_has_the_numbers_that_need_none(
    quantizer: dict[str, Any], tmp_path: Path
) -> None:
    run = fit_other(tmp_path, quantizer)
    values = analyze(run, num_images=4, device="cpu", console=silent())["checkpoints"][-1]["values"]
    of_counts = {"usage", "perplexity"} if quantizer is FSQ else set()
    needed = {"error", "effective_dimension", "gradient_gap", "gradient_cosine", "learning_rate"}
    of_signs = OF_SIGNS if quantizer is LARGE else set()
    assert {q.name for q in QUANTITIES} & values.keys() == needed | of_counts | of_signs
    assert all(values[name] > 0 for name in of_signs)
    report = (run / "analysis" / "report.md").read_text()
    assert "Quantizer has no codebook: there are no distances to one, and no codes that a step moves." in report
    assert sorted(f.name for f in (run / "analysis").iterdir()) == sorted(FILES)


def test_the_instability_is_that_of_the_gradients_of_all_weights_in_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit_other(tmp_path, LARGE)
    measured: list[tuple[list[Any], float]] = []

    def watched(gradients: Any) -> Any:
        found = torch.cat([gradient.flatten().abs() for gradient in gradients]).var(correction=0)
        measured.append(([gradient.shape for gradient in gradients], float(found)))
        return original(gradients)

    original = functional.gradient_instability
    monkeypatch.setattr(functional, "gradient_instability", watched)
    result = analyze(run, num_images=4, device="cpu", console=silent())
    values = [checkpoint["values"]["gradient_instability"] for checkpoint in result["checkpoints"]]
    assert values == pytest.approx([variance for _, variance in measured])
    weights = sorted(weight.shape for weight in RunFolder(run).build_task().parameters())
    assert all(sorted(shapes) == weights for shapes, _ in measured)


class TestOtherRuns:
    def test_a_codebook_trained_by_gradient_has_a_sparsity(self, plain: Path, capsys: Any) -> None:
        result = analyze(plain, num_images=8, device="cpu")
        assert "--keep_every 1" in result["hint"]
        assert "--keep_every 1" in " ".join(capsys.readouterr().out.split())
        for checkpoint in result["checkpoints"]:
            assert 0 < checkpoint["values"]["gradient_sparsity"] <= 1
        assert result["cures"]

    def test_alternated_phases_are_stepped_too(self, tmp_path: Path) -> None:
        run = fit(tmp_path, "two", "--model.alternate.phase", "codebook", overlays=("plain_vq",))
        values = analyze(run, num_images=8, device="cpu", console=silent())["checkpoints"][-1]["values"]
        assert 0 < values["gradient_sparsity"] <= 1

    def test_results_go_where_they_are_asked_for(self, plain: Path, tmp_path: Path) -> None:
        arguments = ["--out", str(tmp_path / "deep" / "there"), "--num-images", "4", "--seed", "3"]
        assert main(["analyze", str(plain), *arguments]) == 0
        assert sorted(f.name for f in (tmp_path / "deep" / "there").iterdir()) == sorted(FILES)


def test_without_a_network_there_is_no_gradient_to_miss(tmp_path: Path) -> None:
    words = ["fit", "--config", "semantic_ids", "--model.model.quantizer.codebook_size", "8", "--runs", str(tmp_path)]
    assert main([*words, "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]) == 0
    run = tmp_path / "semantic_ids"
    assert main(["analyze", str(run)]) == 0
    result = json.loads((run / "analysis" / "analysis.json").read_text())
    assert "quantization error" in (run / "analysis" / "report.md").read_text()
    assert "gradient gap inf" not in (run / "analysis" / "report.md").read_text()
    assert "gradient_gap" not in json.dumps(result["checkpoints"])


def test_of_many_checkpoints_an_even_selection_is_taken() -> None:
    many = [Checkpoint(Path(f"{i}.ckpt"), ("best",) if i == 33 else (f"step-{i}",), i) for i in range(100)]
    taken = [c.step for c in select_checkpoints(many)]
    assert len(taken) in (MAX_CHECKPOINTS, MAX_CHECKPOINTS + 1)
    assert {0, 33, 99} <= set(taken)
    assert taken == sorted(taken)
    assert select_checkpoints(many[:5]) == many[:5]


GOOD = {
    **{"usage": 0.95, "perplexity": 300.0, "error": 0.1, "mean_distance": 0.1, "wasserstein": 0.2},
    **{"wasserstein_full": 0.3, "gradient_gap": 0.5, "gradient_cosine": 0.8, "gradient_sparsity": 0.9},
    **{"codes_moved": 1.0, "update_delay": 0.0, "codebook_gain": 0.01, "learning_rate": 1e-3},
}


class TestReport:
    def test_a_healthy_codebook_gives_no_concern(self) -> None:
        assert concerns(GOOD, 512) == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("usage", 0.05), ("perplexity", 9.0), ("error", 1.0), ("mean_distance", 3.0), ("wasserstein", 3.0)],
            *[("wasserstein_full", 3.0), ("gradient_gap", 1.5), ("gradient_cosine", -0.2), ("codes_moved", 0.01)],
            ("update_delay", 0.05),
        ],
    )
    def test_each_bad_number_names_a_page_that_exists(self, name: str, value: float) -> None:
        ((found, cure),) = concerns({**GOOD, name: value}, 512)
        assert found.name == name
        pages = [word.strip(":,.();") for word in cure.split() if word.startswith("docs/")]
        assert pages
        assert all((Path(__file__).parents[3] / page).is_file() for page in pages)


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("analysis", "checkpoints")))


def model_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["model"]["init_args"]["model"]["init_args"]


def other_codebook(config: dict[str, Any]) -> None:
    init_args = {"dim": 4, "codebook_size": 16, "channel_dim": 1}
    model_of(config)["quantizer"] |= {"class_path": "straightvq.presets.vq_ste_pp", "init_args": init_args}


def no_quantizer(config: dict[str, Any]) -> None:
    config["model"] = {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What the command says when it refuses its arguments."""

    def run(*arguments: Any) -> str:
        assert main(["analyze", *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("straightvq: ")
        assert "Traceback" not in message
        return message

    return run


class TestMistakes:
    def test_not_a_run(self, tmp_path: Path, said: Said) -> None:
        assert "`analyze`: there is no folder" in said(tmp_path / "nowhere")
        assert "is not a run's folder: it has no config.yaml" in said(tmp_path)
        (tmp_path / "config.yaml").write_text("a: [1")
        assert "is not readable as YAML" in said(tmp_path)
        (tmp_path / "config.yaml").write_text("seed_everything: 0\n")
        assert "configures no model and data" in said(tmp_path)

    def test_a_network_without_its_quantizer(self, tmp_path: Path, said: Said) -> None:
        run = fit(tmp_path, "unquantized", "--model.quantize", "false")
        assert "was trained with `quantize: false`" in said(run)

    def test_damaged_or_no_checkpoints(self, plain: Path, tmp_path: Path, said: Said) -> None:
        run = copy_of(plain, tmp_path)
        whole = (run / "last.ckpt").read_bytes()
        for content in (b"", b"nonsense", whole[: len(whole) // 2]):
            (run / "last.ckpt").write_bytes(content)
            assert "last.ckpt' cannot be read as a checkpoint" in said(run)
        torch.save({"global_step": 1, "state_dict": {}, "code": Path("x")}, run / "last.ckpt")
        assert "cannot be read as a checkpoint" in said(run)  # objects are not loaded
        torch.save({"weights": torch.ones(1)}, run / "last.ckpt")
        assert "is not a checkpoint of a training run" in said(run)
        for file in run.glob("*.ckpt"):
            file.unlink()
        assert "has no checkpoint" in said(run)

    @pytest.mark.parametrize(
        ("change", "messages"),
        [
            (
                lambda config: model_of(config).update(hidden=12),
                ["of another network, or another version", "instead of"],
            ),
            (other_codebook, ["of another network, or another version", "it lacks model.quantizer"]),
            (no_quantizer, ["BoringModel must have exactly one quantizer, which may be a composite. Got none."]),
            (lambda config: model_of(config).update(hiden=12), ["Option 'hiden' is not accepted", "'hidden'?"]),
        ],
    )
    def test_another_network(self, change: Any, messages: list[str], plain: Path, tmp_path: Path, said: Said) -> None:
        run = copy_of(plain, tmp_path)
        config = yaml.safe_load((run / "config.yaml").read_text())
        change(config)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        told = said(run)
        assert all(message in told for message in messages), told
        assert not (run / "analysis").exists()

    def test_a_place_for_the_results_that_is_none_is_found_before_anything_is_measured(
        self, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
    ) -> None:
        (tmp_path / "taken").write_text("mine")
        monkeypatch.setattr(Probe, "measure", lambda *_: pytest.fail("it measured"))
        told = said(plain, "--out", tmp_path / "taken")
        assert told == f"straightvq: cannot use '{tmp_path / 'taken'}': File exists.\n"

    def test_a_full_disk_leaves_the_numbers_of_before(
        self, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
    ) -> None:
        options = (plain, "--num-images", "4", "--out", tmp_path)
        (tmp_path / "analysis.json").write_text("before")

        def full(self: Path, text: str, **_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        refused = f"cannot use '{tmp_path / 'analysis.json'}': No space left on device."
        assert said(*options) == f"straightvq: {refused}\n"
        assert (tmp_path / "analysis.json").read_text() == "before"

    def test_impossible_options(self, plain: Path, said: Said) -> None:
        assert "`num_images` must be an integer >= 1. Got 0." in said(plain, "--num-images", 0)
        assert "`seed` must be an integer >= 0. Got -1." in said(plain, "--seed", -1)
        assert "`device` must be one of auto, cpu" in said(plain, "--device", "tpu")
