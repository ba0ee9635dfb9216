"""Vectors to IDs: the task, the callback and its files, in a Trainer and on the command line."""

import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import straightvq as svq
from straightvq.cli import main
from straightvq.data import Vectors
from straightvq.diagnostics.semantic_ids import unique_rate
from straightvq.models import MLPAutoencoder
from straightvq.training import OptimizerSettings, SemanticIds, VectorReconstruction
from straightvq.training.semantic_ids import make_ids

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Ninety items in thirty near triples."""
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(30, 6)), 3, axis=0)
    file = tmp_path / "items.npy"
    np.save(file, centres + 1e-3 * generator.normal(size=centres.shape))
    return file


def quantizer(**kwargs: Any) -> svq.ResidualQuantizer:
    torch.manual_seed(0)
    return svq.presets.straight_residual(6, 8, num_quantizers=2, **kwargs)


def trainer(steps: int, **kwargs: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **kwargs,
    )  # fmt: skip


def test_steps_of_a_quantizer_alone_are_its_forwards(items: Path) -> None:
    data = Vectors(str(items), batch_size=45)
    task = VectorReconstruction(MLPAutoencoder(quantizer()))
    trainer(6).fit(task, datamodule=data)
    own = quantizer()
    batches = Vectors(str(items), batch_size=45)
    batches.setup()
    loader = batches.train_dataloader()
    for _ in range(3):
        for batch in loader:
            own(batches.on_after_batch_transfer(batch, 0)["vector"])
    for a, b in zip(task.model.quantizer.levels, own.levels, strict=True):
        assert torch.equal(a.codes(), b.codes())


@pytest.mark.parametrize("make", [svq.presets.soundstream, svq.presets.rq_vae, svq.presets.dac])
@pytest.mark.parametrize("hidden", [[], [5]])
def test_every_residual_preset_trains(make: Any, hidden: list[int], items: Path) -> None:
    kwargs = {"codebook_dim": 4} if make is svq.presets.dac else {}
    task = VectorReconstruction(MLPAutoencoder(make(6, 8, num_quantizers=2, **kwargs), hidden=hidden))
    before = {name: value.clone() for name, value in task.state_dict().items() if value.is_floating_point()}
    trainer(3).fit(task, datamodule=Vectors(str(items), batch_size=30))
    assert any(not torch.equal(task.state_dict()[name], value) for name, value in before.items())
    _, ids, report = make_ids(task.model, Vectors(str(items)))
    assert unique_rate(ids) == 1
    assert len(report.relative_error) == 2


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_loss_is_the_error_and_the_quantizers_own() -> None:
    model = MLPAutoencoder(quantizer(), hidden=[5])
    task = VectorReconstruction(model, loss_weight=3.0)
    x = torch.randn(40, 6)
    model(x)
    model.eval()
    out = model(x)
    expected = 3 * (out.reconstruction - x).square().mean() + out.quantizer.loss
    assert task.training_step({"vector": x}, 0).item() == pytest.approx(expected.item())


def test_codes_and_errors_are_those_of_the_model(items: Path) -> None:
    data = Vectors(str(items), batch_size=90)
    task = VectorReconstruction(MLPAutoencoder(quantizer()))
    trainer(5).fit(task, datamodule=data)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    codes, ids, report = make_ids(task.model, data)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    x = data.vectors
    z = data.standard.apply(x)
    assert torch.equal(codes, task.model.quantizer.encode(z))
    assert torch.equal(ids[:, :2], codes)
    for level in (1, 2):
        back = data.standard.undo(task.model.quantizer.decode(codes[:, :level]))
        error = (back - x).square().sum() / (x - x.mean(0)).square().sum()
        assert report.relative_error[level - 1] == pytest.approx(error.item(), rel=1e-5)
    assert report.unique[1] == 1


@pytest.mark.parametrize("unique", ["number", "sinkhorn", "assign"])
def test_ids_are_made_unique_in_every_way(unique: Any, items: Path) -> None:
    data = Vectors(str(items), batch_size=90)
    task = VectorReconstruction(MLPAutoencoder(svq.presets.straight_residual(6, 20, num_quantizers=2)))
    trainer(5).fit(task, datamodule=data)
    codes, ids, report = make_ids(task.model, data, unique)
    assert report.unique[0] < 1
    assert report.unique[1] == unique_rate(ids) == 1
    assert torch.equal(ids[:, 0], codes[:, 0])
    assert ids.shape[1] == report.id_length == (2 if unique == "assign" else ids.shape[1])


def test_a_single_codebook_gives_ids_of_one_code(items: Path) -> None:
    model = MLPAutoencoder(svq.presets.ema(6, 8))
    data = Vectors(str(items), batch_size=90)
    trainer(3).fit(VectorReconstruction(model), datamodule=data)
    codes, ids, report = make_ids(model, data)
    assert (codes.shape, ids.shape, report.codebook_sizes) == ((90, 1), (90, 2), [8])


def test_refinement_comes_in_the_last_step_and_lowers_the_error(items: Path) -> None:
    errors, steps = {}, []
    for rounds in (0, 3):
        data = Vectors(str(items), batch_size=90)
        task = VectorReconstruction(MLPAutoencoder(quantizer(beam=3)))
        callback = SemanticIds(refine=rounds)
        trainer(8, callbacks=[callback, Steps(task, steps)]).fit(task, datamodule=data)
        errors[rounds] = make_ids(task.model, data)[2].relative_error[-1]
    assert errors[3] < 0.97 * errors[0]
    # Until the last step both are the same.
    half = len(steps) // 2
    assert [torch.equal(a, b) for a, b in zip(steps[:half], steps[half:], strict=True)] == [True] * 7 + [False]


class Steps(lightning.Callback):
    """Remembers the first level's codes after every step."""

    def __init__(self, task: VectorReconstruction, seen: list[torch.Tensor]) -> None:
        self.task, self.seen = task, seen

    def on_train_batch_end(self, *args: Any) -> None:
        self.seen.append(self.task.model.quantizer.levels[0].codes())


