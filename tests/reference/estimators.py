"""Estimators as their papers write them, with every matrix and one-hot vector made: to be read, and compared with.

Each gives the output of one layer; torch differentiates it. Float64, vector by vector.
"""

import torch
from torch import Tensor


def rotation(z: Tensor, code: Tensor, max_gain: float | None) -> Tensor:
    """``sg[gain R] z`` with ``R = I - 2 w w^T + 2 q z^T`` for unit vectors z, q and ``w = (z + q) / |z + q|``."""
    rows = []
    for x, q in zip(z, code, strict=True):
        start, end = x.detach() / x.detach().norm(), q.detach() / q.detach().norm()
        w = (start + end) / (start + end).norm()
        matrix = torch.eye(len(x), dtype=x.dtype) - 2 * torch.outer(w, w) + 2 * torch.outer(end, start)
        gain = q.detach().norm() / x.detach().norm()
        rows.append((gain if max_gain is None else gain.clamp(max=max_gain)) * matrix @ x)
    return torch.stack(rows)


def diveq(z: Tensor, code: Tensor, noise: Tensor) -> Tensor:
    """``z + |e - z| sg[(v + e - z) / |v + e - z|]``."""
    tilted = noise + (code - z)
    return z + (code - z).norm(dim=1, keepdim=True) * (tilted / tilted.norm(dim=1, keepdim=True)).detach()


def nsvq(z: Tensor, code: Tensor, noise: Tensor) -> Tensor:
    """``z + |e - z| v / |v|``."""
    return z + (code - z).norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True)


def dynamic(z: Tensor, code: Tensor, indices: Tensor) -> Tensor:
    """``w z + sg[e - w z]``, ``w = d*_k / d``."""
    squares = (z - code).square().sum(1).detach()
    weights = []
    for square, index in zip(squares, indices, strict=True):
        smallest = min(other for other, k in zip(squares, indices, strict=True) if k == index)
        weights.append(1.0 if square == smallest else float(smallest / square))
    scaled = torch.tensor(weights, dtype=z.dtype)[:, None] * z
    return scaled + (code - scaled).detach()


def distance_logits(z: Tensor, codes: Tensor, temperature: float) -> Tensor:
    return -(z[:, None] - codes).square().sum(2) / temperature


def gumbel(z: Tensor, codes: Tensor, indices: Tensor, noise: Tensor, logits: Tensor, softness: float) -> Tensor:
    """``(onehot + p - sg[p]) C``, p the relaxed sample."""
    p = ((logits + noise) / softness).softmax(1)
    onehot = torch.eye(len(codes), dtype=z.dtype)[indices]
    return (onehot + p - p.detach()) @ codes


def reinmax(z: Tensor, codes: Tensor, indices: Tensor, temperature: float, softness: float) -> Tensor:
    """ReinMax's algorithm: ``2 p_2 - p_0 / 2`` takes the place of the sample in the backward.

    ``p_2`` is the softmax of ``log p_1``, moved by the logits: its derivative is that of a softmax at ``p_1``.
    """
    logits = distance_logits(z, codes, temperature)
    onehot = torch.eye(len(codes), dtype=z.dtype)[indices]
    p_0 = logits.softmax(1)
    p_1 = ((logits / softness).softmax(1) + onehot) / 2
    p_2 = ((p_1.log() - logits).detach() + logits).softmax(1)
    surrogate = 2 * p_2 - p_0 / 2
    return (onehot + surrogate - surrogate.detach()) @ codes
