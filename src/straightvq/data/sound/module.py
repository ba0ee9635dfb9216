"""The Lightning data module for sound."""

from pathlib import Path
from typing import Literal, cast

from straightvq.data.base import Splits
from straightvq.data.module import check_source, is_hub_name
from straightvq.data.sets import Batch, Records, Source
from straightvq.data.sound.clips import ClipSet, NumberedSampler
from straightvq.data.sound.sources import SOURCES, hub_sound, local_sound
from straightvq.data.sound.vowels import vowels
from straightvq.data.split import divide
from straightvq.nn.part import check_choice, check_float, check_int

EMBEDDED = ("vowels",)


class Sound(Splits):
    """Clips of one channel in batches ``{"audio": Float (B, 1, T), "length": Int64 (B), "label": Int64 (B)}``.

    Training gives random pieces of at most ``crop`` samples, evaluation whole clips. Each batch is padded with zeros to
    its longest clip; ``length`` says where each ends, in samples. Full scale is 1. Several channels are mixed down to
    their mean; other rates are resampled to ``sample_rate`` by soxr, up or down. Order and pieces depend on (seed,
    epoch) only, and their position is part of Lightning's checkpoints. Prediction runs over the test split.

    No clip is in both the test and the training split. A split that the source lacks is ``val_fraction`` of the
    training one, chosen by a hash of seed and name: give a test run the ``seed`` of its training.

    Args:
        source: "vowels" (synthetic, see `straightvq.data.sound.vowels`), a folder of sound files (FLAC, WAV, OGG, AIFF,
            MP3; class = first subfolder; ``train/``, ``val/``, ``test/`` are splits; hidden files and what is no sound
            are ignored), a folder of Parquet files, a .parquet file (column ``audio``, struct<bytes, path>, as Hugging
            Face writes it), or owner/name on the Hugging Face Hub.
        sample_rate: Samples per second of all clips, >= 100.
        crop: Longest piece in training, in samples.
        batch_size: Clips per batch and process. The last batch of an epoch may be smaller.
        num_train: Most clips for training and for validation out of them; None for all (vowels: 400).
        num_test: Most clips for testing; None for all (vowels: 60).
        val_fraction: Share of the training clips for validation where the source has no such split, in [0, 0.5).
        seed: Random seed of splits, pieces and order.
        num_workers: Loading processes; 0 is best for sets in memory.
        memory_limit_mb: Splits of at most so many MiB of samples are decoded once and kept, others as they are read.
        on_error: What to do with a clip that cannot be read: "skip" it with one warning for all, or "raise".

    Attributes:
        num_classes: Number of labels, 0 where the source has none.
        class_names: By label, or None.
        unreadable: Reason by name of every clip found unreadable so far, but for those met in loading processes.

    Raises:
        ValueError, TypeError: An argument out of range or of the wrong type; nothing at ``source``.

    Example:
        >>> data = Sound(source="vowels", num_train=8, num_test=4, batch_size=4)
        >>> batch = next(iter(data.test_dataloader()))
        >>> batch["audio"].shape[:2], int(batch["length"].max()) == batch["audio"].shape[2], data.num_classes
        (torch.Size([4, 1]), True, 10)
    """

    owner = "Sound"
    noun = "clip"
    sampler = NumberedSampler

    def __init__(
        self,
        source: str = "vowels",
        sample_rate: int = 8000,
        crop: int = 4096,
        batch_size: int = 16,
        num_train: int | None = None,
        num_test: int | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        memory_limit_mb: int = 2048,
        on_error: Literal["skip", "raise"] = "skip",
    ) -> None:
        super().__init__()
        self.source = check_source(self, source, EMBEDDED, SOURCES)
        self.sample_rate = check_int(self, "sample_rate", sample_rate, 100)
        self.crop = check_int(self, "crop", crop, 1)
        self.batch_size = check_int(self, "batch_size", batch_size, 1)
        self.num_train = None if num_train is None else check_int(self, "num_train", num_train, 1)
        self.num_test = None if num_test is None else check_int(self, "num_test", num_test, 1)
        self.val_fraction = check_float(self, "val_fraction", val_fraction, minimum=0, maximum=0.5, open_maximum=True)
        self.seed = check_int(self, "seed", seed, 0)
        self.num_workers = check_int(self, "num_workers", num_workers, 0)
        self.memory_limit_mb = check_int(self, "memory_limit_mb", memory_limit_mb, 0)
        self.on_error = cast(Literal["skip", "raise"], check_choice(self, "on_error", on_error, ("skip", "raise")))
        self._source: Source | None = None
        self._records: dict[str, Records] = {}

    @property
    def class_names(self) -> list[str] | None:
        return self._open().class_names

    @property
    def num_classes(self) -> int:
        return self._open().num_classes

    def prepare_data(self) -> None:
        """Fetches a Hub data set, in one process per machine."""
        if is_hub_name(self.source, EMBEDDED):
            self._open()

    def find(self) -> Source:
        """Looks through the source; nothing is decoded, and nothing divided that the source does not divide."""
        if self.source in EMBEDDED:
            return vowels(self.num_train, self.num_test, self.seed)
        if is_hub_name(self.source, EMBEDDED):
            return hub_sound(self.source)
        return local_sound(Path(self.source).expanduser(), self.memory_limit_mb << 20)

    def _open(self) -> Source:
        if self._source is None:
            source = self.find()
            self._records = divide(source, self.val_fraction, self.num_train, self.num_test, self.seed)
            self._source = source
        return self._source

    def _load(self, split: str) -> ClipSet:
        crop = self.crop if split == "train" else None
        clips = ClipSet(self._records[split], self.sample_rate, crop, self.seed, self.on_error)
        clips.keep(split, self.memory_limit_mb << 20)
        return clips

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Leaves out what is the loader's own."""
        return {name: value for name, value in batch.items() if name != "epoch"}
