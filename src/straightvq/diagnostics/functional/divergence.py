"""How far the codes are from the embeddings: quantization error, moments, distances of Gaussians."""

from typing import NamedTuple

import torch
from torch import Tensor

from straightvq.diagnostics.functional import vectors
from straightvq.diagnostics.functional.vectors import mean_and_variance, ratio, result_dtype, wide_dtype


class MomentGap(NamedTuple):
    """How far the codebook's first two moments are from the embeddings'; see `moment_distance`."""

    mean: Tensor
    std: Tensor
    wasserstein: Tensor
    symmetric_kl: Tensor


def normalized_quantization_error(z: Tensor, quantized: Tensor) -> Tensor:
    """Quantization error relative to the spread of the embeddings: mean ||z - q||^2 / mean ||z - mean z||^2.

    0 is perfect, 1 is what a single code at the mean achieves; well below 1 is normal. Unchanged when z and the codes
    are shifted or scaled together: a commitment term that rises while this stays level only says that the latent norm
    grows; if both rise, the codebook loses the embeddings. If all z are equal it is 0 for exact codes, else infinite.

    Shape: z, quantized: Float (*batch, dim); the result is Float ().
    Raises: ValueError if the shapes differ or there is no vector.

    Example:
        >>> z = torch.tensor([[0.0], [2.0], [4.0], [6.0]])  # variance 5
        >>> normalized_quantization_error(z, torch.tensor([[1.0], [1.0], [5.0], [5.0]]))  # error 1
        tensor(0.2000)
    """
    vectors.check_shape("normalized_quantization_error", "quantized", quantized, "z", z)
    flat = vectors.flatten(z, "normalized_quantization_error")
    error = (flat - quantized.reshape(flat.shape).to(flat.dtype)).square().sum(-1).mean()
    return ratio(error, mean_and_variance(flat)[1].sum()).to(result_dtype(z))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, without cancellation far from the origin.

    Shape: x: Float (*batch, dim); the results are Float (dim,), in the unit of x and its square.
    Raises: ValueError if there is no vector.

    Example:
        >>> moments(torch.tensor([[1e8, 0.0], [1e8, 4.0]]))
        (tensor([1.0000e+08, 2.0000e+00]), tensor([0., 4.]))
    """
    mean, var = mean_and_variance(vectors.flatten(x, "moments"))
    return mean.to(result_dtype(x)), var.to(result_dtype(x))


def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased covariance matrix of the channels, without cancellation far from the origin.

    Shape: x: Float (*batch, dim); the results are Float (dim,) and (dim, dim).
    Raises: ValueError if there is no vector.

    Example:
        >>> covariance(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        (tensor([2., 2.]), tensor([[1., 2.],
                [2., 4.]]))
    """
    mean, centred = vectors.deviations(vectors.flatten(x, "covariance"))
    return mean.to(result_dtype(x)), (centred.T @ centred / len(centred)).to(result_dtype(x))


