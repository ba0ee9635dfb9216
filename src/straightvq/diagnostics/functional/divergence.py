"""How far the codes are from the embeddings: quantization error, moments, distances of Gaussians."""

from typing import NamedTuple

import torch
from torch import Tensor

from straightvq.diagnostics.functional.vectors import (
    check_codes,
    check_shape,
    deviations,
    flatten,
    mean_and_variance,
    ratio,
    result_dtype,
    wide_dtype,
)


class MomentGap(NamedTuple):
    """How far the codebook's first two moments are from the embeddings'; see `moment_distance`."""

    mean: Tensor
    std: Tensor
    wasserstein: Tensor
    symmetric_kl: Tensor


def normalized_quantization_error(z: Tensor, quantized: Tensor) -> Tensor:
    """Quantization error relative to the spread of the embeddings: mean ||z - q||^2 / mean ||z - mean z||^2.

    Without a unit, and unchanged when z and the codes are shifted or scaled together: a commitment term that rises
    while this stays level only says that the latent norm grows; if this rises too, the codebook loses the embeddings.
    0 is perfect; 1 is what a single code at the mean achieves, and there is no maximum. Falling well below 1 and
    staying there is normal. If all z are equal it is 0 for exact codes and infinite otherwise.

    Shape:
        z, quantized: Float (*batch, dim); the result is Float ().

    Raises:
        ValueError: if the shapes differ or there is no vector.

    Example:
        >>> z = torch.tensor([[0.0], [2.0], [4.0], [6.0]])  # variance 5
        >>> normalized_quantization_error(z, torch.tensor([[1.0], [1.0], [5.0], [5.0]]))  # error 1
        tensor(0.2000)
    """
    check_shape("normalized_quantization_error", "quantized", quantized, "z", z)
    flat = flatten(z, "normalized_quantization_error")
    error = (flat - quantized.reshape(flat.shape).to(flat.dtype)).square().sum(-1).mean()
    spread = mean_and_variance(flat)[1].sum()
    return ratio(error, spread).to(result_dtype(z))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, without cancellation far from the origin.

    mean_d = (1/n) sum_i x_id,  var_d = (1/n) sum_i (x_id - mean_d)^2.

    Shape:
        x: Float (*batch, dim); the results are Float (dim,), in the unit of x and its square.

    Raises:
        ValueError: if there is no vector.

    Example:
        >>> moments(torch.tensor([[1e8, 0.0], [1e8, 4.0]]))
        (tensor([1.0000e+08, 2.0000e+00]), tensor([0., 4.]))
    """
    mean, var = mean_and_variance(flatten(x, "moments"))
    return mean.to(result_dtype(x)), var.to(result_dtype(x))


def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased covariance matrix of the channels, without cancellation far from the origin.

    cov_de = (1/n) sum_i (x_id - mean_d) (x_ie - mean_e); its diagonal is the variance of `moments`.

    Shape:
        x: Float (*batch, dim); the results are Float (dim,) and (dim, dim).

    Raises:
        ValueError: if there is no vector.

    Example:
        >>> covariance(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        (tensor([2., 2.]), tensor([[1., 2.],
                [2., 4.]]))
    """
    mean, centred = deviations(flatten(x, "covariance"))
    return mean.to(result_dtype(x)), (centred.T @ centred / len(centred)).to(result_dtype(x))


