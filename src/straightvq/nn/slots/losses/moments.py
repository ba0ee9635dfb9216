"""A penalty on embeddings whose mean or variance drifts."""

import torch
from torch import Tensor

from straightvq.nn.batch import Context
from straightvq.nn.part import check_float, setting
from straightvq.nn.slots.losses.base import Loss, means_over_ranks, needed


class MomentLoss(Loss):
    """Holds the embeddings at mean 0 and variance 1: ``mean_d m_d^2 + variance * mean_d (s_d - 1)^2``.

    ``m`` and ``s`` are mean and standard deviation (biased) of each channel over the valid vectors, in training of all
    ranks (the loss is then the same number on each), in evaluation of this process. It needs no codes and trains none.

    Args:
        weight: factor in ``QuantizerOutput.loss``; the paper's weight of the mean, 0.1.
        variance: weight of the variance's part relative to the mean's, at least 0; the paper's is 0.07 / 0.1.

    Source: arXiv 2602.17133, the VectorNorm loss of VP-VAE: its two weights. The squares are
    ours: both parts are in the unit of a squared distance, as the other losses.

    Example:
        >>> import torch
        >>> from straightvq import Codebook, EMAUpdate, VectorQuantizer
        >>> layer = VectorQuantizer(1, Codebook(2, update=EMAUpdate()), losses=[MomentLoss(variance=0.5)])
        >>> layer(torch.tensor([[1.0], [5.0]])).terms["moment"].item()  # mean 3, deviation 2: 9 + 0.5 * 1
        9.5
    """

    name = "moment"
    trains = "encoder"
    takes_context = True

    variance: float = setting(check_float, minimum=0)

    def __init__(self, weight: float = 0.1, variance: float = 0.7) -> None:
        super().__init__(weight)
        self.variance = variance

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None = None) -> Tensor:
        context = needed(self, context)
        weight = z.new_ones(len(z)) if valid is None else valid.to(z.dtype)
        group, count = False if context.batch is None else context.batch.group, weight.sum()
        mean, is_any = means_over_ranks([weight @ z, count], count, group)  # 1, or 0 where there are no vectors
        # No gradient passes through the mean in a variance: the deviations from it sum to 0.
        (variance,) = means_over_ranks([weight @ (z - mean.detach()).square()], count, group)
        deviation = variance.clamp(min=torch.finfo(z.dtype).eps ** 2).sqrt()  # whose gradient at 0 is then 0
        return mean.square().mean() + self.variance * is_any * (deviation - 1).square().mean()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, variance={self.variance}"
