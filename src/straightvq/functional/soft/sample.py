"""Codes drawn from a softmax over negative squared distances, without a vectors-by-codes matrix."""

import torch
from torch import Tensor

from straightvq.functional.soft.logits import Noise, distance_logits, row_tiles


def sample_code(z: Tensor, codes: Tensor, temperature: float, noise: Noise) -> Tensor:
    """Draws code k for a vector with probability ``softmax_k(-||z - c_k||^2 / temperature)``, by the Gumbel-max trick.

    Args:
        z: vectors.
        codes: all of them.
        temperature: in units of a squared distance.
        noise: the Gumbel numbers.

    Shape:
        z: Float (n, d); codes: Float (k, d).

    Returns:
        Int64 (n,). Memory is O(n d + k d).

    Example:
        >>> noise = Noise(torch.tensor(1), torch.tensor(0), 7, torch.arange(10_000))
        >>> z, codes = torch.zeros(10_000, 1), torch.tensor([[0.0], [1.0]])
        >>> drawn = sample_code(z, codes, 1.0, noise).float().mean()  # 1 / (1 + e) = 0.269 of the second
        >>> bool((drawn - 0.269).abs() < 0.02)
        True
    """
    centre = codes.detach().mean(0)  # distances do not depend on the origin
    indices: Tensor = torch.ops.straightvq.sample_code(
        z.detach() - centre, codes.detach() - centre, temperature, *noise
    )
    return indices


# A custom operator, so that a compiled graph neither unrolls the tiles nor keeps them.
@torch.library.custom_op("straightvq::sample_code", mutates_args=())
def _sample_code(
    z: Tensor, codes: Tensor, temperature: float, seed: Tensor, step: Tensor, stream: int, rows: Tensor
) -> Tensor:
    indices, noise = rows.new_empty(len(z)), Noise(seed, step, stream, rows)
    for part in row_tiles(len(z), len(codes), z.device):
        indices[part] = distance_logits(z[part], codes, temperature).add_(noise.tile(part, codes)).argmax(1)
    return indices


@_sample_code.register_fake
def _(z: Tensor, codes: Tensor, temperature: float, seed: Tensor, step: Tensor, stream: int, rows: Tensor) -> Tensor:
    return rows.new_empty(len(z))
