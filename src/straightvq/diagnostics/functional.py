"""What is measured on a quantizer, as pure functions of tensors.

Vectors are channels-last: every `(*batch, dim)` below is flattened to `(n, dim)`. Everything is computed in
float64 where the device has it, because all of these are differences and ratios of sums over many vectors,
and comes back in float32 (float64 for float64 vectors). Each function measures the vectors it is given: for a
data set, sum counts over it or use the accumulators in `metrics.py`, since a mean of per-batch values depends
on the batch size.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class MomentGap(NamedTuple):
    """How far the codebook's first two moments are from the embeddings'; see `moment_distance`."""

    mean: Tensor
    std: Tensor
    wasserstein: Tensor
    symmetric_kl: Tensor


class GradientGap(NamedTuple):
    """How far the straight-through gradient is from the one without a quantizer; see `gradient_gap`."""

    norm: Tensor
    relative: Tensor
    cosine: Tensor


# -- use of the codes ----------------------------------------------------------------------------------------


def usage_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """Count how often each code was assigned.

    Counts are the one thing to add up over batches, ranks and epochs: `usage`, `perplexity` and `dead_codes`
    of the summed counts are exact for the whole set, whatever the batch size was.

    Args:
        indices: code numbers. Negative ones mark masked positions and are ignored.
        codebook_size: number of codes k.

    Shape:
        indices: Int (*batch). For several codebooks call once per codebook.

    Returns:
        Int64 (k,), unit "vectors".

    Raises:
        TypeError: if `indices` are not integers.
        ValueError: if an index is `codebook_size` or more, or `codebook_size` is not positive.

    Example:
        >>> usage_counts(torch.tensor([[0, 2, 2], [1, -1, 0]]), 4)
        tensor([2, 1, 2, 0])
    """
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise TypeError(f"`usage_counts`: `indices` must be integers. Got {indices.dtype}.")
    if codebook_size < 1:
        raise ValueError(f"`usage_counts`: `codebook_size` must be an integer >= 1. Got {codebook_size}.")
    flat = indices.reshape(-1).long()
    if flat.numel() and (largest := int(flat.max())) >= codebook_size:
        raise ValueError(f"`usage_counts`: `indices` must be integers below {codebook_size=}. Got {largest}.")
    # One spare slot collects the masked positions, so that no data-dependent selection is needed.
    slots = torch.where(flat < 0, codebook_size, flat)
    counts = torch.zeros(codebook_size + 1, dtype=torch.int64, device=flat.device)
    return counts.scatter_add_(0, slots, torch.ones_like(slots))[:codebook_size]


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes in use: exp of the entropy, in nats, of the code frequencies.

    perplexity = exp(-sum_k p_k log p_k), p = counts / sum(counts).

    Unit "codes". Between 1 (one code takes everything) and its maximum k (all codes equally frequent); 0
    where nothing was counted. A trained codebook of about a thousand codes without collapse reaches several
    hundred; a collapsed one stays near ten. It cannot exceed the number of vectors counted, so count many per
    code.

    Shape:
        counts: Int or Float (*levels, k), summed over the set of interest.

    Returns:
        Float (*levels).

    Source:
        The paper's tables give it over the test set; its `+ 1e-10` inside the logarithm is not needed here,
        as p log p is 0 at p = 0.

    Example:
        >>> perplexity(torch.tensor([2, 1, 1, 0]))  # exp(1/2 log 2 + 1/2 log 4) = 2 * sqrt(2)
        tensor(2.8284)
    """
    wide = counts.to(_wide_dtype(counts))
    total = wide.sum(-1, keepdim=True)
    entropy = torch.special.entr(ratio(wide, total)).sum(-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0).float()


