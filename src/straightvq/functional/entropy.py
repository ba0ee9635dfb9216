"""Entropies of soft assignments, and how much each code is used on average, without a vectors-by-codes matrix.

Both sums below are made tile by tile, and the backward makes the tiles again: what is kept is the input. Second
derivatives, and the transforms of ``torch.func``, keep the tiles. Shapes: N vectors, K codes, D their width, G bits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.functional.soft.logits import row_tiles
from straightvq.internals import in_transform

# Beyond these log-odds a probability is 0 in every dtype; infinite ones would make NaN of its entropy.
_CERTAIN = 1e3
# Of log-odds, so that 0 stays 0 times it however small the temperature.
_STEEPEST = 1e30


def entropy(shares: Tensor) -> Tensor:
    """``-sum_k p_k log p_k`` in nats over the last axis; 0 log 0 is 0, and its gradient finite.

    Example:
        >>> entropy(torch.tensor([0.5, 0.5, 0.0]))
        tensor(0.6931)
    """
    return -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum(-1)


def soft_usage(z: Tensor, codes: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums over vectors of the entropy of ``p(k | z) ~ exp(-||z - c_k||^2 / temperature)``, and of ``p`` itself.

    Args:
        z: vectors.
        codes: all of them.
        weight: of each vector in the sums; takes no gradient.
        temperature: in units of a squared distance.

    Shape:
        z: Float (n, d); codes: Float (k, d); weight: Float (n,).

    Returns:
        the entropies' sum Float () in nats, and the sums of probabilities Float (k,), both with gradients for vectors
        and codes. Memory is O(n d + k d).

    Example:
        >>> z, codes = torch.zeros(3, 1), torch.tensor([[-1.0], [1.0]])
        >>> total, usage = soft_usage(z, codes, torch.ones(3), 1.0)
        >>> round(total.item() / 3, 4), usage.tolist()
        (0.6931, [1.5, 1.5])
    """
    # Distances do not depend on the origin; products keep more digits near it.
    centre = codes.detach().mean(0)
    total, usage = _operator("soft_usage", _soft_usage)(z - centre, codes - centre, weight, temperature)
    return total, usage


def bit_logits(z: Tensor, half_width: float, temperature: float) -> Tensor:
    """Log-odds ``4 half_width z / temperature`` that a bit is 1, elementwise, cut where they are certain.

    The two codes are at ``-half_width`` and ``half_width``, and ``temperature`` is in units of a squared distance.

    Example:
        >>> bit_logits(torch.tensor([0.25, -9.0]), 1.0, 0.01).tolist()
        [100.0, -1000.0]
    """
    return (z * min(4 * half_width / temperature, _STEEPEST)).clamp(-_CERTAIN, _CERTAIN)


