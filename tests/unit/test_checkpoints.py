"""Checkpoints are whole files, and hold whole steps."""

import csv
import tempfile
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from straightvq.checkpoints import LastCheckpoint, StepCheckpoint, WholeFiles, find_sound
from straightvq.data.loader import EpochSampler, train_loader
from straightvq.runs import MetricsLog


def test_what_is_written_takes_its_place_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "last.ckpt"
    # A rename is atomic within one file system; the folder for temporary files may be on another.
    monkeypatch.setattr(tempfile, "mkstemp", lambda *_, **__: pytest.fail("wrote elsewhere"))
    target.parent.mkdir()
    (target.parent / ".last.ckpt.0123.tmp").write_text("half")  # what a killed writer left
    WholeFiles().save_checkpoint({"step": torch.tensor(1)}, target)

    def breaks_off(content: Any, file: Any) -> None:
        file.write(b"half")
        assert torch.load(target, weights_only=True)["step"] == 1  # the old one is still there
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", breaks_off)
    with pytest.raises(OSError, match="No space left"):
        WholeFiles().save_checkpoint({"step": torch.tensor(2)}, target)
    assert torch.load(target, weights_only=True)["step"] == 1
    assert list(target.parent.iterdir()) == [target]


class Numbers(Dataset[Any]):
    """1 to 12, in batches as the library's sets make them."""

    def __len__(self) -> int:
        return 12

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"x": torch.tensor(rows) + 1.0}


class Counting(lightning.LightningModule):
    """Adds up its inputs; validates; logs the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.log("train/sum", self.weight.detach(), batch_size=1)
        return -(self.weight * batch["x"].mean())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/sum", self.weight.detach(), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def counted(folder: Path, *callbacks: Any, steps: int = 6, ckpt: Path | None = None, **options: Any) -> Counting:
    log = MetricsLog(folder, name="metrics")
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=log, callbacks=list(callbacks), log_every_n_steps=1,
        val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    task = Counting()
    loader = train_loader(Numbers(), 1, EpochSampler(Numbers()))
    trainer.fit(task, loader, DataLoader(torch.ones(1)), ckpt_path=ckpt)
    return task


def last(folder: Path, every: int = 100) -> LastCheckpoint:
    return LastCheckpoint(folder / "last.ckpt", every)


def rows(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.glob("metrics/version_0/metrics.csv")
    table = csv.DictReader(file.read_text().splitlines())
    return [{name: value for name, value in row.items() if value} for row in table]


class Watched(LastCheckpoint):
    """Remembers what was in the log when a checkpoint was written."""

    def save(self, trainer: lightning.Trainer) -> None:
        super().save(trainer)
        found = rows(self.path.parent)
        steps = {name: [int(row["step"]) for row in found if name in row] for name in ("train/sum", "val/sum")}
        seen.append((trainer.global_step, steps["train/sum"], steps["val/sum"]))


seen: list[tuple[int, list[int], list[int]]] = []


def test_the_log_has_all_of_a_step_before_its_checkpoint_is_written(tmp_path: Path) -> None:
    seen.clear()
    counted(tmp_path, Watched(tmp_path / "last.ckpt", 2))
    assert seen[:2] == [(2, [0, 1], []), (4, [0, 1, 2, 3], [3])]  # the loggers count steps from 0
    assert [int(row["step"]) for row in rows(tmp_path) if "train/sum" in row] == list(range(6))  # none twice


def test_every_step_is_logged_once_when_resumed_at_a_validation(tmp_path: Path) -> None:
    counted(tmp_path / "whole", last(tmp_path / "whole"))
    first = last(tmp_path / "a", 4)
    counted(tmp_path / "a", first, steps=4)
    assert torch.load(first.path, weights_only=True)["global_step"] == 4
    counted(tmp_path / "b", last(tmp_path / "b"), ckpt=first.path)
    assert [*rows(tmp_path / "a"), *rows(tmp_path / "b")] == rows(tmp_path / "whole")


class BreaksOff(lightning.Callback):
    """Ends the training in the middle of its first validation."""

    def on_validation_batch_start(self, *_: Any) -> None:
        raise RuntimeError("pulled the plug")


def test_a_validation_that_was_cut_is_repeated(tmp_path: Path) -> None:
    counted(tmp_path / "whole", last(tmp_path / "whole"))
    first = last(tmp_path / "a", 2)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        counted(tmp_path / "a", first, BreaksOff())
    counted(tmp_path / "b", last(tmp_path / "b"), ckpt=first.path)
    validated, expected = ([row for row in rows(tmp_path / run) if "val/sum" in row] for run in ("b", "whole"))
    assert validated == expected


def test_nothing_is_saved_between_the_micro_batches_of_a_step(tmp_path: Path) -> None:
    """Their gradients are in no checkpoint, so going on from there would lose some."""
    options = {"accumulate_grad_batches": 3}
    whole = counted(tmp_path / "whole", last(tmp_path / "whole", 1), **options)
    first = last(tmp_path / "a", 1)
    counted(tmp_path / "a", first, steps=2, **options)
    later = StepCheckpoint(tmp_path / "b" / "step-{step}.ckpt", 1)
    resumed = counted(tmp_path / "b", later, ckpt=first.path, **options)
    assert torch.equal(resumed.weight, whole.weight)
    assert sorted(file.name for file in (tmp_path / "b").glob("*.ckpt")) == [f"step-{n:08d}.ckpt" for n in range(3, 7)]


def test_the_newest_sound_checkpoint_is_found(tmp_path: Path) -> None:
    for name, step in (("last", 5), ("best", 2), ("checkpoints/step-00000004", 4)):
        WholeFiles().save_checkpoint({"state_dict": {}, "global_step": step}, tmp_path / f"{name}.ckpt")
    (tmp_path / "broken.ckpt").write_text("words")
    found = find_sound(tmp_path, other_than=tmp_path / "last.ckpt")
    assert found is not None
    assert (found.names, found.step) == (("step-00000004",), 4)
    assert find_sound(tmp_path / "nowhere", other_than=tmp_path / "last.ckpt") is None