def usage(counts: Tensor) -> Tensor:
    """Fraction of the codes that were assigned at least once (the paper's "active %", divided by 100).

    Without a unit; from 0 (nothing counted) to its maximum 1. With resets or a well-conditioned codebook 0.9
    and more is normal over a data set; a few percent means collapse. It grows with the number of vectors
    counted: state the set with the value.

    Shape:
        counts: Int or Float (*levels, k).

    Returns:
        Float (*levels).

    Example:
        >>> usage(torch.tensor([2, 1, 1, 0]))
        tensor(0.7500)
    """
    return (counts > 0).float().mean(-1)


def dead_codes(counts: Tensor) -> Tensor:
    """Number of codes that were never assigned.

    Unit "codes"; from 0, which is what one wants over a data set, to its maximum k.

    Shape:
        counts: Int or Float (*levels, k).

    Returns:
        Int64 (*levels).

    Example:
        >>> dead_codes(torch.tensor([2, 1, 1, 0]))
        tensor(1)
    """
    return (counts <= 0).sum(-1)


# -- quantization error and moments --------------------------------------------------------------------------


def normalized_quantization_error(z: Tensor, quantized: Tensor) -> Tensor:
    """Quantization error relative to the spread of the embeddings.

    mean ||z - q||^2 / mean ||z - mean z||^2.

    Without a unit, and unchanged when z and the codes are shifted or scaled together: a commitment term that
    rises while this stays level only says that the latent norm grows; if this rises too, the codebook loses
    the embeddings. 0 is perfect; 1 is what a single code at the mean achieves, and there is no maximum.
    Falling well below 1 and staying there is normal. If all z are equal it is 0 for exact codes and infinite
    otherwise.

    Shape:
        z, quantized: Float (*batch, dim).

    Returns:
        Float ().

    Raises:
        ValueError: if the shapes differ or there is no vector.

    Example:
        >>> z = torch.tensor([[0.0], [2.0], [4.0], [6.0]])  # variance 5
        >>> normalized_quantization_error(z, torch.tensor([[1.0], [1.0], [5.0], [5.0]]))  # error 1
        tensor(0.2000)
    """
    if z.shape != quantized.shape:
        raise ValueError(
            f"`normalized_quantization_error`: `quantized` must have the shape of `z`, {tuple(z.shape)}. "
            f"Got {tuple(quantized.shape)}."
        )
    flat = _vectors(z, "normalized_quantization_error")
    error = (flat - quantized.reshape(flat.shape).to(flat.dtype)).square().sum(-1).mean()
    spread = _moments(flat)[1].sum()
    return ratio(error, spread).to(_result_dtype(z))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, without cancellation far from the origin.

    mean_d = (1/n) sum_i x_id,  var_d = (1/n) sum_i (x_id - mean_d)^2.

    Units: those of x, and their square.

    Shape:
        x: Float (*batch, dim).

    Returns:
        mean Float (dim,), variance Float (dim,).

    Raises:
        ValueError: if there is no vector.

    Example:
        >>> moments(torch.tensor([[1e8, 0.0], [1e8, 4.0]]))
        (tensor([1.0000e+08, 2.0000e+00]), tensor([0., 4.]))
    """
    mean, var = _moments(_vectors(x, "moments"))
    return mean.to(_result_dtype(x)), var.to(_result_dtype(x))


def gaussian_w2_diagonal(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """2-Wasserstein distance of two Gaussians with diagonal covariances.

    W2 = sqrt(sum_d (mean_a - mean_b)^2 + (std_a - std_b)^2).

    In the unit of the vectors; 0 for equal moments, no maximum.

    Shape:
        mean_a, var_a, mean_b, var_b: Float (dim,).

    Returns:
        Float ().

    Example:
        >>> gaussian_w2_diagonal(*torch.tensor([[0.0], [1.0], [4.0], [16.0]]))  # sqrt(4^2 + (1 - 4)^2)
        tensor(5.)
    """
    dtype = _wide_dtype(mean_a)
    shift = mean_a.to(dtype) - mean_b.to(dtype)
    spread = var_a.to(dtype).sqrt() - var_b.to(dtype).sqrt()
    return (shift.square().sum() + spread.square().sum()).sqrt().to(_result_dtype(mean_a))


def gaussian_symmetric_kl_diagonal(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence, KL(a||b) + KL(b||a), of two Gaussians with diagonal covariances.

    1/2 sum_d [var_a/var_b + var_b/var_a - 2 + (mean_a - mean_b)^2 (1/var_a + 1/var_b)].

    In nats; 0 for equal moments, no maximum. Infinite where a channel is constant on one side only; a channel
    that has the same constant value on both sides adds 0.

    Shape:
        mean_a, var_a, mean_b, var_b: Float (dim,).

    Returns:
        Float ().

    Example:
        >>> moments = torch.tensor([[0.0], [1.0], [4.0], [4.0]])
        >>> gaussian_symmetric_kl_diagonal(*moments)  # (1/4 + 4 - 2 + 16 * (1 + 1/4)) / 2
        tensor(11.1250)
    """
    dtype = _wide_dtype(mean_a)
    var_a_wide, var_b_wide = var_a.to(dtype), var_b.to(dtype)
    shift = (mean_a.to(dtype) - mean_b.to(dtype)).square()
    # The bracket over its common denominator, so that 0/0 can be told from x/0.
    numerator = (var_a_wide - var_b_wide).square() + shift * (var_a_wide + var_b_wide)
    terms = ratio(numerator, var_a_wide * var_b_wide)
    # Two different constants: numerator and denominator are both 0, but the divergence is infinite.
    terms = torch.where((numerator == 0) & (shift > 0), torch.inf, terms)
    return (terms.sum() / 2).to(_result_dtype(mean_a))


