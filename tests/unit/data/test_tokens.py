"""`Tokens`: the codes of the set, each encoded once, in the order and with the flips of `Images`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from straightvq.data import Images, Tokens


class Task:
    """Tokens are the pixels of the first row of each quarter of a digit; counts what it encodes."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode_all(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        return images[:, 0, ::4, ::4].int()


def make(kind: type[Images] = Tokens, **kwargs: Any) -> Any:
    return kind(**{"source": "digits", "size": 8, "channels": 1, "batch_size": 16, "num_train": 60, **kwargs})


def expected(batch: dict[str, Tensor]) -> Tensor:
    return (batch["image"] * 255).round()[:, 0, ::4, ::4].int()


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_the_tokens_of_the_batches_of_images(flip: bool) -> None:
    tokens, images = make(flip=flip), make(Images, flip=flip)
    tokens.encode(Task())
    for name in ("train_dataloader", "val_dataloader"):
        loaders = [getattr(data, name)() for data in (tokens, images)]
        for _ in range(2):  # epochs
            for a, b in zip(*loaders, strict=True):
                a, b = tokens.on_after_batch_transfer(a, 0), images.on_after_batch_transfer(b, 0)
                assert set(a) == {"tokens", "label"}
                assert torch.equal(a["label"], b["label"])
                assert torch.equal(a["tokens"], expected(b))


def test_each_set_is_encoded_once() -> None:
    data, task = make(flip=True), Task()
    for _ in range(2):
        data.encode(task)
    train = sum(len(batch["tokens"]) for batch in data.train_dataloader())
    validation = sum(len(batch["tokens"]) for batch in data.val_dataloader())
    assert task.encoded == 2 * train + validation


def test_test_batches_are_images() -> None:
    data = make()
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch["image"].shape == (16, 1, 8, 8)


def test_streamed_sets_and_shifts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`Tokens`: the set must fit into `memory_limit_mb`.* Got 0"):
        make(memory_limit_mb=0).encode(Task())
    with pytest.raises(ValueError, match=r"`Tokens`: `crop_padding` must be 0.* Got 2"):
        make(crop_padding=2).encode(Task())


def test_a_task_without_tokenizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`Tokens`: the task must have a tokenizer"):
        make().train_dataloader()
