"""Loaders that can be left in the middle of an epoch and taken up again.

`torchdata.stateful_dataloader` resumes exactly only within an epoch under Lightning 2.6: a state saved after an epoch's
last batch makes Lightning run an empty epoch, one saved after `fit` is that of a fresh iterator, and worker processes
read ahead before Lightning says which epoch it resumes. With an order that depends on (seed, epoch), two numbers
suffice.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_convert

from straightvq.data.sets import Batch


class EpochSampler(DistributedSampler[int]):
    """A random order that depends on (seed, epoch) only, dealt out in turn to ``num_replicas`` ranks.

    Rank r of p takes elements r, r + p, ...: p ranks with batches of B / p see in each step what one process sees with
    batches of B. The order is padded with its own beginning until it divides evenly. Lightning leaves a
    `DistributedSampler` in place.

    ``rank`` is that of this process, in ``[0, num_replicas)``; the seed is an integer >= 0.

    Example:
        >>> sampler = EpochSampler(range(4), seed=0)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> sorted(sampler) == sorted(first), list(sampler) == list(sampler)
        (True, True)
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        # torch seeds with `seed + epoch`: without the factor, seed 1 would begin with epoch 1 of seed 0.
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed * 1_000_003, drop_last=False)
        self.skip = 0

    def __iter__(self) -> Iterator[int]:
        """The order, less the first ``skip`` elements of this rank."""
        return iter(list(super().__iter__())[self.skip :])


class TrainLoader(DataLoader[Batch]):
    """A loader over an `EpochSampler` that counts its own epochs and remembers its place.

    Lightning saves and loads the state of every loader that has `state_dict` and `load_state_dict`. Each new pass is
    the next epoch, said by each batch; Lightning's own count, announced by `set_epoch`, is one off after some restarts
    and is overruled. Lightning calls the constructor, torch's own, anew for ``overfit_batches``, with another sampler.

    Attributes:
        epoch: Of the last batch served; before the first, -1 or one less than where to begin.
        samples: Pictures served in this epoch, on all ranks together.
        limit: Batches after which a pass counts as complete, None for all: the Trainer's ``limit_train_batches``.
    """

    epoch = -1
    samples = 0
    limit: int | None = None
    _resumed = False

    def __iter__(self) -> Any:
        """Yields the batches of an epoch; reading begins with the first of them."""
        own = self.sampler if isinstance(self.sampler, EpochSampler) else None
        ranks = 1 if own is None else own.num_replicas
        per_step = ranks * (self.batch_size or 1)
        whole = len(self) if self.limit is None else min(len(self), self.limit)
        if own is None or not self._resumed or self.samples >= whole * per_step:
            self.epoch, self.samples = self.epoch + 1, 0
        self._resumed = False
        if own is not None:
            own.set_epoch(self.epoch)
            own.skip = self.samples // ranks
        for batch in super().__iter__():
            self.samples += per_step
            yield {**batch, "epoch": self.epoch}

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "samples": self.samples}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.epoch, self.samples = state_dict["epoch"], state_dict["samples"]
        self._resumed = self.epoch >= 0  # a state from before the first batch is a beginning


def train_loader(dataset: Dataset[Batch], batch_size: int, sampler: EpochSampler, num_workers: int = 0) -> TrainLoader:
    """Shuffled batches; the last one of an epoch may be smaller."""
    return TrainLoader(dataset, batch_size=batch_size, sampler=sampler, **_options(num_workers))


def eval_loader(dataset: Dataset[Batch], batch_size: int, num_workers: int = 0) -> DataLoader[Batch]:
    """Batches in the order of the set. There is no place to remember: evaluation starts over."""
    return DataLoader(dataset, batch_size=batch_size, **_options(num_workers))


def _options(num_workers: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "collate_fn": default_convert,  # the sets return whole batches
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": num_workers > 0,
    }
