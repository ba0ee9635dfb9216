"""The base class of parametrizations."""

from abc import abstractmethod

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError
from straightvq.nn.batch import Batch
from straightvq.nn.part import Part
from straightvq.nn.ranks import Message
from straightvq.nn.slots.inits import Init


class Parametrization(Part):
    """Required: ``forward``, and ``inverse`` if there is one; ``observe`` and ``remember`` if it follows the data;
    ``raw_shape`` and ``start_raw`` if the raw table has another shape than the codes.

    Without an inverse nobody can write codes: inits from data, resets, writing updates and ``set_codes`` are refused.
    """

    # Whether every table of codes has a raw table that gives it: what a later part of a chain may rely on.
    is_onto = False

    @property
    def has_inverse(self) -> bool:
        """Whether ``inverse`` is given."""
        return type(self).inverse is not Parametrization.inverse

    @property
    def is_learned(self) -> bool:
        """Whether it has parameters that need a gradient."""
        return any(True for _ in self.parameters())

    @property
    def freezes_raw(self) -> bool:
        """Whether the raw table stays as the init, or ``set_codes``, leaves it: what moves it is refused."""
        return False

    def raw_shape(self, size: int, dim: int) -> tuple[int, ...]:
        """Shape of the raw table for codes (size, dim)."""
        return size, dim

    def start_raw(self, size: int, dim: int) -> Tensor:
        """Raw table to start from where there is no inverse: normal numbers, of torch's global generator."""
        return torch.randn(self.raw_shape(size, dim))

    def start(self, init: Init, size: int, dim: int) -> Tensor:
        """Raw table to start from, before any data."""
        return self.inverse(init.start(size, dim)) if self.has_inverse else self.start_raw(size, dim)

    def bind(self, size: int, dim: int) -> None:
        self._check_size(size)
        self._bind_once()
        self._make(size, dim)

    def _check_size(self, size: int) -> None:
        """Refuses a size that the map cannot have, before anything is made."""

    def _make(self, size: int, dim: int) -> None:
        """Makes parameters and buffers; called once."""

    @abstractmethod
    def forward(self, raw: Tensor) -> Tensor:
        """Raw table -> effective codes (k, d), differentiable in the table and the parameters."""

    def inverse(self, codes: Tensor) -> Tensor:
        """Effective codes (k, d) -> the raw table that gives them, under the map now in force."""
        raise InvalidTypeError(f"`{type(self).__name__}` has no inverse.")

    def adopt(self, codes: Tensor) -> Tensor:
        """Raw table for a whole new set of codes (init, import); may change the map so that it fits them."""
        return self.inverse(codes)

    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Raw table that gives the same codes, before ``rows``, Bool (k,), are written through the inverse.

        May change the map with it, if its inverse has become too steep.
        """
        return raw

    def observe(self, batch: Batch, raw: Tensor) -> None:
        """Sees the batch before the codes are read. Training only."""

    def remember(self, z: Tensor, indices: Tensor, message: Message) -> None:
        """Sees an assignment of the batch, for the next step; the last one of a step counts. Training only.

        What the ranks have to tell each other travels in ``message``, with the counts of the same assignment.
        """
