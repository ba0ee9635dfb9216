"""The two halves of the VQ-VAE's loss: embeddings to their codes, codes to their embeddings."""

import torch.nn.functional as F
from torch import Tensor

from straightvq.nn.slots.losses.base import Loss, masked_mean


class CommitmentLoss(Loss):
    """Pulls the embeddings to their codes: ``mean((z - sg[code])^2)``.

    Args:
        weight: 0.25 as in the VQ-VAE. In the paper's terms it is ``alpha * (1 - beta)`` (alpha 5 and beta 0.9 to
            0.995 there, which is 0.5 to 0.025). Useful range 0.02 to 1: it is the setting that matters most for a
            plain VQ layer.

    Source: arXiv 1711.00937 eq. (3); arXiv 2305.08842, first half of the commitment loss.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 0.0], [3.0, 1.0]], requires_grad=True)
        >>> loss = CommitmentLoss()(z, torch.tensor([[1.0, 0.0], [3.0, 3.0]]), None)
        >>> loss.backward()
        >>> loss.item(), z.grad.tolist()
        (1.25, [[-0.5, 0.0], [0.0, -1.0]])
    """

    name = "commitment"
    trains = "encoder"

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__(weight)

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        return _mean_square(z, code.detach(), valid)

    def per_vector(self, z: Tensor, code: Tensor) -> Tensor:
        return (z - code.detach()).square().mean(1)


class CodebookLoss(Loss):
    """Pulls the codes to their embeddings: ``mean((code - sg[z])^2)``.

    What it trains depends on the codebook's update: with ``GradientUpdate`` the raw table and the parametrization,
    with ``AlternatedUpdate`` the parametrization only, with ``EMAUpdate`` nothing (it is a reported value).

    Args:
        weight: 1 as in the VQ-VAE; the paper's ``alpha * beta``.

    Source: arXiv 1711.00937 eq. (3); arXiv 2305.08842, second half of the commitment loss.

    Example:
        >>> import torch
        >>> code = torch.tensor([[1.0, 0.0], [3.0, 3.0]], requires_grad=True)
        >>> CodebookLoss()(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), code, None).backward()
        >>> code.grad.tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """

    name = "codebook"
    trains = "codes"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        return _mean_square(code, z.detach(), valid)

    def per_vector(self, z: Tensor, code: Tensor) -> Tensor:
        return (code - z.detach()).square().mean(1)


def _mean_square(x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """``masked_mean((x - target)^2)`` in one pass over each, forward and backward."""
    if valid is None and x.numel():
        return F.mse_loss(x, target).clone()  # on CPUs torch's scalar keeps the storage of all the squares
    return masked_mean(F.mse_loss(x, target, reduction="none"), valid)
