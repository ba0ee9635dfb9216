"""Sums of Gaussian kernels over all pairs of two sets, tile by tile, in the backward again."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Widths of the Gaussians, relative to the mean squared distance.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Entries of one tile: a few of them stay in a CPU's cache; an accelerator wants fewer, larger launches.
_TILE, _TILE_ACCELERATOR = 1 << 16, 1 << 22


def kernel_sum(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, scales: Sequence[float]) -> Tensor:
    """``sum_ij of_x_i of_y_j k(x_i, y_j)``, k the mean over the scales of ``exp(-||x_i - y_j||^2 / scale)``.

    Only ``y`` takes a gradient. Memory is that of the arguments.

    Shape:
        x: Float (n, d); y: Float (m, d); of_x: Float (n,); of_y: Float (m,).

    Example:
        >>> point = torch.zeros(1, 1)
        >>> round(kernel_sum(point, point + 1, torch.ones(1), torch.ones(1), [1.0]).item(), 4)  # exp(-1)
        0.3679
    """
    total: Tensor = torch.ops.straightvq.kernel_sum(x, y, of_x, of_y, list(scales))
    return total


def _tiles(x: Tensor, y: Tensor) -> Iterator[slice]:
    rows = max(16, (_TILE if x.device.type == "cpu" else _TILE_ACCELERATOR) // max(1, len(y)))
    yield from (slice(start, start + rows) for start in range(0, len(x), rows))


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y).square()


# Schemas are written out because torch 2.6 does not read them off `list[float]`.
_SETS = "Tensor x, Tensor y, Tensor of_x, Tensor of_y, float[] scales"


@torch.library.custom_op("straightvq::kernel_sum", mutates_args=(), schema=f"({_SETS}) -> Tensor")
def _kernel_sum(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, scales: list[float]) -> Tensor:
    total = y.new_zeros(())
    for rows in _tiles(x, y):
        squares = _squares(x[rows], y)
        for scale in scales:
            total += of_x[rows] @ (squares / -scale).exp() @ of_y
    return total / len(scales)


@torch.library.custom_op(
    "straightvq::kernel_sum_backward", mutates_args=(), schema=f"(Tensor by_total, {_SETS}) -> Tensor"
)
def _kernel_sum_backward(
    by_total: Tensor, x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, scales: list[float]
) -> Tensor:
    to_y = torch.zeros_like(y)
    # d k / d y_j = sum over the scales of exp(-||x - y_j||^2 / scale) 2 (x - y_j) / scale.
    for rows in _tiles(x, y):
        squares = _squares(x[rows], y)
        factor = torch.zeros_like(squares)
        for scale in scales:
            factor += (squares / -scale).exp() / scale
        factor *= of_x[rows, None]
        to_y += factor.T @ x[rows] - factor.sum(0)[:, None] * y
    return to_y * (of_y[:, None] * by_total * (2 / len(scales)))


@_kernel_sum.register_fake
def _(x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, scales: list[float]) -> Tensor:
    return y.new_empty(())


@_kernel_sum_backward.register_fake
def _(by_total: Tensor, x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, scales: list[float]) -> Tensor:
    return torch.empty_like(y)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.scales = inputs[4]


def _gradient(ctx: Any, by_total: Tensor) -> tuple[None, Tensor, None, None, None]:
    return None, torch.ops.straightvq.kernel_sum_backward(by_total, *ctx.saved_tensors, ctx.scales), None, None, None


_kernel_sum.register_autograd(_gradient, setup_context=_keep)
