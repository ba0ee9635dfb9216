"""Sets of pictures: records that are decoded one at a time, and the two datasets that serve them in batches."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from straightvq.data.decode import UnreadableImageError
from straightvq.errors import InvalidValueError

OnError = Literal["skip", "raise"]
Batch = dict[str, Any]  # tensors, and the number of the epoch

SOURCES = (
    'Sources are "photos" and "digits" (embedded), a folder of images or of Parquet files, a .parquet file, '
    "or owner/name on the Hugging Face Hub."
)

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
    def decode(self, i: int, size: int, channels: int) -> NDArray[Any]:
        """Record ``i`` as UInt8 ``(channels, size, size)``; raises `UnreadableImageError`."""


class Selection(Records):
    """The given rows ``(n,)`` of other records, in that order."""

    def __init__(self, records: Records, rows: NDArray[np.int64]) -> None:
        self.records, self.rows, self.labels = records, rows, records.labels[rows]

    def key(self, i: int) -> str:
        return self.records.key(int(self.rows[i]))

    def decode(self, i: int, size: int, channels: int) -> NDArray[Any]:
        return self.records.decode(int(self.rows[i]), size, channels)


class Joined(Records):
    """Several records, one behind the other."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self.parts, self.labels = parts, np.concatenate([part.labels for part in parts])
        self.ends = np.cumsum([len(part) for part in parts])

    def key(self, i: int) -> str:
        part, row = self._place(i)
        return part.key(row)

    def decode(self, i: int, size: int, channels: int) -> NDArray[Any]:
        part, row = self._place(i)
        return part.decode(row, size, channels)

    def _place(self, i: int) -> tuple[Records, int]:
        number = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[number], i - int(self.ends[number]) + len(self.parts[number])


@dataclass
class Source:
    """What was found at one place: records by split ("train" always), and class names by label where there are any.

    Raises:
        ValueError: For labels that would break off an epoch: below -1, or beyond the names of the classes.
    """

    splits: dict[str, Records]
    class_names: list[str] | None = None
    owner: str = "Images"  # in messages

    def __post_init__(self) -> None:
        for split, records in self.splits.items():
            low, high = int(records.labels.min(initial=-1)), int(records.labels.max(initial=-1))
            if low < -1 or high >= self.num_classes:
                names = ">= 0" if self.class_names is None else f"[0, {self.num_classes}), one for each class name"
                raise InvalidValueError(
                    f"`{self.owner}`: the labels of split {split!r} must be {names}, or -1 for none. "
                    f"Got {low} to {high}."
                )

    def everything(self) -> Records:
        """The records of all splits, in their order."""
        return Joined(list(self.splits.values()))

    @property
    def num_classes(self) -> int:
        if self.class_names is not None:
            return len(self.class_names)
        return max(int(records.labels.max(initial=-1)) for records in self.splits.values()) + 1


class TensorSet(Dataset[Batch]):
    """Tensors in memory, such as ``image`` UInt8 ``(n, C, H, W)`` and ``label`` Int64 ``(n,)``, served row by row.

    Batches also have ``index``, Int64 ``(B)``: their rows. ``unreadable`` is the reason by name of pictures left out.
    """

    def __init__(self, tensors: dict[str, Tensor], unreadable: dict[str, str] | None = None) -> None:
        self.tensors, self.unreadable = tensors, unreadable or {}

    def __len__(self) -> int:
        return len(self.tensors["label"])

    def __getitem__(self, i: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([i]).items()}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        # The loader asks for a whole batch at once: one gather instead of B small tensors and their collation.
        index = torch.as_tensor(rows, dtype=torch.int64)
        return {name: value[index] for name, value in self.tensors.items()} | {"index": index}


class ImageStream(Dataset[Batch]):
    """Pictures that are decoded when they are asked for.

    Under ``on_error="skip"`` the next readable picture takes the place of an unreadable one. The first is warned of,
    all are counted (in each worker process for itself).

    Attributes:
        unreadable: Reason by name of every bad picture met so far.
        num_substituted: How often another picture was served instead.
    """

    def __init__(self, records: Records, size: int, channels: int, on_error: OnError = "skip") -> None:
        self.records, self.size, self.channels, self.on_error = records, size, channels, on_error
        self.unreadable: dict[str, str] = {}
        self.num_substituted = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Batch:
        for step in range(len(self)):
            place = (i + step) % len(self)
            image = self._read(place, warn=True)
            if image is not None:
                self.num_substituted += step > 0
                label = torch.tensor(int(self.records.labels[place]))
                return {"image": torch.from_numpy(image), "label": label, "index": torch.tensor(i)}
        raise InvalidValueError(f"`Images`: none of the {len(self)} files of this split can be read.")

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        return default_collate([self[i] for i in rows])

    def decode_all(self, title: str) -> TensorSet:
        """All readable pictures, in memory; ``title`` names them on the progress bar."""
        images = torch.empty((len(self), self.channels, self.size, self.size), dtype=torch.uint8)
        kept: list[int] = []
        # `disable=None`: no bar where nobody watches (a log file); `delay`: none for what takes a moment.
        for i in tqdm(range(len(self)), desc=f"decoding {title}", unit="img", disable=None, delay=2, leave=False):
            image = self._read(i, warn=False)
            if image is not None:
                images[len(kept)] = torch.from_numpy(image)
                kept.append(i)
        labels = torch.from_numpy(self.records.labels[kept].astype(np.int64))
        return TensorSet({"image": images[: len(kept)], "label": labels}, self.unreadable)

    def _read(self, i: int, *, warn: bool) -> NDArray[np.uint8] | None:
        """Picture ``i``, or None if it cannot be read."""
        key = self.records.key(i)
        if key in self.unreadable:
            return None
        try:
            return self.records.decode(i, self.size, self.channels)
        except UnreadableImageError as error:
            if self.on_error == "raise":
                raise InvalidValueError(
                    f'`Images`: {key} cannot be read: {error}. Pass on_error="skip" to go on without it.'
                ) from error
            if warn and not self.unreadable:
                warnings.warn(
                    f"`Images`: {key} cannot be read ({error}); the next readable picture takes its place. "
                    "Further ones are counted in `ImageStream.unreadable` and logged.",
                    stacklevel=3,
                )
            self.unreadable[key] = str(error)
            log.info("cannot read %s: %s", key, error)
            return None
