"""Losses that match the distribution of the codes to that of the embeddings, and train the codes alone."""

from abc import abstractmethod

import torch
from torch import Tensor

from straightvq.nn.batch import Batch, Context
from straightvq.nn.part import check_int, setting
from straightvq.nn.slots.losses.base import Loss, has_any, needed
from straightvq.nn.slots.losses.kernel import WIDTHS, kernel_sum
from straightvq.nn.slots.losses.recent import RecentVectors

# Relative to the variances of both: a squared distance below this is rounding.
_ROUNDING = 1e-12


class _MatchingLoss(Loss):
    """Required: ``distance``. The embeddings are a queue of recent ones in training, the given ones in evaluation."""

    trains = "codes"
    takes_context = needs_codes = True

    queue: int = setting(check_int, minimum=1, keeps="all")

    def __init__(self, weight: float, queue: int) -> None:
        super().__init__(weight)
        self.queue = queue
        self.recent = RecentVectors(self.queue)

    def bind(self, size: int, dim: int) -> None:
        self._bind_once()
        self.recent.bind(dim)

    def record(self, batch: Batch, indices: Tensor) -> None:
        self.recent.add(batch)

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None = None) -> Tensor:
        context = needed(self, context)
        vectors, weight = self.recent.held(z, valid, context)
        codes, count = context.codes.to(z.dtype), weight.sum()
        weight = weight / count.clamp(min=1)
        middle = weight @ vectors
        vectors = (vectors - middle) * (weight > 0)[:, None]
        variance = weight @ vectors.square().mean(1)
        # Below rounding the embeddings are one point, and in its unit the codes would overflow.
        info, apart = torch.finfo(z.dtype), (codes.detach() - middle).square().mean()
        least = (apart * info.eps**2).clamp(min=info.tiny)
        spread = torch.where(variance > least, variance, 1).sqrt()
        distance = self.distance(vectors / spread, weight, (codes - middle) / spread)
        return torch.where((count > 0) & has_any(z, valid, context), distance, 0)

    @abstractmethod
    def distance(self, vectors: Tensor, weight: Tensor, codes: Tensor) -> Tensor:
        """Of vectors (n, d) of mean 0 and mean variance 1, whose weights (n,) sum to 1, and codes (k, d): a scalar."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, queue={self.queue}"


class WassersteinLoss(_MatchingLoss):
    """Wasserstein distance of two normal distributions: those with the moments of the embeddings and of the codes.

    ``sqrt(||m_z - m_c||^2 + tr(S_z + S_c - 2 (S_z^1/2 S_c S_z^1/2)^1/2))``, with means m and biased covariances S,
    in units of the embeddings' standard deviation (root of the mean variance of a channel). Every code gets a gradient,
    the embeddings get none. At distance 0 the gradient is 0.

    In training the embeddings are those of earlier steps, of all ranks, so that the loss is the same number on each;
    it is 0 in the first step. In evaluation they are this process's vectors. On CUDA the host waits for eigenvalues.

    Args:
        weight: factor in ``QuantizerOutput.loss``; the paper's gamma, 0.5.
        queue: embeddings held, at least 1; the paper's 65,536. They are saved: ``4 queue dim`` bytes.

    Raises:
        ValueError: from a layer whose codes take no gradient of a loss, such as those of ``EMAUpdate``.

    Source: arXiv 2506.15078. Deviations: moments of distributions far from normal say little about them, so keep a
    ``CodebookLoss`` beside it; the queue begins with the second step.

    Example:
        >>> import torch
        >>> from straightvq import Codebook, VectorQuantizer
        >>> layer = VectorQuantizer(1, Codebook(2), losses=[WassersteinLoss()]).eval()
        >>> layer.set_codes(torch.tensor([[-2.0], [8.0]]))  # mean 3, deviation 5
        >>> round(layer(torch.tensor([[-1.0], [1.0]])).terms["wasserstein"].item(), 4)  # mean 0, deviation 1
        5.0
    """

    name = "wasserstein"

    def __init__(self, weight: float = 0.5, queue: int = 65536) -> None:
        super().__init__(weight, queue)

    def distance(self, vectors: Tensor, weight: Tensor, codes: Tensor) -> Tensor:
        wide = vectors.dtype if vectors.device.type == "mps" else torch.float64  # d x d matrices
        cov_z = ((vectors * weight[:, None]).T @ vectors).to(wide)
        mean_c = codes.mean(0)
        cov_c = ((codes - mean_c).T @ (codes - mean_c) / len(codes)).to(wide)
        values, basis = torch.linalg.eigh(cov_z)
        root = (basis * values.clamp(min=0).sqrt()) @ basis.T
        common = torch.linalg.eigvalsh(root @ cov_c @ root)
        # Below rounding the root of an eigenvalue is a constant, whose gradient is 0 and not infinite.
        least = common.detach().amax().clamp(min=torch.finfo(wide).tiny) * (len(common) * torch.finfo(wide).eps)
        variances = cov_z.diagonal().sum() + cov_c.diagonal().sum()
        square = mean_c.to(wide).square().sum() + variances - 2 * common.clamp(min=least).sqrt().sum()
        is_apart = square.detach() > _ROUNDING * variances.detach()
        distance = torch.where(is_apart, torch.where(is_apart, square, 1).sqrt(), 0)
        return distance.to(vectors.dtype)


class MMDLoss(_MatchingLoss):
    """Squared maximum mean discrepancy between embeddings and codes: ``E k(z, z') + E k(c, c') - 2 E k(z, c)``.

    ``k`` is the mean of five Gaussians ``exp(-||x - y||^2 / (2 d s))``, s = 1/4, 1/2, 1, 2, 4, of vectors in units of
    the embeddings' standard deviation, where ``2 d`` is their mean squared distance. Means are over all pairs, a vector
    with itself included, so that it is at least 0. It sees more than two moments. Every code gets a gradient, the
    embeddings get none; all gradients are finite.

    Training and evaluation differ as in `WassersteinLoss`. No matrix of pairs is held, neither in the forward nor in
    the backward; the time grows with ``(queue + codebook_size)^2``.

    Args:
        weight: factor in ``QuantizerOutput.loss``.
        queue: embeddings held, at least 1.

    Raises:
        ValueError: from a layer whose codes take no gradient of a loss, such as those of ``EMAUpdate``.

    Source: the MMD-VQ of VQ-Transplant (ICLR 2026); Gretton et al. 2012, eq. (5). The kernel and the queue are ours.

    Example:
        >>> import torch
        >>> from straightvq import Codebook, VectorQuantizer
        >>> layer = VectorQuantizer(1, Codebook(2), losses=[MMDLoss()]).eval()
        >>> layer.set_codes(torch.tensor([[-1.0], [1.0]]))
        >>> round(layer(torch.tensor([[1.0], [-1.0]])).terms["mmd"].item(), 4)
        0.0
    """

    name = "mmd"

    def __init__(self, weight: float = 0.5, queue: int = 2048) -> None:
        super().__init__(weight, queue)

    def distance(self, vectors: Tensor, weight: Tensor, codes: Tensor) -> Tensor:
        scales = [2 * codes.shape[1] * width for width in WIDTHS]
        share = codes.new_full((len(codes),), 1 / len(codes))
        among_codes = kernel_sum(codes.detach(), codes, share, share, scales)
        twice = 2 * among_codes - among_codes.detach()  # both arguments are the codes
        return (
            kernel_sum(vectors, vectors, weight, weight, scales)
            + twice
            - 2 * kernel_sum(vectors, codes, weight, share, scales)
        )
