"""Inits: where the codes start.

A data-dependent init runs in the first training forward, before the first assignment.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError
from straightvq.functional.kmeans import kmeans, spread_out
from straightvq.nn.part import Part, check_float, check_int, setting


class Init(Part):
    """Required: ``start``; ``fit`` as well where ``needs_data``.

    A data-dependent init sees the first training batch of all ranks. If that is smaller than the codebook, the rows
    that stand for no vector yet take vectors of the batches that follow.
    """

    needs_data = False

    @abstractmethod
    def start(self, size: int, dim: int) -> Tensor:
        """Effective codes (size, dim) before any data, from torch's global generator."""

    def fit(self, z: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Effective codes (size, dim) from vectors z (n, dim), n >= 1; no two rows equal.

        Where n is below the size the first n rows are to stand for the vectors.
        """
        raise InvalidTypeError(f"`{type(self).__name__}` takes no data.")


class NormalInit(Init):
    """Independent normal entries: ``N(0, std^2)``.

    Args:
        std: standard deviation of every entry. Codes far from the embeddings' scale start dead.

    Example:
        >>> NormalInit(std=0.1).start(4, 2).shape
        torch.Size([4, 2])
    """

    std: float = setting(check_float, minimum=0, open_minimum=True)

    def __init__(self, std: float = 1.0) -> None:
        super().__init__()
        self.std = std

    def start(self, size: int, dim: int) -> Tensor:
        return self.std * torch.randn(size, dim)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class UniformInit(Init):
    """Independent uniform entries in ``(-1/K, 1/K)``, the VQ-VAE's customary start.

    Example:
        >>> bool(UniformInit().start(4, 2).abs().max() <= 0.25)
        True
    """

    def start(self, size: int, dim: int) -> Tensor:
        return (2 * torch.rand(size, dim) - 1) / size


class SampleInit(Init):
    """Embeddings of the first batch, drawn without replacement; jittered copies where there are too few."""

    needs_data = True

    def start(self, size: int, dim: int) -> Tensor:
        return torch.randn(size, dim)

    def fit(self, z: Tensor, size: int, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(z), generator=generator).to(z.device)
        return spread_out(z[order[:size]], size, z, generator)


class KMeansInit(Init):
    """k-means centres of the first batch, k-means++ seeding.

    Args:
        iterations: Lloyd iterations; 10 comes within a few percent of convergence.
        trials: draws per seed, of which the best is kept; 4 and more end 1 to 2 % lower, for codebooks of up to some
            thousand codes.

    Source: k-means++ as in the experiments of arXiv 2305.08842.
    """

    needs_data = True

    iterations: int = setting(check_int, minimum=0)
    trials: int = setting(check_int, minimum=1)

    def __init__(self, iterations: int = 10, trials: int = 1) -> None:
        super().__init__()
        self.iterations = iterations
        self.trials = trials

    def start(self, size: int, dim: int) -> Tensor:
        return torch.randn(size, dim)

    def fit(self, z: Tensor, size: int, generator: torch.Generator) -> Tensor:
        return kmeans(z, size, iterations=self.iterations, generator=generator, trials=self.trials)

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}" + (f", trials={self.trials}" if self.trials > 1 else "")
