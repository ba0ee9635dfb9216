"""`StopOnNonFinite`: the training stops before anything that is not finite is stepped on or saved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from tests.trainings import changed
from torch import Tensor, nn
from torch.utils.data import DataLoader

import straightvq as svq
from straightvq.training import LastCheckpoint, NonFiniteError, StopOnNonFinite, finite

NAN, INF = float("nan"), float("inf")
DIM = 4


class Spoilt(torch.autograd.Function):
    """The identity, with a gradient of NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * NAN


class Task(lightning.LightningModule):
    """Linear, quantizer, linear; something goes wrong in step ``at``."""

    def __init__(self, fault: str = "", at: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.at = fault, at
        self.encoder, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.quantizer = svq.presets.straight(DIM, 8)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        fault = self.fault if self.global_step + 1 == self.at else ""
        z = self.encoder(batch)
        out = self.quantizer(z * NAN if fault == "embedding" else z)
        quantized = Spoilt.apply(out.quantized) if fault == "gradient" else out.quantized
        error = (self.head(quantized) - batch).square().mean()
        if fault == "loss":
            error = error * INF
        if fault == "codebook":
            self.quantizer.codebook.raw.data[3, 1] = INF
        self.log_dict({"train/error": error, "train/commitment": out.terms["commitment"]})
        return error + out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(task: Task, folder: Path, *callbacks: Any, **options: Any) -> lightning.Trainer:
    last = LastCheckpoint(folder / "last.ckpt", 2)
    trainer = lightning.Trainer(
        max_steps=8, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, last], default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(task, DataLoader(torch.randn(64, DIM, generator=torch.Generator().manual_seed(0)), batch_size=8))
    return trainer


def weights(file: Path) -> dict[str, Tensor]:
    content = torch.load(file, weights_only=True)
    return content["global_step"], content["state_dict"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("loss", r"the loss of step 4 is inf \(train/error inf\)"),
        ("gradient", r"the gradient of step 4 is not finite, of encoder.weight, encoder.bias"),
        ("codebook", r"after step 4 the state is not finite: quantizer.codebook.raw"),
    ],
)
def test_training_stops_and_the_last_checkpoint_is_good(fault: str, words: str, tmp_path: Path) -> None:
    task = Task(fault)
    said = rf"(?s)`StopOnNonFinite`: {words}.*\nThe last good checkpoint is .*last.ckpt"
    with pytest.raises(NonFiniteError, match=said):
        fit(task, tmp_path, StopOnNonFinite())
    step, state = weights(tmp_path / "last.ckpt")
    assert step == 2
    assert all(value.isfinite().all() for value in state.values())
    if fault != "codebook":  # the bad step was not taken
        assert all(parameter.isfinite().all() for parameter in task.parameters())


@pytest.mark.parametrize("looks", [True, False])
def test_a_layers_own_refusal_says_when_and_where_to_go_on(
    looks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where looking would wait, it also names the first bad step that is remembered."""
    monkeypatch.setattr(finite, "_can_look", lambda trainer, module: looks)
    with pytest.raises(ValueError, match="`z` must be finite") as caught:
        fit(Task("embedding") if looks else Task("loss", at=3), tmp_path, StopOnNonFinite())
    (note,) = caught.value.__notes__
    before = "" if looks else "; the loss of step 3 was not finite"
    assert note.startswith(f"This was step 4 of the training{before}. The last good checkpoint is {tmp_path}/last.ckpt")


def test_a_fault_before_the_first_checkpoint_says_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="No checkpoint had been written"):
        fit(Task("loss", at=1), tmp_path, StopOnNonFinite())


@pytest.mark.parametrize(
    ("fault", "every", "words"),
    [
        ("loss", 3, r"the loss of step 4 was not finite \(seen after step 6\)"),
        ("gradient", 100, r"the gradient of step 4 was not finite \(seen after step 4\)"),  # before the checkpoint
    ],
)
def test_where_looking_waits_the_first_bad_step_is_remembered(
    fault: str, every: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, or with several ranks."""
    monkeypatch.setattr(finite, "_can_look", lambda trainer, module: False)
    task = Task(fault)
    if fault == "loss":
        monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", lambda *_: None)
        task.quantizer.check_finite = False
    with pytest.raises(NonFiniteError, match=words):
        fit(task, tmp_path, StopOnNonFinite(every))
    if fault == "gradient":
        assert weights(tmp_path / "last.ckpt")[0] == 2


def test_a_finite_training_is_not_changed(tmp_path: Path) -> None:
    plain, watched = Task(), Task()
    fit(plain, tmp_path / "a")
    fit(watched, tmp_path / "b", StopOnNonFinite(), gradient_clip_val=None)
    assert changed(watched, plain.state_dict()) == set()


def test_large_gradients_that_are_finite_pass() -> None:
    """The square of 1e30 overflows float32; the gradient does not."""
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 1e30)
    scaler = SimpleNamespace(scaler=None)
    trainer: Any = SimpleNamespace(world_size=1, global_step=0, precision_plugin=scaler, checkpoint_callbacks=[])
    module: Any = SimpleNamespace(device=torch.device("cpu"), named_parameters=lambda: [("weight", weight)])
    StopOnNonFinite().on_before_optimizer_step(trainer, module, torch.optim.SGD([weight]))
    weight.grad[1] = -INF
    with pytest.raises(NonFiniteError, match="of weight"):
        StopOnNonFinite().on_before_optimizer_step(trainer, module, torch.optim.SGD([weight]))
    scaler.scaler = object()  # whose steps that overflow are skipped
    StopOnNonFinite().on_before_optimizer_step(trainer, module, torch.optim.SGD([weight]))


def test_infinity_in_a_mask_is_no_fault(tmp_path: Path) -> None:
    task = Task()
    task.register_buffer("mask", torch.full((2, 2), -INF).triu(1))
    fit(task, tmp_path, StopOnNonFinite())
    assert weights(tmp_path / "last.ckpt")[0] == 8


def test_bad_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="`every_n_steps` must be an integer >= 1"):
        StopOnNonFinite(0)
