"""Token grids in batches: a set of images, encoded once by the tokenizer of the task that trains on them."""

from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from straightvq.data.augment import Augmentation
from straightvq.data.loader import TrainLoader, eval_loader
from straightvq.data.module import Images
from straightvq.data.sets import Batch, TensorSet
from straightvq.errors import InvalidTypeError, InvalidValueError


@runtime_checkable
class HasTokenizer(Protocol):
    """What a task offers so that its images can be encoded before the training."""

    def encode_all(self, images: Tensor) -> Tensor:
        """Images, UInt8 (n, C, H, W) -> tokens, Int32 (n, h, w), on the CPU."""


class Tokens(Images):
    """`Images` for a generative model: training and validation batches are token grids, test batches images.

    Batches are ``{"tokens": Int32 (B, h, w), "label": Int64 (B)}`` in training and validation, those of `Images` in the
    test. The task encodes each set once, and each training image also mirrored if ``flip`` is set. Arguments, splits,
    flips, order and their resumption are those of `Images`.

    Sets larger than ``memory_limit_mb`` and shifts (``crop_padding``) are refused: train on `Images` then, whose
    batches are encoded in every step.

    Example:
        >>> class Task:                                                  # one token: the mean grey
        ...     def encode_all(self, images):
        ...         return images.float().mean((1, 2, 3)).int()[:, None, None]
        >>> data = Tokens(source="digits", size=8, batch_size=16, channels=1)
        >>> data.encode(Task())
        >>> next(iter(data.train_dataloader()))["tokens"].shape
        torch.Size([16, 1, 1])
    """

    @cached_property
    def _grids(self) -> dict[str, TensorSet]:
        return {}

    def encode(self, task: HasTokenizer) -> None:
        """Encodes the training and validation sets; what is there already is not encoded again."""
        if self.crop_padding:
            raise InvalidValueError(
                "`Tokens`: `crop_padding` must be 0: the images are encoded once, not in each place. For shifts "
                f"take `Images`, which is encoded in every step. Got {self.crop_padding}."
            )
        for split in ("train", "validation"):
            if split not in self._grids:
                images = self._set(split, "fit")
                if not isinstance(images, TensorSet):
                    raise InvalidValueError(
                        "`Tokens`: the set must fit into `memory_limit_mb` as bytes of pixels. Raise it, or take "
                        f"`Images`, which is encoded in every step. Got {self.memory_limit_mb}."
                    )
                image = images.tensors["image"]
                tensors = {"tokens": task.encode_all(image), "label": images.tensors["label"]}
                if self.flip and split == "train":
                    tensors["mirrored"] = task.encode_all(image.flip(-1))
                self._grids[split] = TensorSet(tensors)

    def train_dataloader(self) -> TrainLoader:
        return self._train_loader(self._encoded("train"), num_workers=0)  # in memory

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        grids = self._encoded("validation")
        return eval_loader(grids, self.batch_size) if len(grids) else []

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Chooses the mirrored tokens where the epoch says so; images as in `Images`."""
        if "tokens" not in batch:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        tokens = batch["tokens"]
        if "mirrored" in batch:
            chosen = Augmentation(self.seed, batch["epoch"], batch["index"]).mirrored()
            tokens = torch.where(chosen[:, None, None], batch["mirrored"], tokens)
        return {"tokens": tokens, "label": batch["label"]}

    def _encoded(self, split: str) -> TensorSet:
        if split not in self._grids:
            task = getattr(self.trainer, "lightning_module", None)
            if not isinstance(task, HasTokenizer):
                raise InvalidTypeError(
                    "`Tokens`: the task must have a tokenizer, as `straightvq.generation.Generation` has. "
                    f"Got {type(task).__name__}; take `straightvq.data.Images` for it."
                )
            self.encode(task)
        return self._grids[split]
