"""The assigner of index backpropagation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.functional.few import nearest_codes
from straightvq.functional.nearest import nearest_code
from straightvq.nn.slots.assigners.base import Assigner


class LargestProduct(Assigner):
    """The code with the largest inner product with the vector. The same in training and evaluation.

    It is the nearest code once every code gets one channel more, which makes them equally long. Long codes win: a code
    is not always its own best, and codes whose product is the largest with no vector stay dead. With `UnitNormCodes` it
    is ``Nearest("cosine")``.

    Source: arXiv 2412.02692; the extra channel as in Bachrach et al. 2014.

    Example:
        >>> LargestProduct()(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 2.0]])).tolist()
        [1]
    """

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(*_lengthened(z, codes))

    def nearest(self, z: Tensor, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The codes with the ``k`` largest products, and the distances to them with the channel more."""
        return nearest_codes(*_lengthened(z, codes), k)


def _lengthened(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one channel more, in which the codes are equally long."""
    squares = codes.square().sum(1, keepdim=True)
    return F.pad(z, (0, 1)), torch.cat([codes, (squares.max() - squares).sqrt()], 1)
