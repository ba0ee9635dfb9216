"""``argmin_k bias_k - <z, c_k>`` by matrix products that are made and used up one tile at a time.

With ``bias_k = ||c_k||^2 / 2`` the value is half the squared distance less ``||z||^2 / 2``. The products are rounded,
so that what comes out smallest is a candidate; `certain.py` says what is certain about it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Entries of one tile: 8 MB in float32 stay in a CPU's cache; an accelerator wants fewer, larger launches.
_TILE, _TILE_ACCELERATOR = 1 << 21, 1 << 24
# Codes per tile of the CPU: more than vectors, so that each vector's candidates are read from few tiles.
_TILE_CODES = 2048
# The minimum of a block is a vector instruction per entry; where it is has to be asked once per block only. Members of
# a block at most, and blocks at least: the instructions take as many side by side.
_MEMBERS, _BLOCKS = 32, 64


def padded(codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Both with codes added that are infinitely far, to a whole number of blocks."""
    spare = -len(codes) % _BLOCKS
    if not spare:
        return codes, bias
    return F.pad(codes, (0, 0, 0, spare)), F.pad(bias, (0, spare), value=torch.inf)


def best_and_next(z: Tensor, codes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The code of the smallest value for each vector, Int64 (n, 1), and the smallest value of all others, (n,).

    Codes and bias come from `padded`; where no value is a number the index may be one of the codes added there.
    """
    indices = torch.empty(len(z), 1, dtype=torch.int64, device=z.device)
    others = torch.empty_like(z[:, 0])
    for rows, tiles in _walk(z, codes, bias):
        best = other = torch.full_like(others[rows], torch.inf)
        index = torch.zeros_like(indices[rows, 0])
        for start, tile in tiles:
            value, place, next_value = _best_and_next(tile)
            index = torch.where(value < best, place + start, index)
            other = torch.minimum(torch.minimum(other, next_value), torch.maximum(best, value))
            best = torch.minimum(best, value)
        indices[rows, 0], others[rows] = index, other
    return indices, others


def best_few(z: Tensor, codes: Tensor, bias: Tensor, few: int) -> tuple[Tensor, Tensor]:
    """The codes of the ``few`` smallest values for each vector, Int64 (n, few), and the largest of those values, (n,).

    Codes and bias come from `padded`: of fewer codes than asked for, some are those added there.
    """
    few = min(few, len(codes))
    indices = torch.empty(len(z), few, dtype=torch.int64, device=z.device)
    last = torch.empty_like(z[:, 0])
    for rows, tiles in _walk(z, codes, bias):
        found = [(start, *_best_few(tile, few)) for start, tile in tiles]
        values, best = torch.cat([values for _, values, _ in found], 1).topk(few, largest=False)
        indices[rows] = torch.cat([start + index for start, _, index in found], 1).gather(1, best)
        last[rows] = values[:, -1]
    return indices, last


def _walk(z: Tensor, codes: Tensor, bias: Tensor) -> Iterator[tuple[slice, Iterator[tuple[int, Tensor]]]]:
    """Chunk by chunk of the vectors: its rows, and its tiles with the code that each begins at.

    A tile is (rows, members, blocks): code ``start + i * blocks + j`` is at ``[:, i, j]``. The next one overwrites it.
    """
    size = _TILE if z.device.type == "cpu" else _TILE_ACCELERATOR
    columns = min(len(codes), _TILE_CODES * size // _TILE)
    step = max(1, min(len(z), size // columns))
    buffer = z.new_empty(step * columns)

    def tiles(zs: Tensor) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(codes), columns):
            cs = codes[start : start + columns]
            out = buffer[: len(zs) * len(cs)].view(len(zs), len(cs))
            torch.addmm(bias[start : start + columns], zs, cs.T, alpha=-1, out=out)
            yield start, out.view(len(zs), min(_MEMBERS, len(cs) // _BLOCKS), -1)

    for row in range(0, len(z), step):
        yield slice(row, row + step), tiles(z[row : row + step])


def _best_and_next(tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest entry of each row, its place, and the smallest of the others."""
    least = tile.amin(1)
    block = least.min(1).indices[:, None]
    members = tile.gather(2, block[:, None].expand(-1, tile.shape[1], 1))[:, :, 0]
    value, member = members.min(1)
    others = members.scatter_(1, member[:, None], torch.inf).amin(1)
    others = torch.minimum(others, least.scatter_(1, block, torch.inf).amin(1))
    return value, member * tile.shape[2] + block[:, 0], others


def _best_few(tile: Tensor, few: int) -> tuple[Tensor, Tensor]:
    """The ``few`` smallest entries of each row and their places: they are in as many blocks at most."""
    block = tile.amin(1).topk(min(few, tile.shape[2]), largest=False).indices
    members = tile.gather(2, block[:, None].expand(-1, tile.shape[1], -1)).flatten(1)
    value, at = members.topk(min(few, members.shape[1]), largest=False)
    return value, at // block.shape[1] * tile.shape[2] + block.gather(1, at % block.shape[1])


def products_are_lowered(device: torch.device) -> bool:
    """Whether the program lets float32 products on the device be rounded to TF32 or bfloat16.

    These settings tell however it said so (``allow_tf32``, ``fp32_precision``, `torch.set_float32_matmul_precision`).
    """
    onednn: Any = torch.backends.mkldnn  # whose `matmul` is made when torch is imported
    if not hasattr(onednn, "matmul"):  # torch before 2.9
        if device.type == "cpu":
            return torch.get_float32_matmul_precision() == "medium"
        return torch.backends.cuda.matmul.allow_tf32
    settings = [onednn.matmul.fp32_precision]
    if device.type != "cpu":
        settings.append(torch.backends.cuda.matmul.fp32_precision)
    return any(setting in ("tf32", "bf16") for setting in settings)


def split(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Wider operands whose product is that of ``z`` and ``codes`` in float32 even where products are lowered.

    A number is the sum of three of eight digits, which neither TF32 nor bfloat16 rounds. Of their nine products the
    three below 2^-24 of the whole are left out.
    """
    z1, z2, z3 = _digits(z)
    c1, c2, c3 = _digits(codes)
    return torch.cat([z1, z1, z2, z1, z3, z2], 1), torch.cat([c1, c2, c1, c3, c1, c2], 1)


def _digits(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = x.bfloat16().to(x.dtype)
    second = (x - first).bfloat16().to(x.dtype)
    return first, second, (x - first - second).bfloat16().to(x.dtype)