def gaussian_w2_diagonal(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """2-Wasserstein distance of two Gaussians with diagonal covariances.

    W2 = sqrt(sum_d (mean_a - mean_b)^2 + (std_a - std_b)^2), in the unit of the vectors; 0 for equal moments.

    Shape:
        mean_a, var_a, mean_b, var_b: Float (dim,); the result is Float ().

    Example:
        >>> gaussian_w2_diagonal(*torch.tensor([[0.0], [1.0], [4.0], [16.0]]))  # sqrt(4^2 + (1 - 4)^2)
        tensor(5.)
    """
    dtype = wide_dtype(mean_a)
    shift = mean_a.to(dtype) - mean_b.to(dtype)
    spread = var_a.to(dtype).sqrt() - var_b.to(dtype).sqrt()
    return (shift.square().sum() + spread.square().sum()).sqrt().to(result_dtype(mean_a))


def gaussian_w2(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """2-Wasserstein (Bures) distance of two Gaussians with full covariances.

    W2^2 = ||mean_a - mean_b||^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), A and B the covariances.

    In the unit of the vectors; 0 for equal moments. It also sees what `gaussian_w2_diagonal` cannot: two clouds with
    the same spread in each channel that lie along different directions. Covariances may be singular, as those of fewer
    vectors than channels. Costs O(dim^3).

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
    values, vectors = torch.linalg.eigh(matrix)
    # Rounding may leave an eigenvalue slightly below 0.
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def gaussian_symmetric_kl_diagonal(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence, KL(a||b) + KL(b||a), of two Gaussians with diagonal covariances.

    1/2 sum_d [var_a/var_b + var_b/var_a - 2 + (mean_a - mean_b)^2 (1/var_a + 1/var_b)].

    In nats; 0 for equal moments. Infinite where a channel is constant on one side only; a channel that has the same
    constant value on both sides adds 0.

    Shape:
        mean_a, var_a, mean_b, var_b: Float (dim,); the result is Float ().

    Example:
        >>> moments = torch.tensor([[0.0], [1.0], [4.0], [4.0]])
        >>> gaussian_symmetric_kl_diagonal(*moments)  # (1/4 + 4 - 2 + 16 * (1 + 1/4)) / 2
        tensor(11.1250)
    """
    dtype = wide_dtype(mean_a)
    var_a_wide, var_b_wide = var_a.to(dtype), var_b.to(dtype)
    shift = (mean_a.to(dtype) - mean_b.to(dtype)).square()
    # The bracket over its common denominator, so that 0/0 can be told from x/0.
    numerator = (var_a_wide - var_b_wide).square() + shift * (var_a_wide + var_b_wide)
    terms = ratio(numerator, var_a_wide * var_b_wide)
    # Two different constants: numerator and denominator are both 0, but the divergence is infinite.
    terms = torch.where((numerator == 0) & (shift > 0), torch.inf, terms)
    return (terms.sum() / 2).to(result_dtype(mean_a))


def moment_distance(z: Tensor, codes: Tensor) -> MomentGap:
    """Distance between the first two moments of the embeddings and of the whole codebook.

    With s = sqrt(sum_d var_z) the standard deviation of the embeddings as one number:
    mean = ||mean_z - mean_c|| / s,  std = ||std_z - std_c|| / s,  wasserstein = W2 / s = sqrt(mean^2 + std^2),
    symmetric_kl = `gaussian_symmetric_kl_diagonal`.

    The first three are in standard deviations of the embeddings, the last is in nats; 0 is a perfect match, none has a
    maximum, and none changes when z and codes are shifted or scaled together. Well below 1 is normal for a healthy
    codebook; a few units mean that the two clouds are disjoint and that only the nearest codes will ever be chosen.
    Embeddings that are all equal have no such unit: the values are 0 or infinite then.

    Shape:
        z: Float (*batch, dim).
        codes: Float (k, dim), effective codes.

    Raises:
        ValueError: if the widths differ or one side is empty.

    Source:
        The paper's "divergence" of embeddings and codebook, which affine parameters remove; as numbers, not plots.

    Example:
        >>> moment_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [6.0]])).mean  # (4 - 0) / 1
        tensor(4.)
    """
    check_codes("moment_distance", z, codes)
    embedding = mean_and_variance(flatten(z, "moment_distance"))
    gap = compare_moments(*embedding, *mean_and_variance(flatten(codes, "moment_distance")))
    return MomentGap(*(value.to(result_dtype(z)) for value in gap))


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
