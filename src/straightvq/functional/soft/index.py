"""The gradient of an index: a code is a one-hot vector times the table, and something stands for its derivative.

``out = d C`` with ``d`` one-hot. For the gradient ``g`` of ``out``, ``G_k = <g, c_k>`` is that of the index, and
``J(p) G = p * (G - <p, G>)``, for a softmax ``p``, is how it reaches logits. Everything is made tile by tile, in the
backward: what is kept is the input. Shapes: N vectors, K codes, D their width.
"""

from typing import Any

import torch
from torch import Tensor

from straightvq.functional.soft.logits import Noise, distance_logits, product_logits, row_tiles


def gumbel_index(
    z: Tensor, codes: Tensor, indices: Tensor, noise: Noise | None, *, temperature: float, softness: float
) -> Tensor:
    """The codes drawn, with the gradient of the straight-through Gumbel-softmax.

    With logits ``a = -||z - c||^2 / temperature`` and the noise that drew the codes, ``a`` gets ``J(p) G / softness``,
    ``p = softmax((a + noise) / softness)``, and hands it on to vectors and all codes. The code drawn gets ``g`` too.

    Args:
        z: vectors.
        codes: all of them.
        indices: what was drawn; -1 stands for 0.
        noise: the Gumbel numbers; None for zeros.
        temperature: in units of a squared distance.
        softness: temperature of the gradient's softmax.

    Shape:
        z: Float (n, d); codes: Float (k, d); indices: Int64 (n,).

    Returns:
        Float (n, d), the rows of ``codes`` to the bit.
    """
    return _index(z, codes, indices, noise, "gumbel", temperature, softness)


def reinmax_index(z: Tensor, codes: Tensor, indices: Tensor, *, temperature: float, softness: float) -> Tensor:
    """The codes drawn, with the second-order gradient of ReinMax; arguments as for ``gumbel_index``.

    ``a`` gets ``2 J(p_1) G - J(p_0) G / 2``, ``p_0 = softmax(a)``, ``p_1 = (softmax(a / softness) + d) / 2``.
    """
    return _index(z, codes, indices, None, "reinmax", temperature, softness)


def product_index(z: Tensor, codes: Tensor, indices: Tensor, *, temperature: float) -> Tensor:
    """The codes at ``indices``, with the gradient through ``p = softmax(<z, c> / temperature)``.

    Arguments and shapes are those of ``gumbel_index``, for the logits ``<z, c> / temperature``.
    """
    return _index(z, codes, indices, None, "product", temperature, 1.0)


def _index(
    z: Tensor, codes: Tensor, indices: Tensor, noise: Noise | None, rule: str, temperature: float, softness: float
) -> Tensor:
    places = noise or Noise(indices[:0], indices[:0], 0, indices[:0])
    out: Tensor = torch.ops.straightvq.index(z, codes, indices.clamp(min=0), rule, temperature, softness, *places)
    return out


def _logit_gradient(
    logits: Tensor, by_index: Tensor, indices: Tensor, noise: Tensor | float, rule: str, softness: float
) -> Tensor:
    """``dL / da`` of one tile, from logits ``a`` and ``G``, all (rows, k)."""
    if rule == "reinmax":
        halfway = (logits / softness).softmax(1)
        halfway.scatter_add_(1, indices[:, None], torch.ones_like(halfway[:, :1])).div_(2)
        return 2 * _through_softmax(halfway, by_index) - _through_softmax(logits.softmax(1), by_index) / 2
    return _through_softmax(((logits + noise) / softness).softmax(1), by_index) / softness


def _through_softmax(p: Tensor, gradient: Tensor) -> Tensor:
    return p * (gradient - (p * gradient).sum(1, keepdim=True))


# Custom operators, so that a compiled graph neither unrolls the tiles nor keeps them.


@torch.library.custom_op("straightvq::index", mutates_args=())
def _index_op(
    z: Tensor, codes: Tensor, indices: Tensor, rule: str, temperature: float, softness: float,
    seed: Tensor, step: Tensor, stream: int, rows: Tensor,
) -> Tensor:  # fmt: skip
    return codes.index_select(0, indices)


@torch.library.custom_op("straightvq::index_backward", mutates_args=())
def _index_backward(
    g: Tensor, z: Tensor, codes: Tensor, indices: Tensor, rule: str, temperature: float, softness: float,
    seed: Tensor, step: Tensor, stream: int, rows: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    to_z, to_codes = torch.empty_like(z), torch.zeros_like(codes).index_add_(0, indices, g)
    noise = Noise(seed, step, stream, rows) if len(rows) else None
    # A softmax does not see what a vector's codes have in common: they may be moved; for distances, both together.
    centre, is_product = codes.mean(0), rule == "product"
    codes, logits_of = codes - centre, product_logits if is_product else distance_logits
    z, scale = (z, 1 / temperature) if is_product else (z - centre, 2 / temperature)
    for part in row_tiles(len(z), len(codes), z.device):
        logits, by_index = logits_of(z[part], codes, temperature), g[part] @ codes.T
        drawn = noise.tile(part, codes) if noise else 0.0
        to_logits = scale * _logit_gradient(logits, by_index, indices[part], drawn, rule, softness)
        to_z[part] = to_logits @ codes  # the gradients of a vector's logits add up to 0
        to_codes += to_logits.T @ z[part]
        if not is_product:
            to_codes -= to_logits.sum(0)[:, None] * codes
    return to_z, to_codes


@_index_op.register_fake
def _(
    z: Tensor, codes: Tensor, indices: Tensor, rule: str, temperature: float, softness: float,
    seed: Tensor, step: Tensor, stream: int, rows: Tensor,
) -> Tensor:  # fmt: skip
    return torch.empty_like(z)


@_index_backward.register_fake
def _(
    g: Tensor, z: Tensor, codes: Tensor, indices: Tensor, rule: str, temperature: float, softness: float,
    seed: Tensor, step: Tensor, stream: int, rows: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(z), torch.empty_like(codes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    z, codes, indices, *settings, seed, step, stream, rows = inputs
    ctx.save_for_backward(z, codes, indices, seed, step, rows)
    ctx.settings, ctx.stream = settings, stream


def _of_index(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    z, codes, indices, seed, step, rows = ctx.saved_tensors
    gradients = torch.ops.straightvq.index_backward(
        g.contiguous(), z, codes, indices, *ctx.settings, seed, step, ctx.stream, rows
    )
    return *gradients, *(None,) * 8


_index_op.register_autograd(_of_index, setup_context=_keep)
