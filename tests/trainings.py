"""What the tests of the tasks share: a quiet trainer, what a training changed, and a training that is resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from straightvq.checkpoints import StepCheckpoint
from straightvq.training import ExactResume

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def make_trainer(steps: int, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(accelerator="cpu", max_steps=steps, **{**QUIET, **options})


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def check_exact_resume(
    make: Callable[[], tuple[Any, Any]],
    folder: Path,
    stop: int,
    *,
    callbacks: Callable[[], list[lightning.Callback]] = list,
    **options: Any,
) -> None:
    """A training of the task and the data of ``make`` that stops at a step and is resumed ends like a whole one."""
    options, file = {"steps": 10, **options}, folder / f"step-{stop:08d}.ckpt"
    (whole, data), (resumed, again) = make(), make()
    kept = StepCheckpoint(folder / "step-{step}.ckpt", 1)
    first = make_trainer(**options, callbacks=[ExactResume(), *callbacks(), kept], enable_checkpointing=True)
    first.fit(whole, datamodule=data)
    torch.manual_seed(99)
    second = make_trainer(**options, callbacks=[ExactResume(), *callbacks()])
    second.fit(resumed, datamodule=again, ckpt_path=file, weights_only=True)
    assert second.global_step == first.global_step > stop
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    assert changed(resumed, whole.state_dict()) == set()
