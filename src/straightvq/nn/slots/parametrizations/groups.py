"""Contiguous groups of codes with a scale of their own, and which scales are left alone."""

import math

from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.nn.slots.parametrizations.base import Parametrization

# Between its inverse and this the size of a scale is left alone.
LARGEST_SCALE = 1024.0


def check_groups(owner: Parametrization, size: int, groups: int, *, smallest: int) -> None:
    if size % groups or size // groups < smallest:
        least = f" with at least {smallest} codes each" if smallest > 1 else ""
        raise InvalidValueError(
            f"`{type(owner).__name__}`: `groups` must divide the codebook's size {size}{least}. Got {groups}."
        )


def by_group(table: Tensor, groups: int) -> Tensor:
    """(k, d) -> (groups, k / groups, d)."""
    return table.reshape(groups, -1, table.shape[1])


def is_steep(scale: Tensor) -> Tensor:
    """Whether the map, or its inverse, would carry numbers or gradients away."""
    return scale.abs().log().abs() > math.log(LARGEST_SCALE)
