"""Loaders that can be left in the middle of an epoch and taken up again."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from straightvq.data.sets import Batch


class EpochSampler(StatefulDistributedSampler):
    """A random order that depends on (seed, epoch) only, dealt out in turn to ``num_replicas`` ranks.

    Rank r of p takes elements r, r + p, ... of the order: p ranks with batches of B / p see in each step what
    one process sees with batches of B. The order is padded with its own beginning until it divides evenly.
    Being a `DistributedSampler`, it is left alone by Lightning, which calls its `set_epoch`.

    Args:
        dataset: Anything with a length.
        seed: Integer >= 0.
        num_replicas: Number of data-parallel ranks.
        rank: Of this process, in ``[0, num_replicas)``.

    Example:
        >>> sampler = EpochSampler(range(4), seed=0)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> sorted(sampler) == sorted(first), list(sampler) == list(sampler)
        (True, True)
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        # torch seeds with `seed + epoch`: without the factor, seed 1 would begin with the second epoch of
        # seed 0.
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed * 1_000_003, drop_last=False)

    def state_dict(self) -> dict[str, Any]:
        # The epoch belongs to the position: on resume the loader is started before Lightning announces the
        # epoch.
        return {**super().state_dict(), "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.set_epoch(state_dict["epoch"])


def train_loader(
    dataset: Dataset[Batch], batch_size: int, sampler: EpochSampler, num_workers: int = 0
) -> StatefulDataLoader:
    """A shuffling loader whose position Lightning saves: the fit loop's checkpoint holds the state of every
    loader that has `state_dict` and `load_state_dict`. The last batch of an epoch may be smaller."""
    return StatefulDataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collated,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


def eval_loader(dataset: Dataset[Batch], batch_size: int, num_workers: int = 0) -> DataLoader[Batch]:
    """A loader in the order of the set. It has no position to save: evaluation starts over."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collated,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


def _collated(batch: Any) -> Any:
    """The sets return whole batches (`__getitems__`)."""
    return batch
