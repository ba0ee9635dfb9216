"""Nearest-code search in bounded memory.

Shapes: N vectors, K codes, D their width.
"""

import functools
import sys
import warnings
from types import ModuleType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["euclidean", "cosine"]
Backend = Literal["auto", "faiss", "tiled", "triton"]

# Entries of one distance tile: 8 MB in float32 stay in a CPU's cache; an accelerator wants fewer, larger launches.
_TILE, _TILE_ACCELERATOR = 1 << 21, 1 << 24
# Codes per tile of the CPU: about as many as vectors, so that both are read from memory rarely.
_TILE_CODES = 1024
# The minimum of a block is a vector instruction per entry; where it is has to be asked once per block only.
_BLOCK = 32
# FAISS 1.15 is up to twenty times slower for inputs of fewer numbers than this. Narrow vectors are padded with zeros to
# get there, as far as this width; what is smaller still is better off in torch.
_FAISS_NUMBERS, _FAISS_WIDTH = 1 << 17, 32
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio: spreads the bits of a row's hash


def nearest_code(z: Tensor, codes: Tensor, *, distance: Distance = "euclidean", backend: Backend = "auto") -> Tensor:
    """Index of the nearest code for every vector.

    ``euclidean``: ``argmin_k ||z - c_k||``; ``cosine``: ``argmax_k <z, c_k> / ||c_k||``. Ties go to the lowest
    index. No ``n x k`` matrix is held: memory is one tile. Distances are computed relative to the codes' mean, so
    that they keep their digits when the data are far from the origin, and in at least float32 whatever the
    autocast state. No gradient.

    Args:
        z: vectors.
        codes: code vectors, at least one.
        distance: ``"euclidean"`` or ``"cosine"``.
        backend: ``"tiled"``: torch, any device and dtype. ``"faiss"``: flat search of ``faiss-cpu`` (the extra
            ``fast``), float32 on the CPU, with torch's number of threads. ``"auto"``: FAISS where it can be used,
            but not on macOS, where two OpenMP runtimes in one process can crash; else tiled. ``"triton"``: a kernel
            for CUDA in exact float32, for widths up to 1,024; taken only when asked for, because it has been run
            in Triton's interpreter but not yet on a device. The indices are the same wherever the difference of
            the distances exceeds rounding.

    Shape:
        z: Float (n, d); codes: Float (k, d).

    Returns:
        Int64 (n,), each in ``[0, k)``.

    Raises:
        ValueError: for shapes that do not fit or an unknown distance.

    Example:
        >>> z = torch.tensor([[0.2, 0.0], [3.0, 1.0]])
        >>> nearest_code(z, torch.tensor([[1.0, 0.0], [3.0, 3.0]])).tolist()
        [0, 1]
    """
    for name, value in (("z", z), ("codes", codes)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"`nearest_code`: `{name}` must be a floating-point tensor. Got {got}.")
    if z.ndim != 2 or codes.ndim != 2 or z.shape[1] != codes.shape[1]:
        raise ValueError(
            "`nearest_code`: `z` must be (n, d) and `codes` (k, d) with the same d. "
            f"Got {tuple(z.shape)} and {tuple(codes.shape)}."
        )
    if codes.shape[0] == 0:
        raise ValueError("`nearest_code`: `codes` must hold at least one code. Got 0.")
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"`nearest_code`: `distance` must be 'euclidean' or 'cosine'. Got {distance!r}.")
    if backend not in get_args(Backend):
        raise ValueError(f"`nearest_code`: `backend` must be one of {get_args(Backend)}. Got {backend!r}.")
    dtype = torch.promote_types(torch.promote_types(z.dtype, codes.dtype), torch.float32)
    z, codes = z.detach().to(dtype), codes.detach().to(dtype)
    if distance == "cosine":
        # For unit-norm codes the largest inner product is the smallest angle; the length of z plays no part.
        codes = F.normalize(codes, dim=1)
    else:
        # ||z - c||^2 = ||z||^2 - 2 <z, c> + ||c||^2 after moving the origin into the codebook: the expansion then
        # subtracts numbers of the size of the spread, not of the mean. ||z||^2 is the same for all codes.
        centre = codes.mean(0)
        z, codes = z - centre, codes - centre
    if torch.compiler.is_exporting():
        return (_bias(codes, distance) - z @ codes.T).argmin(1)
    return _search(z, codes, distance, backend)


@torch.library.custom_op("straightvq::search", mutates_args=())
def _search(z: Tensor, codes: Tensor, distance: str, backend: str) -> Tensor:
    """Nearest of centred codes, or of unit-norm codes for the cosine."""
    if backend == "faiss" or (backend == "auto" and _can_use_faiss(z)):
        indices = _search_faiss(z, codes, distance)
    elif backend == "triton":
        from straightvq.kernels.nearest import search

        indices = search(z, codes, _bias(codes, distance))
    else:
        indices = _search_tiled(z, codes, _bias(codes, distance))
    return _first_of_equals(codes)[indices]


@_search.register_fake
def _(z: Tensor, codes: Tensor, distance: str, backend: str) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