def gaussian_w2_diagonal(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """2-Wasserstein distance of two Gaussians with diagonal covariances, in the unit of the vectors.

    W2 = sqrt(sum_d (mean_a - mean_b)^2 + (std_a - std_b)^2).

    Shape: mean_a, var_a, mean_b, var_b: Float (dim,); the result is Float ().

    Example:
        >>> gaussian_w2_diagonal(*torch.tensor([[0.0], [1.0], [4.0], [16.0]]))  # sqrt(4^2 + (1 - 4)^2)
        tensor(5.)
    """
    dtype = wide_dtype(mean_a)
    shift = mean_a.to(dtype) - mean_b.to(dtype)
    spread = var_a.to(dtype).sqrt() - var_b.to(dtype).sqrt()
    return (shift.square().sum() + spread.square().sum()).sqrt().to(result_dtype(mean_a))


def gaussian_w2(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """2-Wasserstein (Bures) distance of two Gaussians with full covariances A and B, in the unit of the vectors.

    W2^2 = ||mean_a - mean_b||^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    It tells apart two clouds of equal spread in each channel that lie along different directions, which
    `gaussian_w2_diagonal` cannot. Covariances may be singular. Costs O(dim^3).

    Shape:
        mean_a, mean_b: Float (dim,).
        cov_a, cov_b: Float (dim, dim), symmetric without negative eigenvalues; the result is Float ().

    Source:
        The trace is computed as min_U ||A^1/2 - B^1/2 U||^2 over orthogonal U (Bhatia, Jain and Lim, 2019,
        Theorem 1), which keeps its digits where A and B are close and the three traces cancel.

    Example:
        >>> along, across = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
        >>> gaussian_w2(torch.zeros(2), along, torch.zeros(2), across)  # sqrt(1 + 1 - 0)
        tensor(1.4142)
    """
    dtype = wide_dtype(mean_a)
    shift = mean_a.to(dtype) - mean_b.to(dtype)
    root_a, root_b = _symmetric_root(cov_a.to(dtype)), _symmetric_root(cov_b.to(dtype))
    left, _, right = torch.linalg.svd(root_b @ root_a)
    spread = root_a - root_b @ left @ right
    return (shift.square().sum() + spread.square().sum()).sqrt().to(result_dtype(mean_a))


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, directions = torch.linalg.eigh(matrix)
    # Rounding may leave an eigenvalue slightly below 0.
    return (directions * values.clamp(min=0).sqrt()) @ directions.T


def gaussian_symmetric_kl_diagonal(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """KL(a||b) + KL(b||a) of two Gaussians with diagonal covariances, in nats.

    1/2 sum_d [var_a/var_b + var_b/var_a - 2 + (mean_a - mean_b)^2 (1/var_a + 1/var_b)].

    A channel that is constant on one side only makes it infinite; one with the same constant on both sides adds 0.

    Shape: mean_a, var_a, mean_b, var_b: Float (dim,); the result is Float ().

    Example:
        >>> moments = torch.tensor([[0.0], [1.0], [4.0], [4.0]])
        >>> gaussian_symmetric_kl_diagonal(*moments)  # (1/4 + 4 - 2 + 16 * (1 + 1/4)) / 2
        tensor(11.1250)
    """
    dtype = wide_dtype(mean_a)
    wide_a, wide_b = var_a.to(dtype), var_b.to(dtype)
    shift = (mean_a.to(dtype) - mean_b.to(dtype)).square()
    # The bracket over its common denominator, so that 0/0 can be told from x/0.
    numerator = (wide_a - wide_b).square() + shift * (wide_a + wide_b)
    terms = ratio(numerator, wide_a * wide_b)
    # Two different constants: numerator and denominator are both 0, but the divergence is infinite.
    terms = torch.where((numerator == 0) & (shift > 0), torch.inf, terms)
    return (terms.sum() / 2).to(result_dtype(mean_a))


def moment_distance(z: Tensor, codes: Tensor) -> MomentGap:
    """Distance between the first two moments of the embeddings and of the whole codebook.

    With s = sqrt(sum_d var_z), the standard deviation of the embeddings as one number:
    mean = ||mean_z - mean_c|| / s,  std = ||std_z - std_c|| / s,  wasserstein = W2 / s = sqrt(mean^2 + std^2);
    symmetric_kl = `gaussian_symmetric_kl_diagonal`, in nats.

    0 is a perfect match, and well below 1 is normal; a few units mean that the two clouds are disjoint and that only
    the nearest codes will ever be chosen. Unchanged when z and codes are shifted or scaled together. If all embeddings
    are equal, the values are 0 or infinite.

    Shape: z: Float (*batch, dim); codes: Float (k, dim), effective codes.
    Raises: ValueError if the widths differ or one side is empty.
    Source: the paper's "divergence" of embeddings and codebook, which affine parameters remove; as numbers, not plots.

    Example:
        >>> moment_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [6.0]])).mean  # (4 - 0) / 1
        tensor(4.)
    """
    vectors.check_codes("moment_distance", z, codes)
    embeddings, table = (mean_and_variance(vectors.flatten(x, "moment_distance")) for x in (z, codes))
    return MomentGap(*(value.to(result_dtype(z)) for value in compare_moments(*embeddings, *table)))


def compare_moments(mean_z: Tensor, var_z: Tensor, mean_codes: Tensor, var_codes: Tensor) -> MomentGap:
    """`moment_distance` of moments (dim,) that are already known, for example from running statistics.

    Example:
        >>> float(compare_moments(*torch.tensor([[0.0], [1.0], [4.0], [16.0]])).wasserstein)
        5.0
    """
    unit = var_z.sum().sqrt()
    return MomentGap(
        mean=ratio((mean_z - mean_codes).norm(), unit),
        std=ratio((var_z.sqrt() - var_codes.sqrt()).norm(), unit),
        wasserstein=ratio(gaussian_w2_diagonal(mean_z, var_z, mean_codes, var_codes), unit),
        symmetric_kl=gaussian_symmetric_kl_diagonal(mean_z, var_z, mean_codes, var_codes),
    )