TINY = ["--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--trainer.enable_progress_bar", "false"]
TINY += ["--model.model.quantizer.codebook_size", "8", "--model.model.quantizer.num_quantizers", "3"]
TINY += ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]


def command(word: str, runs: Path, *options: str) -> int:
    return main([word, "--config", "semantic_ids", *TINY, "--runs", str(runs), *options])


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    content = json.loads((folder / "semantic_ids.json").read_text())
    return content["summary"], content["items"]


def test_the_recipe_writes_the_ids_of_all_items_and_predicts_the_same(tmp_path: Path) -> None:
    assert command("fit", tmp_path) == 0
    folder = tmp_path / "semantic_ids"
    table = pq.read_table(folder / "semantic_ids.parquet")
    assert table.column_names == ["item", "codes", "id"]
    summary, rows = read(folder)
    assert table.to_pylist() == rows
    assert [row["item"] for row in rows] == list(range(1797))
    assert len({tuple(row["id"]) for row in rows}) == 1797
    assert summary["unique"][1] == 1
    assert {len(row["codes"]) for row in rows} == {3}
    assert (folder / "semantic_ids.png").stat().st_size > 10_000
    for file in folder.glob("semantic_ids.*"):
        file.unlink()
    assert command("predict", tmp_path, "--ckpt_path", "last") == 0
    assert read(folder) == (summary, rows)


@pytest.mark.parametrize("name", ["semantic_ids_ema", "semantic_ids_network"])
def test_the_baselines_train(name: str, tmp_path: Path) -> None:
    assert main(["fit", "--config", name, *TINY, "--runs", str(tmp_path)]) == 0
    summary, rows = read(tmp_path / name)
    assert (len(rows), summary["unique"][1]) == (1797, 1)


def test_own_items_of_any_width_need_one_option(tmp_path: Path) -> None:
    file = tmp_path / "mine.npy"
    np.save(file, np.random.default_rng(0).normal(size=(120, 40)) * 3 + 1)
    assert command("fit", tmp_path / "runs", "--data.source", str(file)) == 0
    summary, rows = read(tmp_path / "runs" / "semantic_ids")
    assert len(rows) == summary["num_items"] == 120