def bit_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability ``sigmoid(logits)``, elementwise; exact far from 0 too.

    Example:
        >>> [f"{h:.4g}" for h in bit_entropy(torch.tensor([0.0, 50.0])).tolist()]
        ['0.6931', '9.837e-21']
    """
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def bit_usage(logits: Tensor, weight: Tensor) -> Tensor:
    """Sum over vectors of the probability of every combination of G independent bits.

    ``usage[c] = sum_n weight_n prod_i p_n(bit i of c)``, bit i being 1 with probability ``sigmoid(logits_ni)`` and of
    weight ``2^i`` in ``c``. It is exact: the combinations of one half of the bits times those of the other half are a
    matrix product over the vectors, so that no more than ``n 2^(G/2)`` numbers are looked at.

    Args:
        logits: of the bits.
        weight: of each vector; takes no gradient.

    Shape:
        logits: Float (n, g); weight: Float (n,).

    Returns:
        Float (2^g,). Memory is O(n g + 2^g).

    Example:
        >>> bit_usage(torch.tensor([[100.0, -100.0], [100.0, 0.0]]), torch.ones(2)).tolist()
        [0.0, 1.5, 0.0, 0.5]
    """
    usage: Tensor = _operator("bit_usage", _bit_usage)(logits.contiguous(), weight)
    return usage


def _operator(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """The operator, or where none can serve its plain function, whose tiles autograd keeps."""
    needs_plain = not torch.compiler.is_compiling() and in_transform()
    return plain if needs_plain else getattr(torch.ops.straightvq, name)


def _soft_usage(z: Tensor, codes: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    total, usage = z.new_zeros(()), z.new_zeros(len(codes))
    for rows in row_tiles(len(z), len(codes), z.device):
        log_p = _log_p(z[rows], codes, temperature)
        p = log_p.exp()
        total -= weight[rows] @ (p * log_p).sum(1)
        usage += weight[rows] @ p
    return total, usage


def _soft_usage_backward(
    by_entropy: Tensor, by_usage: Tensor, z: Tensor, codes: Tensor, weight: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    to_z, to_codes = torch.empty_like(z), torch.zeros_like(codes)
    scale = min(2 / temperature, _STEEPEST)
    for rows in row_tiles(len(z), len(codes), z.device):
        log_p = _log_p(z[rows], codes, temperature)
        p = log_p.exp()
        to_p = by_usage - by_entropy * log_p
        to_logits = p * (to_p - (p * to_p).sum(1, keepdim=True)) * (scale * weight[rows, None])
        to_z[rows] = to_logits @ codes
        to_codes += to_logits.T @ z[rows] - to_logits.sum(0)[:, None] * codes
    return to_z, to_codes


def _log_p(z: Tensor, codes: Tensor, temperature: float) -> Tensor:
    nearness = torch.addmm(codes.square().sum(1) / -2, z, codes.T)
    behind = nearness - nearness.detach().amax(1, keepdim=True)
    return (behind * min(2 / temperature, _STEEPEST)).clamp(min=-_CERTAIN).log_softmax(1)


def _bit_usage(logits: Tensor, weight: Tensor) -> Tensor:
    low, high = _halves(logits.shape[1])
    usage = logits.new_zeros(1 << high, 1 << low)
    for rows in row_tiles(len(logits), (1 << low) + (1 << high), logits.device):
        left, right = (_combinations(part) for part in logits[rows].split([low, high], 1))
        usage += (right * weight[rows, None]).T @ left
    return usage.view(-1)


def _bit_usage_backward(by_usage: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    low, high = _halves(logits.shape[1])
    by_usage = by_usage.view(1 << high, 1 << low)
    to_logits = torch.empty_like(logits)
    # d p(c) / d logit_i = p(c) (bit i of c - p_i).
    for rows in row_tiles(len(logits), (1 << low) + (1 << high), logits.device):
        left, right = (_combinations(part) for part in logits[rows].split([low, high], 1))
        right = right * weight[rows, None]
        of_left = (right @ by_usage) * left
        of_right = (left @ by_usage.T) * right
        of_ones = torch.cat([of_left @ _bits(low, left), of_right @ _bits(high, right)], 1)
        to_logits[rows] = of_ones - logits[rows].sigmoid() * of_left.sum(1, keepdim=True)
    return to_logits


# Custom operators, so that a compiled graph neither unrolls the tiles nor keeps them.
_soft_op = torch.library.custom_op("straightvq::soft_usage", _soft_usage, mutates_args=())
_soft_backward_op = torch.library.custom_op("straightvq::soft_usage_backward", _soft_usage_backward, mutates_args=())
_bits_op = torch.library.custom_op("straightvq::bit_usage", _bit_usage, mutates_args=())
_bits_backward_op = torch.library.custom_op("straightvq::bit_usage_backward", _bit_usage_backward, mutates_args=())


@_soft_op.register_fake
def _(z: Tensor, codes: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return z.new_empty(()), z.new_empty(len(codes))


@_soft_backward_op.register_fake
def _(
    by_entropy: Tensor, by_usage: Tensor, z: Tensor, codes: Tensor, weight: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(codes)


@_bits_op.register_fake
def _(logits: Tensor, weight: Tensor) -> Tensor:
    return logits.new_empty(1 << logits.shape[1])


@_bits_backward_op.register_fake
def _(by_usage: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(logits)


def _keep_soft(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.temperature = inputs[3]


def _keep_bits(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _of_soft(ctx: Any, by_entropy: Tensor, by_usage: Tensor) -> tuple[Tensor, Tensor, None, None]:
    backward = _backward("soft_usage_backward", _soft_usage_backward)
    gradients = backward(by_entropy, by_usage, *ctx.saved_tensors, ctx.temperature)
    return *gradients, None, None


def _of_bits(ctx: Any, by_usage: Tensor) -> tuple[Tensor, None]:
    backward = _backward("bit_usage_backward", _bit_usage_backward)
    return backward(by_usage.contiguous(), *ctx.saved_tensors), None


def _backward(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """As ``_operator``; a backward that is to be differentiated itself (``create_graph``) is plain as well."""
    return plain if torch.is_grad_enabled() and not torch.compiler.is_compiling() else _operator(name, plain)


_soft_op.register_autograd(_of_soft, setup_context=_keep_soft)
_bits_op.register_autograd(_of_bits, setup_context=_keep_bits)


def _halves(bits: int) -> tuple[int, int]:
    return bits // 2, bits - bits // 2


def _combinations(logits: Tensor) -> Tensor:
    """Probabilities of all combinations (n, 2^g) of the bits (n, g)."""
    table = torch.ones_like(logits[:, :1]) if logits.shape[1] else logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        table = torch.cat([table * torch.sigmoid(-bit)[:, None], table * torch.sigmoid(bit)[:, None]], 1)
    return table


def _bits(count: int, like: Tensor) -> Tensor:
    """Bit i of every combination (2^count, count)."""
    places = torch.arange(count, device=like.device)
    return (torch.arange(1 << count, device=like.device)[:, None] >> places & 1).to(like.dtype)