def moment_distance(z: Tensor, codes: Tensor) -> MomentGap:
    """Distance between the first two moments of the embeddings and of the whole codebook.

    With s = sqrt(sum_d var_z) the standard deviation of the embeddings as one number:
    mean = ||mean_z - mean_c|| / s,  std = ||std_z - std_c|| / s,  wasserstein = W2 / s = sqrt(mean^2 +
    std^2), symmetric_kl = `gaussian_symmetric_kl_diagonal`.

    The first three are in units of the embeddings' standard deviation, the last is in nats; 0 is a perfect
    match, none has a maximum, and none changes when z and codes are shifted or scaled together. Well below 1
    is normal for a healthy codebook; a few units mean that the two clouds are disjoint and that only the
    nearest codes will ever be chosen. Embeddings that are all equal have no such unit: the values are 0 or
    infinite then.

    Shape:
        z: Float (*batch, dim).
        codes: Float (k, dim), effective codes.

    Raises:
        ValueError: if the widths differ or one side is empty.

    Source:
        The paper's "divergence" of embeddings and codebook, which affine parameters remove; as numbers, not
        plots.

    Example:
        >>> moment_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [6.0]])).mean  # (4 - 0) / 1
        tensor(4.)
    """
    if z.ndim == 0 or codes.ndim != 2 or z.shape[-1] != codes.shape[-1]:
        raise ValueError(
            f"`moment_distance`: `codes` must have the shape (codebook_size, dim) with the last axis of `z`, "
            f"{tuple(z.shape)}. Got {tuple(codes.shape)}."
        )
    embedding = _moments(_vectors(z, "moment_distance"))
    gap = compare_moments(*embedding, *_moments(_vectors(codes, "moment_distance")))
    return MomentGap(*(value.to(_result_dtype(z)) for value in gap))