def test_other_items_get_the_scale_of_the_training(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    first, second = tmp_path / "first.npy", tmp_path / "second.npy"
    array = generator.normal(size=(120, 40)) * 3 + 1
    np.save(first, array)
    np.save(second, array[:50])
    assert command("fit", tmp_path, "--data.source", str(first)) == 0
    rows = read(tmp_path / "semantic_ids")[1]
    assert command("predict", tmp_path, "--data.source", str(second), "--ckpt_path", "last") == 0
    assert [row["codes"] for row in read(tmp_path / "semantic_ids")[1]] == [row["codes"] for row in rows[:50]]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_ids_are_made_in_other_precisions_too(precision: str, tmp_path: Path) -> None:
    options = ["--model.model.hidden", "[8]", "--trainer.precision", precision]
    assert command("fit", tmp_path, *options) == 0
    assert read(tmp_path / "semantic_ids")[0]["unique"][1] == 1


def test_several_processes_need_a_gradient(items: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning.Trainer, "world_size", property(lambda self: 2))
    task = VectorReconstruction(MLPAutoencoder(quantizer()))
    with pytest.raises(ValueError, match="several processes need something that is trained by gradient"):
        trainer(1).fit(task, datamodule=Vectors(str(items)))


def test_going_on_within_an_epoch_is_exact(tmp_path: Path) -> None:
    """Three batches make an epoch; the checkpoint of step 4 is one batch into the second."""
    options = ["--data.batch_size", "700", "--keep_every", "4", "--trainer.callbacks.refine", "2"]
    assert command("fit", tmp_path, *options) == 0
    folder = tmp_path / "semantic_ids"
    whole, rows = torch.load(folder / "last.ckpt", weights_only=True), read(folder)
    half = folder / "checkpoints" / "step-00000004.ckpt"
    assert command("fit", tmp_path, *options, "--ckpt_path", str(half)) == 0
    resumed = torch.load(folder / "last.ckpt", weights_only=True)
    assert whole["global_step"] == resumed["global_step"] == 6
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(value, whole["state_dict"][name]) for name, value in resumed["state_dict"].items())
    assert read(folder) == rows


def test_without_a_logger_nothing_is_written(items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    task = VectorReconstruction(MLPAutoencoder(quantizer()))
    trainer(1, callbacks=[SemanticIds()]).fit(task, datamodule=Vectors(str(items)))
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.source", "nowhere.parquet"], "`source` 'nowhere.parquet' does not exist"),
        (["--data.components", "null"], "`x` must have the shape (*batch, 32). Got (1797, 64)"),
        (["--trainer.callbacks.unique", "no"], "unique"),
        (["--model.model.quantizer", "straightvq.presets.nothing"], "straightvq.presets"),
    ],
)
def test_mistakes_are_explained(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fit", tmp_path, *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_refinement_in_several_processes_is_refused(items: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(1, callbacks=[SemanticIds(refine=1)])
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    with pytest.raises(ValueError, match=r"needs one process: pass --trainer\.devices 1\. Got 2"):
        made.fit(VectorReconstruction(MLPAutoencoder(quantizer())), datamodule=Vectors(str(items)))


def test_what_makes_no_ids_is_refused(items: Path) -> None:
    task = VectorReconstruction(MLPAutoencoder(svq.presets.ema(6, 8)))
    with pytest.raises(ValueError, match="`refine` needs a ResidualQuantizer"):
        trainer(1, callbacks=[SemanticIds(refine=1)]).fit(task, datamodule=Vectors(str(items)))
    other = Vectors(str(items))
    other.setup()
    with pytest.raises(TypeError, match="the data must be Vectors"):
        trainer(1, callbacks=[SemanticIds()]).fit(task, other.train_dataloader())
    word: Any = "no"
    with pytest.raises(ValueError, match="`unique` must be one of"):
        SemanticIds(unique=word)
    network: Any = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="`model` must be an instance of MLPAutoencoder"):
        VectorReconstruction(network, optimizer=OptimizerSettings())
