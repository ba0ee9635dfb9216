"""Gaussian vectors whose mean and spread move while a codebook is trained: a test of tracking, without a network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from straightvq.data.base import Splits
from straightvq.data.loader import EpochSampler
from straightvq.nn.part import check_float, check_int

MEAN, STD = 8.0, 3.0  # where the drift ends; it begins at 0 and 1
# Seeds of the parts of a set, far from one another.
_TRAIN, _VALIDATION, _TEST = 0, 1, 2
_SEEDS, _BLOCKS = 1_000_003, 4_000_037


def drift(share: float, mean: float = MEAN, std: float = STD) -> tuple[float, float]:
    """Mean and standard deviation at a share, 0 to 1, of a straight way from 0 and 1.

    Example:
        >>> drift(0.5)
        (4.0, 2.0)
    """
    return mean * share, 1 + (std - 1) * share


def gaussian(count: int, dim: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Vectors Float (count, dim) with independent coordinates of that mean and standard deviation."""
    return mean + std * torch.randn(count, dim, generator=generator)


class InOrder(EpochSampler):
    """The order of the set itself: a drift has a direction."""

    def __init__(self, dataset: Dataset[Any], seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, seed, num_replicas, rank)
        self.shuffle = False


class GaussianRows(Dataset[dict[str, Tensor]]):
    """Vectors that are drawn when they are asked for, block by block; ``moments`` gives a block's mean and spread.

    A vector depends on the seed and its place alone, whoever asks for it and when.
    """

    def __init__(
        self, blocks: int, block: int, dim: int, seed: int, moments: Callable[[int], tuple[float, float]]
    ) -> None:
        self.blocks, self.block, self.dim, self.seed, self.moments = blocks, block, dim, seed, moments
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return self.blocks * self.block

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.__getitems__([i]).items()}

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        index = torch.as_tensor(rows, dtype=torch.int64)
        numbers = index // self.block
        vectors = torch.empty(len(index), self.dim)
        for number in numbers.unique().tolist():
            generator = torch.Generator().manual_seed(self.seed + number)
            drawn = gaussian(self.block, self.dim, *self.moments(number), generator)
            vectors[numbers == number] = drawn[index[numbers == number] % self.block]
        return {"vector": vectors, "index": index}


class MovingVectors(Splits):
    """Batches ``{"vector": Float (B, dim), "index": Int64 (B)}`` whose distribution drifts while they are served.

    Coordinates are independent and normal. From the first to the last step of the epoch their mean goes from 0 to
    ``mean`` and their standard deviation from 1 to ``std``, both in a straight line; validation and test are fresh
    vectors of the last step's distribution. Train for one epoch. Seeds, and the three splits, draw different vectors.

    Args:
        dim: Width of a vector.
        steps: Batches of the epoch, at least 2.
        batch_size: Vectors per step.
        num_val: Vectors for validation, rounded up to whole batches.
        num_test: Vectors for testing, rounded up to whole batches.
        mean: Where the mean ends.
        std: Where the standard deviation ends, > 0.
        seed: Random seed of the vectors.
        num_workers: Loading processes.

    Raises:
        ValueError, TypeError: An argument out of range or of the wrong type.

    Source: arXiv 2506.15078, section 5.1, whose Gaussian stands still.

    Example:
        >>> data = MovingVectors(dim=2, steps=3, batch_size=1000, mean=8.0, std=3.0)
        >>> [round(batch["vector"].mean().item()) for batch in data.train_dataloader()]
        [0, 4, 8]
    """

    owner = "MovingVectors"
    noun = "vector"
    sampler = InOrder
    source = "moving"
    val_fraction = 0.0

    def __init__(
        self,
        dim: int = 8,
        steps: int = 500,
        batch_size: int = 4096,
        num_val: int = 16_384,
        num_test: int = 65_536,
        mean: float = MEAN,
        std: float = STD,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.dim = check_int(self, "dim", dim, 1)
        self.steps = check_int(self, "steps", steps, 2)
        self.batch_size = check_int(self, "batch_size", batch_size, 1)
        self.num_val = check_int(self, "num_val", num_val, 1)
        self.num_test = check_int(self, "num_test", num_test, 1)
        self.mean = check_float(self, "mean", mean)
        self.std = check_float(self, "std", std, minimum=0, open_minimum=True)
        self.seed = check_int(self, "seed", seed, 0)
        self.num_workers = check_int(self, "num_workers", num_workers, 0)

    def moments(self, step: int) -> tuple[float, float]:
        """Mean and standard deviation of a step, 0 to ``steps - 1``."""
        return drift(step / (self.steps - 1), self.mean, self.std)

    def _open(self) -> None: ...

    def _load(self, split: str) -> GaussianRows:
        if split == "train":
            return self._rows(self.steps, _TRAIN, self.moments)
        count, part = (self.num_val, _VALIDATION) if split == "validation" else (self.num_test, _TEST)
        return self._rows(-(-count // self.batch_size), part, lambda _: (self.mean, self.std))

    def _rows(self, blocks: int, part: int, moments: Callable[[int], tuple[float, float]]) -> GaussianRows:
        return GaussianRows(blocks, self.batch_size, self.dim, (self.seed * _SEEDS + part) * _BLOCKS, moments)
