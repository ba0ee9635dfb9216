"""Directions of the embeddings: how many they use, and the widest of them."""

import torch
from torch import Tensor

from straightvq.diagnostics.functional.vectors import deviations, flatten, ratio, result_dtype
from straightvq.errors import InvalidValueError


def effective_dimension(z: Tensor) -> Tensor:
    """Number of directions the embeddings really use: exp(-sum_j p_j log p_j), p the covariance's normalized spectrum.

    From 1 (all on a line) to the smaller of dim and n - 1; 0 if all vectors are equal. Encoders commonly use far fewer
    directions than they have channels; a smaller `codebook_dim` then loses little. Costs O(n dim^2 + dim^3).

    Shape: z: Float (*batch, dim); the result is Float ().
    Raises: ValueError if there is no vector.

    Example:
        >>> cross = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # spectrum (1/2, 1/2, 0)
        >>> effective_dimension(torch.cat([cross, -cross]))
        tensor(2.)
    """
    centred = deviations(flatten(z, "effective_dimension"))[1]
    # Rounding may leave an eigenvalue slightly below 0.
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    total = spectrum.sum()
    entropy = torch.special.entr(ratio(spectrum, total)).sum()
    return torch.where(total > 0, entropy.exp(), 0.0).to(result_dtype(z))


def principal_plane(z: Tensor, k: int = 2) -> tuple[Tensor, Tensor]:
    """Mean (dim,) and orthonormal first k principal directions (dim, k) of the embeddings, the widest first.

    `(z - mean) @ basis` are the coordinates. The largest entry of each direction (the first among equals) is positive,
    so that two runs draw the same picture.

    Args:
        z: the vectors, Float (*batch, dim).
        k: number of directions, 1 to dim.

    Raises: ValueError if there is no vector or k is not in 1..dim.

    Example:
        >>> mean, basis = principal_plane(torch.tensor([[1.0, 2.0], [1.0, 6.0]]), k=1)
        >>> mean.tolist(), basis.flatten().abs().tolist()
        ([1.0, 4.0], [0.0, 1.0])
    """
    flat = flatten(z, "principal_plane")
    if not 1 <= k <= flat.shape[1]:
        raise InvalidValueError(f"`principal_plane`: `k` must be an integer from 1 to dim={flat.shape[1]}. Got {k}.")
    mean, centred = deviations(flat)
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(-1)[:, :k]
    # "First among equals" up to rounding: argmax alone would let noise choose between +1/sqrt 2 and -1/sqrt 2.
    size = basis.abs()
    leading = (size >= size.amax(0) * (1 - 1e-6)).int().argmax(0, keepdim=True)
    basis = basis * basis.gather(0, leading).sign()
    return mean.to(result_dtype(z)), basis.to(result_dtype(z))


def explained_variance(z: Tensor, basis: Tensor) -> Tensor:
    """Share of the variance of the vectors (*batch, dim) along each column of ``basis`` (dim, k): Float (k,)."""
    centred = deviations(flatten(z, "explained_variance"))[1]
    return ratio((centred @ basis.to(centred.dtype)).square().sum(0), centred.square().sum())