def _bias(codes: Tensor, distance: str) -> Tensor:
    """What the search adds to ``-<z, c_k>``, (k,)."""
    return torch.zeros_like(codes[:, 0]) if distance == "cosine" else codes.square().sum(1) / 2


def _can_use_faiss(z: Tensor) -> bool:
    fits = z.device.type == "cpu" and z.dtype == torch.float32
    fits &= len(z) * max(z.shape[1], _FAISS_WIDTH) >= _FAISS_NUMBERS
    return fits and sys.platform != "darwin" and _faiss() is not None


@functools.cache
def _faiss() -> ModuleType | None:
    """FAISS, imported at first use; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its bindings announce deprecations of their own making
            import faiss
    except ImportError:
        return None
    return faiss


def _search_faiss(z: Tensor, codes: Tensor, distance: str) -> Tensor:
    faiss: Any = _faiss()
    if faiss is None or z.device.type != "cpu" or z.dtype != torch.float32:
        raise ValueError(
            "`nearest_code`: `backend` 'faiss' needs the package faiss-cpu and float32 on the CPU. "
            f"Got {z.dtype} on {z.device}{'' if faiss else ', and faiss is not installed'}."
        )
    faiss.omp_set_num_threads(torch.get_num_threads())
    metric = faiss.METRIC_INNER_PRODUCT if distance == "cosine" else faiss.METRIC_L2
    if not len(z):
        return torch.empty(0, dtype=torch.int64)
    missing = max(0, min(_FAISS_WIDTH, -(-_FAISS_NUMBERS // len(z))) - z.shape[1])
    if missing:
        z, codes = F.pad(z, (0, missing)), F.pad(codes, (0, missing))
    _, indices = faiss.knn(z.contiguous().numpy(), codes.contiguous().numpy(), 1, metric=metric)
    # -1 stands for "none": only where no distance is a number.
    return torch.from_numpy(indices[:, 0]).clamp(min=0)


def _search_tiled(z: Tensor, codes: Tensor, bias: Tensor) -> Tensor:
    """``argmin_k bias_k - <z, c_k>`` by tiles over vectors and codes."""
    spare = -len(codes) % _BLOCK
    if spare:  # codes that are infinitely far
        codes, bias = F.pad(codes, (0, 0, 0, spare)), F.pad(bias, (0, spare), value=float("inf"))
    n, k = len(z), len(codes)
    size = _TILE if z.device.type == "cpu" else _TILE_ACCELERATOR
    codes_step = min(k, _TILE_CODES * size // _TILE)
    rows_step = max(1, min(n, size // codes_step))
    indices = torch.empty(n, dtype=torch.int64, device=z.device)
    tile = z.new_empty(rows_step * codes_step)
    with _full_precision_products():
        for row in range(0, n, rows_step):
            zs = z[row : row + rows_step]
            best_index = torch.zeros(len(zs), dtype=torch.int64, device=z.device)
            best_value = z.new_full((len(zs),), float("inf"))
            for start in range(0, k, codes_step):
                cs = codes[start : start + codes_step]
                out = tile[: len(zs) * len(cs)].view(len(zs), len(cs))
                torch.addmm(bias[start : start + codes_step], zs, cs.T, alpha=-1, out=out)
                value, index = _min_of_rows(out)
                closer = value < best_value  # strictly: a tie stays with the lower index
                best_index = torch.where(closer, index + start, best_index)
                best_value = torch.where(closer, value, best_value)
            indices[row : row + rows_step] = best_index
    return indices


def _min_of_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x.min(1)``, the first of equals, in a fifth of its time: x (n, m) with m a multiple of the block."""
    blocks = x.view(len(x), -1, _BLOCK)
    block = blocks.amin(2).argmin(1)
    value, place = blocks.gather(1, block[:, None, None].expand(-1, 1, _BLOCK))[:, 0].min(1)
    return value, block * _BLOCK + place


def _first_of_equals(codes: Tensor) -> Tensor:
    """For each code the lowest index of a code equal to it, Int64 (k,).

    A matrix product may give equal codes values that differ in the last place, by their position in a block, so equal
    codes are found by their bits: sorted by a hash of the row, with neighbours compared in full.
    """
    bits = (codes + 0.0).view(torch.int64 if codes.dtype == torch.float64 else torch.int32).long()
    place = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    key = ((bits ^ (bits >> 16)) * (place * _ODD | 1)).sum(1)
    ordered_key, order = key.sort(stable=True)
    if key.device.type == "cpu" and not (ordered_key[1:] == ordered_key[:-1]).any():
        return torch.arange(len(order))  # no two are equal; elsewhere the question would wait for the device
    ordered = codes[order]
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(1)
    at = torch.arange(len(order), device=order.device)
    run = torch.where(starts, at, 0).cummax(0).values
    return torch.empty_like(order).scatter(0, order, order[run])


class _full_precision_products:  # noqa: N801 (reads as the context manager that it is)
    """Keeps float32 matrix products in float32 on CUDA, whatever the program chose for its own (no TF32)."""

    def __enter__(self) -> None:
        self._allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self._allowed
