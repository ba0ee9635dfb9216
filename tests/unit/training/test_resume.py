"""Random numbers go on where the last training batch left them."""

import io
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from straightvq.training import ExactResume


def draw() -> tuple[float, float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), float(np.random.randn()), random.gauss(0, 1)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint does it, loaded safely."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_survives_a_safe_checkpoint() -> None:
    draw()  # numpy and Python keep the second half of a pair of normal numbers
    before = ExactResume()
    before.on_train_batch_end()
    expected = [draw() for _ in range(3)]
    after = ExactResume()
    after.load_state_dict(through_a_file(before.state_dict()))
    after.on_train_batch_start()
    assert [draw() for _ in range(3)] == expected


def test_draws_between_batches_change_nothing() -> None:
    callback = ExactResume()
    callback.on_train_batch_end()
    expected = draw()
    callback.on_train_batch_start()
    draw()
    callback.on_train_batch_start()
    assert draw() == expected


def test_nothing_is_restored_before_the_first_batch() -> None:
    callback, before = ExactResume(), torch.get_rng_state()
    assert callback.state_dict() == {}
    callback.on_train_batch_start()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_second_fit_without_checkpoint_starts_from_the_callers_seed() -> None:
    callback: Any = ExactResume()
    callback.on_train_batch_end()
    callback.on_train_start(SimpleNamespace(ckpt_path=None), None)
    assert callback.state_dict() == {}
    callback.on_train_batch_end()
    loop = SimpleNamespace(_combined_loader_states_to_load=[], _combined_loader=None)
    callback.on_train_start(SimpleNamespace(ckpt_path="last.ckpt", fit_loop=loop), None)
    assert callback.state_dict() != {}
