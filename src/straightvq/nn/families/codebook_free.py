"""What quantizers without a table share: a code is computed from the digits of its index."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.nn.batch import Context
from straightvq.nn.quantizer import Quantizer, Step, where_valid
from straightvq.nn.ranks import Group, SharedGroup

# An index is an Int64, and two of its values are spoken for: the sign, and room for sums of indices.
_MOST_BITS = 62


class CodebookFree(Quantizer):
    """Base of quantizers that round every channel by itself; the index is a number with one digit per channel.

    Required: ``digits``, ``index``, ``split`` and ``values`` below, and ``bound`` where vectors are bounded first.

    Attributes:
        process_group: ranks that train together: None for the default group of ``torch.distributed`` if there is one,
            a group for that one, False for this process alone. Asked for at every call.
    """

    process_group: Group = None
    _is_bound = False

    @abstractmethod
    def digits(self, z: Tensor) -> Tensor:
        """Bounded rows (n, d) -> the digit of every channel (n, d), of any dtype and counted from anywhere."""

    @abstractmethod
    def index(self, digits: Tensor) -> Tensor:
        """Digits (n, d) -> indices Int64 (n,)."""

    @abstractmethod
    def split(self, indices: Tensor) -> Tensor:
        """Indices Int64 (n,) -> digits (n, d); any for -1."""

    @abstractmethod
    def values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        """Digits (n, d) -> codes (n, d)."""

    def assign(self, z: Tensor) -> Tensor:
        return self.index(self.digits(z))

    def lookup(self, indices: Tensor) -> Tensor:
        return self.values(self.split(indices), self.settings.dtype)

    def step(self, x: Tensor, valid: Tensor | None) -> Step:
        """As in ``Quantizer``, without the way to the index and back."""
        z = self.bound(x)
        digits = self.digits(z.detach())
        indices = where_valid(self.index(digits), valid)
        code = self.values(digits, z.dtype)
        loss, terms = self._measure(z, code, valid, self._context(z, indices))
        return Step(z, indices, code, loss, terms)

    def _context(self, z: Tensor, indices: Tensor) -> Context | None:
        """For losses that look at more than vectors and their codes."""
        return None

    def _work_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(super()._work_dtype(dtype), self.settings.dtype)

    def _check_width(self, argument: str, given: int) -> None:
        """Refuses a number of channels that the transform does not lead to."""
        width = self.transform.codebook_dim(self.dim)
        if width != given:
            hint = f"transform=Projection({given})" if given < self.dim else f"a layer with dim={given}"
            self.transform._unbind()  # a failed construction leaves its parts free
            raise InvalidValueError(
                f"`{type(self).__name__}`: `{argument}` must have one entry for each of the {width} channels that "
                f"come out of the transform. Got {given}; use {hint}."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "process_group": SharedGroup(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "process_group": state["process_group"].group})


def check_bits(owner: Quantizer, argument: str, codebook_size: int) -> None:
    """Refuses more codes than an index can tell apart."""
    if codebook_size > 1 << _MOST_BITS:
        raise InvalidValueError(
            f"`{type(owner).__name__}`: `{argument}` must give at most 2^{_MOST_BITS} codes, which an Int64 index "
            f"tells apart. Got 2^{codebook_size.bit_length() - 1} or more; use several quantizers side by side."
        )
