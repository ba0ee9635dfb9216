"""Codes on the unit sphere."""

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.nn.slots.parametrizations.base import Parametrization

# A raw row below this length gets the gradient of this length from the normalisation.
_SHORTEST = 1e-2


class UnitNormCodes(Parametrization):
    """Codes on the unit sphere: ``code = raw / ||raw||``. Written vectors are normalised.

    Use it with the ``UnitNorm`` transform, which does the same to the embeddings. A zero vector has no direction: its
    row gets one that no other row gets. A row that an optimizer drives below a length of 0.01 keeps its direction and
    gets the gradient of that length, instead of one that grows without bound.

    Source: Yu et al. 2021 (arXiv 2110.04627); "+ l2" in the tables of arXiv 2305.08842.

    Example:
        >>> import torch
        >>> UnitNormCodes()(torch.tensor([[3.0, 4.0]])).norm().item()
        1.0
    """

    def forward(self, raw: Tensor) -> Tensor:
        fixed = raw.detach()
        length = fixed.norm(dim=1, keepdim=True)
        lifted = torch.where(length > 0, fixed * (_SHORTEST / length).clamp(min=1), _own_directions(fixed))
        return F.normalize(raw + (lifted - fixed), dim=1)  # `raw` to the bit where it is not short

    def inverse(self, codes: Tensor) -> Tensor:
        # Squares of the largest coordinates neither vanish nor overflow then.
        largest = codes.abs().amax(1, keepdim=True)
        return F.normalize(torch.where(largest > 0, codes / largest, _own_directions(codes)), dim=1)


def _own_directions(rows: Tensor) -> Tensor:
    """A direction (k, d) for each of the rows, no two of them parallel: cosines of consecutive numbers."""
    return torch.arange(1, rows.numel() + 1, dtype=rows.dtype, device=rows.device).cos().view(rows.shape)