def compare_moments(mean_z: Tensor, var_z: Tensor, mean_codes: Tensor, var_codes: Tensor) -> MomentGap:
    """`moment_distance` of moments that are already known, for example from running statistics.

    Shape:
        mean_z, var_z, mean_codes, var_codes: Float (dim,).

    Example:
        >>> float(compare_moments(*torch.tensor([[0.0], [1.0], [4.0], [16.0]])).wasserstein)
        5.0
    """
    unit = var_z.sum().sqrt()
    std_gap = (var_z.sqrt() - var_codes.sqrt()).norm()
    wasserstein = gaussian_w2_diagonal(mean_z, var_z, mean_codes, var_codes)
    return MomentGap(
        mean=ratio((mean_z - mean_codes).norm(), unit),
        std=ratio(std_gap, unit),
        wasserstein=ratio(wasserstein, unit),
        symmetric_kl=gaussian_symmetric_kl_diagonal(mean_z, var_z, mean_codes, var_codes),
    )


def effective_dimension(z: Tensor) -> Tensor:
    """Number of directions the embeddings really use: exp of the entropy of the covariance's spectrum.

    exp(-sum_j p_j log p_j), p = eigenvalues of the covariance / their sum.

    Unit "dimensions". Between 1 (all on a line) and its maximum, the smaller of dim and n - 1; 0 if all
    vectors are equal. Encoders commonly use far fewer directions than they have channels; codebooks of a
    smaller `codebook_dim` then lose little. Costs O(n dim^2 + dim^3).

    Shape:
        z: Float (*batch, dim).

    Returns:
        Float ().

    Raises:
        ValueError: if there is no vector.

    Example:
        >>> cross = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # spectrum (1/2, 1/2, 0)
        >>> effective_dimension(torch.cat([cross, -cross]))
        tensor(2.)
    """
    flat = _vectors(z, "effective_dimension")
    centred = _centred(flat)[1]
    # Rounding may leave an eigenvalue slightly below 0.
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    total = spectrum.sum()
    p = ratio(spectrum, total)
    return torch.where(total > 0, torch.special.entr(p).sum().exp(), 0.0).to(_result_dtype(z))


