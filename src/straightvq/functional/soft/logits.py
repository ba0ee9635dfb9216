"""What the soft assignments below share: logits of one tile of vectors, and Gumbel noise that is drawn again.

Shapes: N vectors, K codes, D their width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from straightvq.functional.draws import draw_gumbel

# Entries of one tile: a few of them stay in a CPU's cache; an accelerator wants fewer, larger launches.
_TILE, _TILE_ACCELERATOR = 1 << 16, 1 << 22


class Noise(NamedTuple):
    """Where Gumbel numbers come from, so that they are made where they are needed and nobody holds N x K of them.

    Attributes:
        seed: Int64 ().
        step: Int64 ().
        stream: of the draws.
        rows: Int64 (n,), the number of each vector, see ``draw_integers``.
    """

    seed: Tensor
    step: Tensor
    stream: int
    rows: Tensor

    def tile(self, part: slice, codes: Tensor) -> Tensor:
        """Gumbel numbers of some vectors, Float (rows, k)."""
        rows = self.rows[part]
        return draw_gumbel(self.seed, self.step, self.stream, (len(rows), len(codes)), codes.dtype, rows=rows)


def row_tiles(n: int, columns: int, device: torch.device) -> Iterator[slice]:
    """The rows of an n x columns matrix that are held at once."""
    size = _TILE if device.type == "cpu" else _TILE_ACCELERATOR
    rows = max(16, size // columns)
    yield from (slice(start, start + rows) for start in range(0, n, rows))


def distance_logits(z: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """``-||z - c||^2 / temperature`` but for a number that all codes of a vector share, Float (n, k).

    Products keep the more digits the nearer both are to the origin.
    """
    bias = codes.square().sum(1) / -temperature
    return torch.addmm(bias, z, codes.T, alpha=2 / temperature)


def product_logits(z: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """``<z, c> / temperature``, Float (n, k)."""
    return z @ codes.T / temperature
