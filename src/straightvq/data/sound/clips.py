"""Clips in batches, padded to the longest of them."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from straightvq.data.decode import UnreadableImageError
from straightvq.data.loader import EpochSampler
from straightvq.data.sets import Batch, OnError, Records
from straightvq.data.split import share
from straightvq.errors import InvalidValueError

Clip = NDArray[np.float32]

log = logging.getLogger(__name__)


class NumberedSampler(EpochSampler):
    """An `EpochSampler` whose numbers tell the epoch too: ``epoch * len(dataset) + place``."""

    def __init__(self, dataset: "ClipSet", *args: Any, **kwargs: Any) -> None:
        super().__init__(dataset, *args, **kwargs)
        self.length = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return (self.epoch * self.length + place for place in super().__iter__())


class ClipSet(Dataset[Batch]):
    """Clips of one rate, in memory or decoded when they are asked for.

    Out of memory, the next readable clip takes the place of an unreadable one; the first is warned of.

    Args:
        records: the encoded clips.
        sample_rate: in samples per second.
        crop: longest clip in samples; of longer ones a piece is taken, at a place that depends on (seed, epoch, name)
            only. None for whole clips.
        seed: of the places.
        on_error: what to do with a clip that cannot be read.

    Attributes:
        unreadable: reason by name of every bad clip met so far.
    """

    def __init__(
        self, records: Records, sample_rate: int, crop: int | None, seed: int, on_error: OnError = "skip"
    ) -> None:
        self.records, self.sample_rate, self.crop, self.seed, self.on_error = records, sample_rate, crop, seed, on_error
        self.unreadable: dict[str, str] = {}
        self._rows = list(range(len(records)))
        self._kept: list[Clip] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([number]).items()}

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """``audio`` Float32 (B, 1, T), zeros behind each clip, ``length`` in samples, ``label``, ``index``: Int64 (B).

        ``numbers`` are places in the set plus the epoch times its length.
        """
        found = [self._clip(number) for number in numbers]
        clips = [clip for _, clip in found]
        audio = torch.zeros(len(clips), 1, max(map(len, clips)))
        for row, clip in zip(audio, clips, strict=True):
            row[0, : len(clip)] = torch.from_numpy(clip)
        return {
            "audio": audio,
            "length": torch.tensor([len(clip) for clip in clips]),
            "label": torch.tensor([int(self.records.labels[row]) for row, _ in found]),
            "index": torch.tensor([number % len(self) for number in numbers]),
        }

    def keep(self, title: str, limit: int) -> None:
        """Decodes all clips and keeps them, unless they take more than ``limit`` bytes; ``title`` is for the bar."""
        rows: list[int] = []
        kept: list[Clip] = []
        size = 0
        for row in tqdm(self._rows, desc=f"decoding {title}", unit="clip", disable=None, delay=2, leave=False):
            clip = self._read(row, warn=False)
            if clip is not None:
                rows.append(row)
                kept.append(clip)
                size += clip.nbytes
            if size > limit:
                self.unreadable = {}  # they will be met again
                return
        self._rows, self._kept = rows, kept

    def _clip(self, number: int) -> tuple[int, Clip]:
        """The record's number and its clip, cut."""
        epoch, place = divmod(number, len(self))
        if self._kept is not None:
            return self._rows[place], self._cut(self._kept[place], self._rows[place], epoch)
        for step in range(len(self)):
            row = self._rows[(place + step) % len(self)]
            clip = self._read(row, warn=True)
            if clip is not None:
                return row, self._cut(clip, row, epoch)
        raise InvalidValueError(f"`Sound`: none of the {len(self)} files of this split can be read.")

    def _cut(self, clip: Clip, row: int, epoch: int) -> Clip:
        if self.crop is None or len(clip) <= self.crop:
            return clip
        place = share(f"{epoch}:{self.records.key(row)}", self.seed, "crop")
        start = int(place * (len(clip) - self.crop + 1))
        return clip[start : start + self.crop]

    def _read(self, row: int, *, warn: bool) -> Clip | None:
        """A whole clip, or None if it cannot be read."""
        key = self.records.key(row)
        if key in self.unreadable:
            return None
        try:
            return self.records.decode(row, self.sample_rate, 1)
        except UnreadableImageError as error:
            if self.on_error == "raise":
                raise InvalidValueError(
                    f'`Sound`: {key} cannot be read: {error}. Pass on_error="skip" to go on without it.'
                ) from error
            if warn and not self.unreadable:
                warnings.warn(
                    f"`Sound`: {key} cannot be read ({error}); the next readable clip takes its place. Further ones "
                    "are counted in `Sound.unreadable` and logged.",
                    stacklevel=3,
                )
            self.unreadable[key] = str(error)
            log.info("cannot read %s: %s", key, error)
            return None
