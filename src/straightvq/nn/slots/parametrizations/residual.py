"""Networks that change the codes."""

from abc import abstractmethod

from torch import Tensor, nn

from straightvq.nn.slots.inits import Init
from straightvq.nn.slots.parametrizations.base import Parametrization


class ResidualMap(Parametrization):
    """``code = raw + change(raw)`` with a network that starts at zero: the codes start as the init has them.

    There is no inverse: inits from data, resets, updates that write codes and ``set_codes`` are refused. Required:
    ``_make`` and ``_change``.
    """

    @property
    def is_learned(self) -> bool:
        return True

    def start(self, init: Init, size: int, dim: int) -> Tensor:
        return init.start(size, dim)  # no change yet

    def forward(self, raw: Tensor) -> Tensor:
        return raw + self._change(raw)

    @abstractmethod
    def _change(self, raw: Tensor) -> Tensor:
        """What is added to the raw table (k, d); zeros at the start."""


def zero_linear(before: int, after: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(before, after)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
