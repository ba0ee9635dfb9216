"""Sets of pictures: what a source offers, how it is split, and the two datasets that serve it."""

import hashlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from straightvq.data.decode import UnreadableImageError
from straightvq.errors import InvalidValueError

OnError = Literal["skip", "raise"]
Batch = dict[str, Any]  # tensors, and the number of the epoch

log = logging.getLogger(__name__)


class Records(ABC):
    """Pictures that can be decoded one at a time, with a label and a lasting name for each."""

    labels: NDArray[np.int64]
    """``(n,)``, -1 where there is none."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def key(self, i: int) -> str:
        """Name of record ``i``: for messages, and the same on every machine, since it decides the split."""

    @abstractmethod
    def decode(self, i: int, size: int, channels: int) -> NDArray[np.uint8]:
        """Record ``i`` as UInt8 ``(channels, size, size)``; raises `UnreadableImageError`."""


@dataclass
class Source:
    """What was found at one place.

    Attributes:
        splits: By name: "train" always, "validation" and "test" where the source has them.
        class_names: By label, or None.
        skipped: Name and reason of what was passed over while looking.
    """

    splits: dict[str, Records]
    class_names: list[str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def check_labels(source: Source) -> None:
    """Refuses labels that would break off an epoch: below -1, or beyond the names of the classes."""
    number = None if source.class_names is None else len(source.class_names)
    for split, records in source.splits.items():
        low, high = int(records.labels.min(initial=-1)), int(records.labels.max(initial=-1))
        if low < -1 or (number is not None and high >= number):
            names = f"[0, {number}), one for each class name" if number is not None else ">= 0"
            raise InvalidValueError(
                f"`Images`: the labels of split {split!r} must be {names}, or -1 for none. Got {low} to {high}."
            )


def share(key: str, seed: int, use: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: files that come or go never move the
    others."""
    digest = hashlib.blake2b(f"{use}:{seed}:{key}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def divide(
    source: Source, val_fraction: float, num_train: int | None, num_test: int | None, seed: int
) -> dict[str, tuple[Records, NDArray[np.int64]]]:
    """Rows of each split. A split the source lacks gets ``val_fraction`` of the training one; none overlap.

    Membership is decided picture by picture from a hash of (seed, name), so that it is the same on every
    machine and in every order of listing, and a split has ``val_fraction`` of the pictures only about.
    """
    train = source.splits["train"]
    rows = np.arange(len(train))
    draws = np.array([share(train.key(i), seed, "split") for i in range(len(train))])
    missing = [name for name in ("validation", "test") if name not in source.splits]
    # Fixed places for the two, so that a test split that turns up later does not reshuffle the validation
    # split.
    place = {"validation": (0.0, val_fraction), "test": (val_fraction, 2 * val_fraction)}
    taken = {name: rows[(draws >= place[name][0]) & (draws < place[name][1])] for name in missing}
    kept = np.setdiff1d(rows, np.concatenate([np.empty(0, dtype=np.int64), *taken.values()]))
    if len(kept) == 0:  # a set of one or two pictures: it can at least be trained on
        kept, taken = rows, {name: rows[:0] for name in missing}
    parts = {name: (train, taken[name]) for name in missing}
    parts |= {name: (records, np.arange(len(records))) for name, records in source.splits.items()}
    parts["train"] = (train, kept)
    if num_train is not None and len(kept) + len(taken.get("validation", ())) > num_train:
        parts = _limit_train(parts, num_train, "validation" in taken, seed)
    if num_test is not None:
        parts["test"] = (parts["test"][0], _lowest(*parts["test"], num_test, seed))
    return parts


def _limit_train(
    parts: dict[str, tuple[Records, NDArray[np.int64]]], num_train: int, with_validation: bool, seed: int
) -> dict[str, tuple[Records, NDArray[np.int64]]]:
    """Limits training and the validation pictures taken from it, together, to ``num_train``."""
    train, kept = parts["train"]
    own = parts["validation"][1] if with_validation else kept[:0]
    chosen = _lowest(train, np.union1d(kept, own), num_train, seed)
    result = parts | {"train": (train, np.intersect1d(chosen, kept))}
    if with_validation:
        result["validation"] = (train, np.intersect1d(chosen, own))
    if len(result["train"][1]) == 0:
        result |= {"train": (train, chosen), "validation": (train, chosen[:0])}
    return result


