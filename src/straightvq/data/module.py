"""The Lightning data module: a source of pictures in, batches out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch

from straightvq.data.augment import Augmentation
from straightvq.data.base import Splits
from straightvq.data.files import local
from straightvq.data.photos import digits, photos
from straightvq.data.sets import SOURCES, Batch, ImageStream, Records, Source, TensorSet
from straightvq.data.split import divide
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.part import check_bool, check_choice, check_float, check_int

EMBEDDED = ("photos", "digits")


class Images(Splits):
    """Square pictures in batches ``{"image": Float (B, C, H, W) in [0, 1], "label": Int64 (B)}``.

    Pictures stay bytes until they are on the device; `on_after_batch_transfer`, which the Trainer calls, makes them
    floating point, shifts and flips them. Without a Trainer, call it on the loaders' batches. Prediction runs over the
    test split. The order of training depends on (seed, epoch) only; its position is part of Lightning's checkpoints.

    No picture is in both the test and the training split. A split that the source lacks is ``val_fraction`` of the
    training one, chosen by a hash of seed and name: give a test run the ``seed`` of its training.

    Args:
        source: "photos" (crops of two embedded photographs, see `straightvq.data.photos`), "digits" (embedded), a
            folder of images (class = first subfolder; ``train/``, ``val/``, ``test/`` are splits; hidden files and
            what is no image are ignored), a folder of Parquet files, a .parquet file, or owner/name on the Hugging Face
            Hub.
        size: Side in pixels, >= 4. Photographs are cut into crops; all else is scaled by its shorter side and cut to
            the centre.
        batch_size: Pictures per batch and process. The last batch of an epoch may be smaller.
        num_train: Most pictures for training and for validation out of them; None for all (photos: 4,096).
        num_test: Most pictures for testing; None for all (photos: 512).
        val_fraction: Share of the training pictures for validation where the source has no such split, in [0, 0.5).
        seed: Random seed of splits, crops, order, flips and shifts.
        num_workers: Loading processes; 0 is best for sets in memory.
        flip: Whether training images are mirrored left to right, each with probability 1/2.
        memory_limit_mb: Sets of at most so many MiB as bytes of pixels are decoded once and kept, others as they are
            read.
        channels: 3 for RGB, 1 for grey.
        on_error: What to do with an image that cannot be read: "skip" it with one warning for all, or "raise".
        crop_padding: Most pixels by which training images are shifted in each direction; what comes into view is black.
            4 is usual for classifiers of 32 x 32 pixels, 0 for none.

    Attributes:
        shape: ``(channels, size, size)``.
        num_classes: Number of labels, 0 where the source has none.
        class_names: By label, or None.
        unreadable: Reason by name of every image found unreadable so far, but for those met in loading processes.

    Raises:
        ValueError, TypeError: An argument out of range or of the wrong type; nothing at ``source``.

    Example:
        >>> data = Images(source="digits", size=8, batch_size=16, channels=1)
        >>> batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
        >>> batch["image"].shape, batch["image"].dtype, data.num_classes
        (torch.Size([16, 1, 8, 8]), torch.float32, 10)
    """

    owner = "Images"
    noun = "picture"

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
        self.source = check_source(self, source)
        self.size = check_int(self, "size", size, 4)
        self.batch_size = check_int(self, "batch_size", batch_size, 1)
        self.num_train = None if num_train is None else check_int(self, "num_train", num_train, 1)
        self.num_test = None if num_test is None else check_int(self, "num_test", num_test, 1)
        self.val_fraction = check_float(self, "val_fraction", val_fraction, minimum=0, maximum=0.5, open_maximum=True)
        self.seed = check_int(self, "seed", seed, 0)
        self.num_workers = check_int(self, "num_workers", num_workers, 0)
        self.flip = check_bool(self, "flip", flip)
        self.memory_limit_mb = check_int(self, "memory_limit_mb", memory_limit_mb, 0)
        self.channels = check_int(self, "channels", channels, 1)
        if channels not in (1, 3):
            raise InvalidValueError(f"`Images`: `channels` must be 1 (grey) or 3 (RGB). Got {channels}.")
        self.on_error = cast(Literal["skip", "raise"], check_choice(self, "on_error", on_error, ("skip", "raise")))
        self.crop_padding = check_int(self, "crop_padding", crop_padding, 0)
        self._source: Source | None = None
        self._records: dict[str, Records] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    @property
    def class_names(self) -> list[str] | None:
        return self._open().class_names

    @property
    def num_classes(self) -> int:
        return self._open().num_classes

    def prepare_data(self) -> None:
        """Fetches a Hub data set, in one process per machine."""
        if is_hub_name(self.source):
            self._open()

    def find(self) -> Source:
        """Looks through the source; nothing is decoded, and nothing divided that the source does not divide."""
        if self.source == "photos":
            return photos(self.size, self.num_train, self.num_test, self.val_fraction, self.seed)
        if self.source == "digits":
            return digits()
        if is_hub_name(self.source):
            from straightvq.data.hub import hub

            return hub(self.source)
        return local(Path(self.source).expanduser(), self.memory_limit_mb << 20)

    def _open(self) -> Source:
        """The source, looked through once and divided."""
        if self._source is None:
            source = self.find()
            num_train = None if self.source == "photos" else self.num_train  # crops are made, not left out
            self._records = divide(source, self.val_fraction, num_train, self.num_test, self.seed)
            self._source = source
        return self._source

    def _load(self, split: str) -> TensorSet | ImageStream:
        stream = ImageStream(self._records[split], self.size, self.channels, self.on_error)
        # Decided on all splits together, so that no stage finds another kind of set than the one before.
        if sum(map(len, self._records.values())) * math.prod(self.shape) > self.memory_limit_mb << 20:
            return stream
        return stream.decode_all(split)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Bytes to floating point in [0, 1]; shifts and flips in training.

        Shape:
            batch: ``image`` UInt8 ``(B, C, H, W)``, ``label`` and ``index`` Int64 ``(B)``; in training also ``epoch``.
            returns: ``image`` Float ``(B, C, H, W)``, ``label`` Int64 ``(B)``.
        """
        image = batch["image"].to(torch.float32) / 255
        if "epoch" in batch:
            augmentation = Augmentation(self.seed, batch["epoch"], batch["index"])
            if self.crop_padding:
                image = augmentation.shifted(image, self.crop_padding)
            if self.flip:
                image = torch.where(augmentation.mirrored()[:, None, None, None], image.flip(-1), image)
        result = {"image": image, "label": batch["label"]}
        if self.trainer is not None:
            # Lightning casts inputs for "bf16-true" and the like before this hook, when ours are still bytes.
            return cast(Batch, self.trainer.precision_plugin.convert_input(result))
        return result


def check_source(owner: Splits, source: Any, embedded: Sequence[str] = EMBEDDED, sources: str = SOURCES) -> str:
    """The argument ``source`` of a data module, which may also be one of the names ``embedded``."""
    if not isinstance(source, str):
        raise InvalidTypeError(f"`{type(owner).__name__}`: `source` must be a string. Got {source!r}.")
    if source not in embedded and not Path(source).expanduser().exists() and not is_hub_name(source, embedded):
        raise InvalidValueError(f"`{type(owner).__name__}`: `source` {source!r} does not exist. {sources}")
    return source


def is_hub_name(source: str, embedded: Sequence[str] = EMBEDDED) -> bool:
    """Whether this could be owner/name: one slash, nothing that only a path has, and no such path here."""
    if source in embedded or Path(source).expanduser().exists():
        return False
    owner, slash, name = source.partition("/")
    plain = owner[:1] not in (".", "~", "") and "/" not in name and "\\" not in source
    return bool(slash and name) and plain and not name.lower().endswith(".parquet")
