"""No map."""

from torch import Tensor

from straightvq.nn.slots.parametrizations.base import Parametrization


class Direct(Parametrization):
    """The raw table is the codebook.

    Example:
        >>> import torch
        >>> Direct()(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    is_onto = True

    def forward(self, raw: Tensor) -> Tensor:
        return raw

    def inverse(self, codes: Tensor) -> Tensor:
        return codes
