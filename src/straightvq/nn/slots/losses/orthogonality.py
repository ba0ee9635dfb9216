"""The orthogonality penalty: codes that point in different directions."""

import torch
from torch import Tensor

from straightvq.functional.sums import code_sums
from straightvq.nn.batch import Context
from straightvq.nn.part import check_bool, setting
from straightvq.nn.ranks import sum_over_ranks
from straightvq.nn.slots.losses.base import Loss, has_any, needed


class OrthogonalityLoss(Loss):
    """Mean squared cosine of the angle between two different codes: ``mean_{i != j} cos(c_i, c_j)^2``.

    Exact over all pairs: with unit codes as rows of U, the sum over all of them is ``||U^T U||^2``, a d x d matrix. So
    no subset of the codes has to be drawn, and memory is O(k d + d^2). With more codes than dimensions it cannot reach
    0, but not below ``(k / d - 1) / (k - 1)``. The same in training and evaluation.

    Args:
        weight: factor in ``QuantizerOutput.loss``; peers use 1 to 10.
        active_only: whether only codes count that got a vector in this step (on any rank, in training).

    Raises:
        ValueError: from a layer whose codes take no gradient of a loss, such as those of ``EMAUpdate``.

    Source: arXiv 2112.00384, orthogonal regularization of the codebook. Deviation: the mean is over pairs, not over all
    entries of the matrix less the diagonal's.

    Example:
        >>> import torch
        >>> from straightvq import Codebook, VectorQuantizer
        >>> layer = VectorQuantizer(2, Codebook(3), losses=[OrthogonalityLoss()])
        >>> layer.set_codes(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))  # squared cosines 0, 0 and 1
        >>> round(layer(torch.zeros(1, 2)).terms["orthogonality"].item(), 4)
        0.3333
    """

    name = "orthogonality"
    trains = "codes"
    takes_context = needs_codes = True

    active_only: bool = setting(check_bool)

    def __init__(self, weight: float = 1.0, active_only: bool = False) -> None:
        super().__init__(weight)
        self.active_only = active_only

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None = None) -> Tensor:
        context = needed(self, context)
        codes = context.codes
        unit = torch.nn.functional.normalize(codes, dim=1)
        counts = torch.ones_like(unit[:, 0])
        if self.active_only:
            group = False if context.batch is None else context.batch.group
            found = code_sums(z.detach()[:, :0], context.indices, len(codes))[0]
            counts = (sum_over_ranks(found, group) > 0).to(unit.dtype)
            unit = unit * counts[:, None]
        # The diagonal of the matrix of cosines is 1, or 0 for a code of length 0 and for one that does not count.
        own, number = unit.square().sum(1).square().sum(), counts.sum()
        mean = ((unit.T @ unit).square().sum() - own) / (number * (number - 1)).clamp(min=1)
        return torch.where(has_any(z, valid, context), mean, 0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, active_only={self.active_only}"
