"""The Lightning data module: a source of pictures in, batches out."""

import math
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from straightvq.data.files import local
from straightvq.data.hub import SOURCES, hub
from straightvq.data.loader import EpochSampler, TrainLoader, eval_loader, train_loader
from straightvq.data.photos import digits, photos
from straightvq.data.sets import (
    Batch,
    ImageStream,
    ImageTensor,
    Records,
    Source,
    check_labels,
    decode_all,
    divide,
    unreadable_error,
)
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.functional import draw_integers

EMBEDDED = ("photos", "digits")
_STAGES: dict[str | None, tuple[str, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
    None: ("train", "validation", "test"),
}
# Number of the random stream of each use.
_FLIP, _SHIFT = 0, 1


class Images(lightning.LightningDataModule):
    """Square pictures in batches ``{"image": Float (B, C, H, W) in [0, 1], "label": Int64 (B)}``.

    Pictures stay bytes until they are on the device; `on_after_batch_transfer`, which the Trainer calls,
    makes them floating point, shifts and flips them. Without a Trainer, call it on the loaders' batches. Prediction
    runs over the test split. The order of training depends on (seed, epoch) only and its position is part of
    Lightning's checkpoints.

    The test split never shares a picture with the training split. A split that the source lacks is
    ``val_fraction`` of the training one, chosen by a hash of seed and name: give the same ``seed`` to a test
    run as to its training.

    Args:
        source: "photos" (crops of two embedded photographs, see `straightvq.data.photos`), "digits"
            (embedded), a folder of images (class = first subfolder; ``train/``, ``val/``, ``test/`` are
            splits), a folder of Parquet files, a .parquet file, or owner/name on the Hugging Face Hub.
        size: Side in pixels, >= 4. Photographs are cut into crops; all else is scaled by its shorter side and
            cut to the centre.
        batch_size: Pictures per batch and process. The last batch of an epoch may be smaller.
        num_train: Most pictures for training, with the validation pictures taken from them; None for all
            (photos: 4,096).
        num_test: Most pictures for testing; None for all (photos: 512).
        val_fraction: Share of the training pictures for validation where the source has no such split, in [0,
            0.5).
        seed: Of splits, crops, order, flips and shifts.
        num_workers: Loading processes; 0 is best for sets in memory.
        flip: Whether training images are mirrored left to right, each with probability 1/2.
        memory_limit_mb: Sets that take less than this many MiB as bytes of pixels are decoded once and kept;
            larger ones are decoded as they are read.
        channels: 3 for RGB, 1 for grey.
        on_error: What to do with a file that cannot be read: "skip" it with one warning for all, or "raise".
        crop_padding: Pixels by which training images are shifted at most, in each direction; what comes into
            view is black. The same as a random crop of an image padded with as many zeros. 4 is usual for
            classifiers of 32 x 32 pixels, 0 for none.

    Attributes:
        shape: ``(channels, size, size)``.
        num_classes: Number of labels, 0 where the source has none.
        class_names: By label, or None.
        unreadable: Reason by name of every file skipped so far.

    Raises:
        ValueError, TypeError: An argument out of range or of the wrong type; nothing at ``source``.

    Example:
        >>> data = Images(source="digits", size=8, batch_size=16, channels=1)
        >>> data.setup("test")
        >>> batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
        >>> batch["image"].shape, batch["image"].dtype, data.num_classes
        (torch.Size([16, 1, 8, 8]), torch.float32, 10)
    """

    def __init__(
        self,
        source: str = "photos",
        size: int = 32,
        batch_size: int = 64,
        num_train: int | None = None,
        num_test: int | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        flip: bool = False,
        memory_limit_mb: int = 2048,
        channels: int = 3,
        on_error: Literal["skip", "raise"] = "skip",
        crop_padding: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("size", size, 4),
            ("batch_size", batch_size, 1),
            ("num_train", num_train, 1),
            ("num_test", num_test, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
            ("memory_limit_mb", memory_limit_mb, 0),
            ("crop_padding", crop_padding, 0),
        ):
            if value is not None or name not in ("num_train", "num_test"):
                _check_integer(name, value, least)
        if isinstance(val_fraction, bool) or not isinstance(val_fraction, (int, float)):
            raise InvalidTypeError(f"`Images`: `val_fraction` must be a number in [0, 0.5). Got {val_fraction!r}.")
        if not 0 <= val_fraction < 0.5:
            raise InvalidValueError(f"`Images`: `val_fraction` must be a number in [0, 0.5). Got {val_fraction!r}.")
        if channels not in (1, 3):
            raise InvalidValueError(f"`Images`: `channels` must be 1 (grey) or 3 (RGB). Got {channels!r}.")
        if not isinstance(flip, bool):
            raise InvalidTypeError(f"`Images`: `flip` must be True or False. Got {flip!r}.")
        if on_error not in ("skip", "raise"):
            raise InvalidValueError(f'`Images`: `on_error` must be "skip" or "raise". Got {on_error!r}.')
        _check_source(source)
        self.source, self.size, self.channels = source, size, channels
        self.batch_size, self.num_train, self.num_test = batch_size, num_train, num_test
        self.val_fraction, self.seed, self.num_workers = float(val_fraction), seed, num_workers
        self.flip, self.memory_limit_mb, self.on_error = flip, memory_limit_mb, on_error
        self.crop_padding = crop_padding
        self.unreadable: dict[str, str] = {}
        self._source: Source | None = None
        self._parts: dict[str, tuple[Records, NDArray[np.int64]]] = {}
        self._sets: dict[str, ImageTensor | ImageStream] = {}
        self._flips: tuple[int, Tensor] | None = None
        self._shifts: tuple[int, Tensor] | None = None

    # What there is

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    @property
    def class_names(self) -> list[str] | None:
        return self._open().class_names

    @property
    def num_classes(self) -> int:
        source = self._open()
        if source.class_names is not None:
            return len(source.class_names)
        return max((int(records.labels.max(initial=-1)) for records in source.splits.values()), default=-1) + 1

    def prepare_data(self) -> None:
        """Fetches a Hub data set, in one process per machine."""
        if _is_hub_name(self.source):
            hub(self.source)

    def setup(self, stage: str | None = None) -> None:
        """Finds the pictures and decodes the splits of ``stage`` ("fit", "validate", "test", "predict", None:
        all), unless they are too large to keep. What is there already is not read again."""
        self._open()
        wanted = [split for split in _STAGES[stage] if split not in self._sets]
        number = len(self.unreadable)
        for split in wanted:
            self._sets[split] = self._load(split)
        self._report(len(self.unreadable) - number)
        for split in wanted:
            if len(self._sets[split]) == 0 and (split == "train" or (split == "validation" and self.val_fraction)):
                self._explain_empty(split)

    def _open(self) -> Source:
        """The source, looked through once; nothing is decoded."""
        if self._source is None:
            if self.source == "photos":
                source = photos(self.size, self.num_train, self.num_test, self.val_fraction, self.seed)
            elif self.source == "digits":
                source = digits()
            elif _is_hub_name(self.source):
                source = hub(self.source)
            else:
                source = local(Path(self.source).expanduser(), self.memory_limit_mb << 20)
            if source.skipped and self.on_error == "raise":
                raise unreadable_error(*next(iter(source.skipped.items())))
            check_labels(source)
            num_train = None if self.source == "photos" else self.num_train  # crops are made, not left out
            self._parts = divide(source, self.val_fraction, num_train, self.num_test, self.seed)
            self._source = source
        return self._source

    def _load(self, split: str) -> ImageTensor | ImageStream:
        records, rows = self._parts[split]
        # Decided on all splits together, so that no stage finds another kind of set than the one before.
        total = sum(len(part) for _, part in self._parts.values()) * math.prod(self.shape)
        if total > self.memory_limit_mb << 20:
            return ImageStream(records, rows, self.size, self.channels, self.on_error)
        images, unreadable = decode_all(records, rows, self.size, self.channels, self.on_error, split)
        self.unreadable |= unreadable
        return images

    def _report(self, new: int) -> None:
        """One warning for everything that was passed over."""
        source = self._open()
        passed_over = {name: why for name, why in source.skipped.items() if name not in self.unreadable}
        self.unreadable |= passed_over
        if new + len(passed_over) == 0:
            return
        latest = list(self.unreadable.items())[-(new + len(passed_over)) :]
        named = "; ".join(f"{name} ({why})" for name, why in latest[:5])
        more = f"; and {len(latest) - 5} more, in `Images.unreadable`" if len(latest) > 5 else ""
        warnings.warn(f"`Images`: skipped {len(latest)} unreadable file(s): {named}{more}.", stacklevel=3)

    def _explain_empty(self, split: str) -> None:
        if split == "train":
            raise InvalidValueError(f"`Images`: none of the training files of {self.source!r} can be read.")
        warnings.warn(
            f"`Images`: no picture of {self.source!r} falls into the validation split (val_fraction="
            f"{self.val_fraction}): there will be no validation.",
            stacklevel=3,
        )

    # Batches

    def train_dataloader(self) -> TrainLoader:
        dataset = self._set("train", "fit")
        sampler = EpochSampler(dataset, self.seed, **self._ranks())
        return self._resuming(train_loader(dataset, self.batch_size, sampler, self.num_workers))

    def _resuming(self, loader: TrainLoader) -> TrainLoader:
        """The same loader, told where the Trainer is."""
        if self.trainer is not None:
            # Between epochs Lightning loads no loader state, but knows how many there were.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            loader.epoch = progress.processed - 1
            limit = self.trainer.limit_train_batches
            loader.limit = int(limit * len(loader)) if isinstance(limit, float) else limit
        return loader

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        dataset = self._set("validation", "validate")
        # Lightning takes an empty list as "no validation", with a warning of its own.
        return eval_loader(dataset, self.batch_size, self.num_workers) if len(dataset) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        dataset = self._set("test", "test")
        if len(dataset) == 0:
            raise InvalidValueError(
                f"`Images`: {self.source!r} has no test pictures. Give it a test split, or a larger "
                f"`val_fraction` (a missing split gets that share). Got {self.val_fraction}."
            )
        return eval_loader(dataset, self.batch_size, self.num_workers)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Bytes to floating point in [0, 1]; shifts and flips in training.

        Shape:
            batch: ``image`` UInt8 ``(B, C, H, W)``, ``label`` Int64 ``(B)``, ``index`` Int64 ``(B)``;
                of the training loader also ``epoch``, an integer.
            returns: ``image`` Float ``(B, C, H, W)``, ``label`` Int64 ``(B)``.
        """
        image = batch["image"].to(torch.float32) / 255
        if self.crop_padding and "epoch" in batch:
            places = self._shifted(int(batch["epoch"]), image.device)[batch["index"]]
            image = _cropped(image, self.crop_padding, *places.unbind(1))
        if self.flip and "epoch" in batch:
            mirrored = self._mirrored(int(batch["epoch"]), image.device)[batch["index"]]
            image = torch.where(mirrored[:, None, None, None], image.flip(-1), image)
        result = {"image": image, "label": batch["label"]}
        if self.trainer is not None:
            # Lightning casts inputs for "bf16-true" and the like before this hook, when ours are still bytes.
            return cast(Batch, self.trainer.precision_plugin.convert_input(result))
        return result

    def _mirrored(self, epoch: int, device: torch.device) -> Tensor:
        """Bool ``(num_train,)``: a function of (seed, epoch, picture), so the same on resume and for any
        ranks."""
        if self._flips is None or self._flips[0] != epoch or self._flips[1].device != device:
            self._flips = (epoch, self._draws(epoch, device, _FLIP, 1)[:, 0] % 2 == 1)
        return self._flips[1]

    def _shifted(self, epoch: int, device: torch.device) -> Tensor:
        """Int64 ``(num_train, 2)``: row and column of each crop in the padded picture, likewise."""
        if self._shifts is None or self._shifts[0] != epoch or self._shifts[1].device != device:
            self._shifts = (epoch, self._draws(epoch, device, _SHIFT, 2) % (2 * self.crop_padding + 1))
        return self._shifts[1]

    def _draws(self, epoch: int, device: torch.device, stream: int, count: int) -> Tensor:
        seed, step = torch.tensor(self.seed, device=device), torch.tensor(epoch, device=device)
        return draw_integers(seed, step, stream, (len(self._set("train", "fit")), count))

    def _set(self, split: str, stage: str) -> ImageTensor | ImageStream:
        if split not in self._sets:
            self.setup(stage)
        return self._sets[split]

    def _ranks(self) -> dict[str, int]:
        """Number and place of this process among those that share the data."""
        if self.trainer is not None:
            # Of the strategy and not of the world: ranks of tensor parallelism read the same batch.
            return dict(self.trainer.distributed_sampler_kwargs or {})
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return {"num_replicas": torch.distributed.get_world_size(), "rank": torch.distributed.get_rank()}
        return {}


def _cropped(image: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Squares of the old size out of zero-padded images, at ``top`` and ``left``, Int64 ``(B)`` each."""
    size = torch.arange(image.shape[-1], device=image.device)
    padded = torch.nn.functional.pad(image, (padding,) * 4).permute(0, 2, 3, 1)
    picture = torch.arange(len(image), device=image.device)[:, None, None]
    cut = padded[picture, (top[:, None] + size)[:, :, None], (left[:, None] + size)[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous()


def _check_integer(name: str, value: Any, least: int) -> None:
    expected = f"`Images`: `{name}` must be an integer >= {least}. Got {value!r}."
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(expected)
    if value < least:
        raise InvalidValueError(expected)


def _check_source(source: Any) -> None:
    if not isinstance(source, str):
        raise InvalidTypeError(f"`Images`: `source` must be a string. Got {source!r}.")
    if source not in EMBEDDED and not Path(source).expanduser().exists() and not _is_hub_name(source):
        raise InvalidValueError(f"`Images`: `source` {source!r} does not exist. {SOURCES}")


def _is_hub_name(source: str) -> bool:
    """Whether this could be owner/name: one slash, nothing that only a path has, and no such path here."""
    if source in EMBEDDED or Path(source).expanduser().exists():
        return False
    owner, slash, name = source.partition("/")
    plain = owner[:1] not in (".", "~", "") and "/" not in name and "\\" not in source
    return bool(slash and name) and plain and not name.lower().endswith(".parquet")
