"""What data modules have in common whose source is divided into splits: loaders that can be taken up again."""

import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import lightning
import torch
from torch.utils.data import DataLoader

from straightvq.data.loader import EpochSampler, TrainLoader, eval_loader, train_loader
from straightvq.data.sets import Batch
from straightvq.errors import InvalidValueError

_STAGES: dict[str | None, tuple[str, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
    None: ("train", "validation", "test"),
}


class Splits(lightning.LightningDataModule, ABC):
    """Base of the data modules. A subclass sets the attributes below, opens its source and loads its splits.

    Attributes:
        owner: Its name, in messages.
        noun: What one example is called.
        sampler: Of the training loader.
        unreadable: Reason by name of every example found unreadable so far, but for those met in loading processes.
    """

    owner: ClassVar[str]
    noun: ClassVar[str]
    sampler: ClassVar[type[EpochSampler]] = EpochSampler
    source: str
    batch_size: int
    val_fraction: float
    seed: int
    num_workers: int

    def __init__(self) -> None:
        super().__init__()
        self._sets: dict[str, Any] = {}

    @abstractmethod
    def _open(self) -> Any:
        """Looks through the source, once; nothing is decoded."""

    @abstractmethod
    def _load(self, split: str) -> Any:
        """The data set of a split, which counts its ``unreadable`` examples."""

    @property
    def unreadable(self) -> dict[str, str]:
        return {name: why for examples in self._sets.values() for name, why in examples.unreadable.items()}

    def setup(self, stage: str | None = None) -> None:
        """Finds the examples and decodes the splits of ``stage`` ("fit", "validate", "test", "predict", None: all),
        unless they are too large to keep. What is there already is not read again."""
        self._open()
        wanted = [split for split in _STAGES[stage] if split not in self._sets]
        self._sets |= {split: self._load(split) for split in wanted}
        bad = {name: why for split in wanted for name, why in self._sets[split].unreadable.items()}
        if bad:
            named = "; ".join(f"{name} ({why})" for name, why in list(bad.items())[:5])
            more = f"; and {len(bad) - 5} more, in `{self.owner}.unreadable`" if len(bad) > 5 else ""
            warnings.warn(f"`{self.owner}`: skipped {len(bad)} unreadable file(s): {named}{more}.", stacklevel=2)
        empty = [split for split in wanted if len(self._sets[split]) == 0]
        if "train" in empty:
            raise InvalidValueError(f"`{self.owner}`: none of the training files of {self.source!r} can be read.")
        if "validation" in empty and self.val_fraction:
            share = f"(val_fraction={self.val_fraction})"
            said = f"no {self.noun} of {self.source!r} falls into the validation split {share}"
            warnings.warn(f"`{self.owner}`: {said}: there will be no validation.", stacklevel=2)

    def train_dataloader(self) -> TrainLoader:
        return self._train_loader(self._set("train", "fit"), self.num_workers)

    def _train_loader(self, dataset: Any, num_workers: int) -> TrainLoader:
        sampler = self.sampler(dataset, self.seed, **self._ranks())
        loader = train_loader(dataset, self.batch_size, sampler, num_workers)
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
                f"`{self.owner}`: {self.source!r} has no test {self.noun}s. Give it a test split, or a larger "
                f"`val_fraction` (a missing split gets that share). Got {self.val_fraction}."
            )
        return eval_loader(dataset, self.batch_size, self.num_workers)

    predict_dataloader = test_dataloader

    def _set(self, split: str, stage: str) -> Any:
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