def principal_plane(z: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
    """Mean and first k principal directions of the embeddings, the frame of the scatter pictures.

    `(z - mean) @ basis` are the coordinates, the widest first. Signs are fixed: the largest entry of each
    direction is positive (the first among equals), so that two runs draw the same picture.

    Args:
        z: the vectors.
        k: number of directions, 1 to dim.

    Shape:
        z: Float (*batch, dim).

    Returns:
        mean Float (dim,) in the unit of z, basis Float (dim, k) with orthonormal columns.

    Raises:
        ValueError: if there is no vector or k is not in 1..dim.

    Example:
        >>> mean, basis = principal_plane(torch.tensor([[1.0, 2.0], [1.0, 6.0]]), k=1)
        >>> mean.tolist(), basis.flatten().abs().tolist()
        ([1.0, 4.0], [0.0, 1.0])
    """
    flat = _vectors(z, "principal_plane")
    if not 1 <= k <= flat.shape[1]:
        raise ValueError(f"`principal_plane`: `k` must be an integer from 1 to dim={flat.shape[1]}. Got {k}.")
    mean, centred = _centred(flat)
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(-1)[:, :k]
    # "First among equals" up to rounding: argmax alone would let noise choose between +1/sqrt 2 and -1/sqrt
    # 2.
    size = basis.abs()
    leading = (size >= size.amax(0) * (1 - 1e-6)).int().argmax(0, keepdim=True)
    basis = basis * basis.gather(0, leading).sign()
    return mean.to(_result_dtype(z)), basis.to(_result_dtype(z))


# -- gradients -----------------------------------------------------------------------------------------------


def gradient_gap(grad_at_z: Tensor, grad_at_quantized: Tensor) -> GradientGap:
    """Error of the straight-through gradient.

    norm = ||g_z - g_q||,  relative = norm / ||g_z||,  cosine = <g_z, g_q> / (||g_z|| ||g_q||),
    with g_z = dL(G(z))/dz, the head G run on the embeddings, and g_q = dL(G(q))/dq, the same head, target and
    loss
    run on the quantized vectors: two forward passes of the head and `torch.autograd.grad` of each.

    norm has the unit of the gradient and depends on how the loss averages; relative (0 is exact, no maximum)
    and cosine (1 is exact, minimum -1) do not, and are the ones to compare between runs. It vanishes if the
    quantizer is exact or the head is linear in L; for a smooth head it is bounded by its smoothness times ||z
    - q||. If both gradients are zero it is (0, 0, 1), if only g_z is, relative is infinite; a single zero
    gradient has cosine 0.

    Shape:
        grad_at_z, grad_at_quantized: Float, any one shape.

    Raises:
        ValueError: if the shapes differ.

    Source:
        The gradient gap of the paper's analysis of the straight-through estimator.

    Example:
        >>> gradient_gap(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0])).norm  # L = |u|^2 / 2, q = 0
        tensor(5.)
    """
    if grad_at_z.shape != grad_at_quantized.shape:
        raise ValueError(
            f"`gradient_gap`: `grad_at_quantized` must have the shape of `grad_at_z`, "
            f"{tuple(grad_at_z.shape)}. Got {tuple(grad_at_quantized.shape)}."
        )
    a = grad_at_z.flatten().to(_wide_dtype(grad_at_z))
    b = grad_at_quantized.flatten().to(a.dtype)
    norm, norm_a, norm_b = (a - b).norm(), a.norm(), b.norm()
    # Each side is normalised by itself: a product of two small norms could underflow.
    cosine = (ratio(a, norm_a) * ratio(b, norm_b)).sum().clamp(-1, 1)
    cosine = torch.where((norm_a == 0) & (norm_b == 0), 1.0, cosine)
    dtype = _result_dtype(grad_at_z)
    return GradientGap(norm.to(dtype), ratio(norm, norm_a).to(dtype), cosine.to(dtype))


def gradient_sparsity(grad: Tensor) -> Tensor:
    """Fraction of the codes that receive a gradient in a step: rows with a non-zero entry.

    Without a unit; from 0 to its maximum 1. A plain codebook gets (assigned codes)/k, which cannot exceed
    n/k; with shared affine parameters every *effective* code moves although the raw table's gradient stays
    this sparse.

    Shape:
        grad: Float (k, dim), the gradient of the code table.

    Returns:
        Float ().

    Raises:
        ValueError: if `grad` is not a table of at least one row.

    Example:
        >>> gradient_sparsity(torch.tensor([[0.0, 0.1], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
        tensor(0.5000)
    """
    if grad.ndim != 2 or not len(grad):
        raise ValueError(
            f"`gradient_sparsity`: `grad` must have the shape (codebook_size, dim) with at least one row. "
            f"Got {tuple(grad.shape)}."
        )
    return (grad != 0).any(-1).float().mean()


# -- inside --------------------------------------------------------------------------------------------------


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator` with 0/0 = 0: where there is nothing to explain, nothing is missed.

    Example:
        >>> ratio(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 4.0]))
        tensor([0.0000,    inf, 0.2500])
    """
    return torch.where(numerator == 0, 0.0, numerator / denominator)


def _wide_dtype(x: Tensor) -> torch.dtype:
    # Apple's GPU has no float64.
    return torch.float32 if x.device.type == "mps" else torch.float64


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float32


def _vectors(x: Tensor, owner: str) -> Tensor:
    """Flatten `(*batch, dim)` to a wide, detached `(n, dim)` with n >= 1."""
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(
            f"`{owner}`: vectors must have the shape (*batch, dim) with at least one vector. Got {tuple(x.shape)}."
        )
    return x.detach().reshape(-1, x.shape[-1]).to(_wide_dtype(x))


def _centred(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(dim,)` and deviations from it `(n, dim)`."""
    # From the first vector rather than the origin: no digits go to a common offset, and equal vectors give
    # exact 0.
    shifted = flat - flat[:1]
    mean = shifted.mean(0)
    return flat[0] + mean, shifted - mean


def _moments(flat: Tensor) -> tuple[Tensor, Tensor]:
    mean, centred = _centred(flat)
    return mean, centred.square().mean(0)
