"""Vectors that move: where their distribution is at each step, the same whoever asks and when."""

import re
from typing import Any

import pytest
import torch

from straightvq.data import MovingVectors
from straightvq.data.vectors.moving import drift

SMALL: dict[str, Any] = {"dim": 3, "steps": 5, "batch_size": 4000, "num_val": 100, "num_test": 8000}


def test_mean_and_spread_go_in_a_straight_line() -> None:
    data = MovingVectors(**SMALL, mean=-4.0, std=3.0)
    for step, batch in enumerate(data.train_dataloader()):
        vectors = batch["vector"]
        assert vectors.shape == (4000, 3)
        assert vectors.mean(0).tolist() == pytest.approx([-step] * 3, abs=0.2)
        assert vectors.std(0).tolist() == pytest.approx([1 + step / 2] * 3, rel=0.05)
    assert step == 4
    assert drift(0.25) == (2.0, 1.5)


def test_validation_and_test_are_fresh_vectors_of_the_last_step() -> None:
    data = MovingVectors(**SMALL)
    parts = [*data.val_dataloader(), *data.test_dataloader(), list(data.train_dataloader())[-1]]
    assert [len(batch["vector"]) for batch in parts] == [4000] * 4
    for batch in parts:
        assert batch["vector"].mean().item() == pytest.approx(8, abs=0.15)
        assert batch["vector"].std().item() == pytest.approx(3, rel=0.05)
    firsts = {batch["vector"][0, 0].item() for batch in parts}
    assert len(firsts) == 4


def test_seeds_draw_other_vectors_and_a_seed_the_same() -> None:
    def first(seed: int) -> torch.Tensor:
        vectors: torch.Tensor = next(iter(MovingVectors(**SMALL, seed=seed).train_dataloader()))["vector"]
        return vectors

    assert torch.equal(first(3), first(3))
    assert not torch.isclose(first(3), first(4)).any(1).all()


def test_training_goes_on_where_it_was_left() -> None:
    whole = [batch["vector"] for batch in MovingVectors(**SMALL).train_dataloader()]
    left, taken_up = (MovingVectors(**SMALL).train_dataloader() for _ in range(2))
    batches = iter(left)
    next(batches)
    next(batches)
    taken_up.load_state_dict(left.state_dict())
    rest = [batch["vector"] for batch in taken_up]
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("dim", 0, "`dim` must be an integer >= 1. Got 0"),
        ("steps", 1, "`steps` must be an integer >= 2. Got 1"),
        ("batch_size", 0, "`batch_size` must be an integer >= 1"),
        ("num_val", 0, "`num_val` must be an integer >= 1"),
        ("num_test", 0, "`num_test` must be an integer >= 1"),
        ("mean", float("nan"), "`mean` must be a finite number"),
        ("std", 0, "`std` must be a finite number in (0, inf]"),
        ("seed", -1, "`seed` must be an integer >= 0"),
        ("num_workers", -1, "`num_workers` must be an integer >= 0"),
    ],
)
def test_bad_values_are_refused(name: str, bad: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        MovingVectors(**{**SMALL, name: bad})
