"""Assigners: which code a vector gets."""

from abc import abstractmethod

from torch import Tensor

from straightvq.functional.nearest import Distance, nearest_code
from straightvq.nn.part import Part


class Assigner(Part):
    """Required: ``forward``. The rule is the same in training and evaluation unless a subclass says otherwise."""

    @abstractmethod
    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        """z (n, d), codes (k, d) -> indices Int64 (n,)."""


class Nearest(Assigner):
    """The nearest code, in at least float32; ties go to the lowest index.

    Args:
        distance: ``"euclidean"``, or ``"cosine"`` for the smallest angle whatever the lengths.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
        >>> z = torch.tensor([[1.0, 2.0]])
        >>> Nearest()(z, codes).item(), Nearest("cosine")(z, codes).item()
        (0, 1)
    """

    def __init__(self, distance: Distance = "euclidean") -> None:
        super().__init__()
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"`Nearest`: `distance` must be 'euclidean' or 'cosine'. Got {distance!r}.")
        self.distance = distance

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(z, codes, distance=self.distance)

    def extra_repr(self) -> str:
        return f"distance={self.distance!r}"