def _lowest(records: Records, rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """``count`` of the rows, drawn by hash (the first ones would often be of a single class), in their old
    order."""
    if len(rows) <= count:
        return rows
    draws = np.array([share(records.key(int(i)), seed, "limit") for i in rows])
    return np.sort(rows[np.argsort(draws, kind="stable")[:count]])


class ImageTensor(Dataset[Batch]):
    """Decoded pictures in memory.

    Args:
        images: UInt8 ``(n, C, H, W)``.
        labels: Int64 ``(n,)``.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Batch:
        return {"image": self.images[i], "label": self.labels[i], "index": torch.tensor(i)}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        # The loader asks for a whole batch at once: one gather instead of B small tensors and their
        # collation.
        index = torch.as_tensor(rows, dtype=torch.int64)
        return {"image": self.images[index], "label": self.labels[index], "index": index}


class ImageStream(Dataset[Batch]):
    """Pictures decoded when they are asked for.

    An unreadable one is replaced by the next readable one of the same split, under ``on_error="skip"``: an
    epoch is never lost to one file. The first is warned of, all are counted (in each worker process for
    itself).

    Args:
        records: Where the pictures come from.
        rows: Which of them belong to this set, ``(n,)``.
        size: Side in pixels.
        channels: 1 or 3.
        on_error: "skip" or "raise".

    Attributes:
        unreadable: Reason by name of every bad file met so far.
        num_substituted: How often another picture was served instead.
    """

    def __init__(
        self, records: Records, rows: NDArray[np.int64], size: int, channels: int, on_error: OnError = "skip"
    ) -> None:
        self.records, self.rows = records, rows
        self.size, self.channels, self.on_error = size, channels, on_error
        self.unreadable: dict[str, str] = {}
        self.num_substituted = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Batch:
        for step in range(len(self)):
            row = int(self.rows[(i + step) % len(self)])
            image = self._decode(row)
            if image is not None:
                self.num_substituted += step > 0
                label = torch.tensor(int(self.records.labels[row]))
                return {"image": torch.from_numpy(image), "label": label, "index": torch.tensor(i)}
        raise InvalidValueError(f"`Images`: none of the {len(self)} files of this split can be read.")

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        items = [self[i] for i in rows]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _decode(self, row: int) -> NDArray[np.uint8] | None:
        key = self.records.key(row)
        if key in self.unreadable:
            return None
        try:
            return self.records.decode(row, self.size, self.channels)
        except UnreadableImageError as error:
            if self.on_error == "raise":
                raise unreadable_error(key, str(error)) from error
            if not self.unreadable:
                warnings.warn(
                    f"`Images`: {key} cannot be read ({error}); the next readable picture takes its place. "
                    "Further ones are counted in `ImageStream.unreadable` and logged.",
                    stacklevel=2,
                )
            self.unreadable[key] = str(error)
            log.info("cannot read %s: %s", key, error)
            return None


def decode_all(
    records: Records, rows: NDArray[np.int64], size: int, channels: int, on_error: OnError, split: str
) -> tuple[ImageTensor, dict[str, str]]:
    """Decodes ``rows`` into memory; returns them with the name and reason of each one that could not be
    read."""
    from tqdm import tqdm

    images = torch.empty((len(rows), channels, size, size), dtype=torch.uint8)
    unreadable: dict[str, str] = {}
    kept: list[int] = []
    # `disable=None`: no bar where nobody watches (a log file); `delay`: none for what takes a moment.
    for row in tqdm(rows.tolist(), desc=f"decoding {split}", unit="img", disable=None, delay=2, leave=False):
        try:
            images[len(kept)] = torch.from_numpy(records.decode(row, size, channels))
        except UnreadableImageError as error:
            if on_error == "raise":
                raise unreadable_error(records.key(row), str(error)) from error
            unreadable[records.key(row)] = str(error)
        else:
            kept.append(row)
    labels = torch.from_numpy(np.asarray(records.labels[kept], dtype=np.int64))
    return ImageTensor(images[: len(kept)], labels), unreadable


def unreadable_error(key: str, reason: str) -> ValueError:
    return InvalidValueError(f'`Images`: {key} cannot be read: {reason}. Pass on_error="skip" to go on without it.')
