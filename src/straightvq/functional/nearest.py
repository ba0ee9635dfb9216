"""Nearest-code search in bounded memory.

``||z - c||^2 = ||z||^2 - 2 <z, c> + ||c||^2`` makes the search a matrix product, whose rounding is relative to the
lengths of ``z`` and ``c`` and not to their distance. So a product only proposes; differences decide. On the CPU what
they leave open is searched again (`certain.py`). On other devices, where asking would wait for the device, a fixed
number of candidates is compared.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.functional.certain import search_surely
from straightvq.functional.copies import first_of_equals
from straightvq.functional.knn import check_usable, is_preferred
from straightvq.functional.points import Table, closest, closest_of_all, make_table, place
from straightvq.functional.tiles import best_few, padded, products_are_lowered, split
from straightvq.internals import is_exporting
from straightvq.kernels.nearest import Precision, can_search, search

Distance = Literal["euclidean", "cosine"]
Backend = Literal["auto", "faiss", "tiled", "triton"]

# Candidates per vector on devices that are not to be waited for, and numbers of their differences held at once.
_FEW, _NUMBERS = 4, 1 << 24
# Of the kernel's candidates: as good as float32 where four are compared, and three times as fast.
_PRECISION: Precision = "tf32x3"
# Differences to all codes are the fastest search of all for so many vectors, and up to so many of them in all.
_FEW_VECTORS, _FEW_DIFFERENCES = 2, 1 << 20


def nearest_code(z: Tensor, codes: Tensor, *, distance: Distance = "euclidean", backend: Backend = "auto") -> Tensor:
    """Index of the nearest code for every vector.

    ``euclidean``: ``argmin_k ||z - c_k||``; ``cosine``: ``argmax_k <z, c_k> / ||c_k||``. Ties go to the lowest
    index. Memory is one tile, never an ``n x k`` matrix. Computed in at least float32 whatever the autocast state and
    the precision that the program allows matrix products; changes no setting. No gradient.

    On the CPU the index is that of exact arithmetic wherever the squared distances of two codes (of unit vectors, for
    the cosine) differ by more than 2^-12 of the smaller, or 2^-18 without FAISS for the euclidean distance.

    On other devices, and in an exported graph, four codes are compared that closely: the best of a float32 matrix
    product, which is rounded relative to the squared distances from the middle of the codes. The nearest is among them
    unless four others are within that rounding of it. With ``"triton"`` the product is three products in TF32, rounded
    by 2^-19, and the four are the best of different columns of the kernel's tiles: two that close in one column may be
    taken for each other. In an exported graph, which multiplies as its runtime does, of more than four equal codes any
    may be found.

    Args:
        z: vectors, Float (n, d).
        codes: code vectors, Float (k, d), at least one.
        distance: ``"euclidean"`` or ``"cosine"``.
        backend: ``"tiled"``: torch, any device and dtype. ``"faiss"``: flat search of ``faiss-cpu`` (the extra
            ``fast``), float32 on the CPU, with torch's number of threads. ``"triton"``: a kernel for CUDA, float32 or
            less, widths up to 1,024; its first call for a width compiles it. ``"auto"``: on CUDA the kernel where
            Triton is installed; on the CPU FAISS up to width 32 where it can be used, but not on macOS, where two
            OpenMP runtimes in one process can crash; else tiled.

    Returns:
        Int64 (n,) in ``[0, k)``.

    Raises:
        ValueError, TypeError: for shapes that do not fit, other dtypes, an unknown distance or backend.

    Example:
        >>> z = torch.tensor([[0.2, 0.0], [3.0, 1.0]])
        >>> nearest_code(z, torch.tensor([[1.0, 0.0], [3.0, 3.0]])).tolist()
        [0, 1]
    """
    check_search("nearest_code", z, codes, distance)
    if backend not in get_args(Backend):
        raise InvalidValueError(f"`nearest_code`: `backend` must be one of {get_args(Backend)}. Got {backend!r}.")
    dtype = torch.promote_types(torch.promote_types(z.dtype, codes.dtype), torch.float32)
    z, codes = z.detach().to(dtype), codes.detach().to(dtype)
    # Graphs first: asking them for a length would fix it.
    if not torch.compiler.is_compiling() and distance == "euclidean" and _is_small(z, codes, backend):
        distances, indices = closest_of_all(z, codes)  # the operator below would take as long again
        if z.device.type != "cpu" or distances.isfinite().all():
            return indices
    if is_exporting():
        indices = _search_in_graph(z, codes, distance)
    else:
        indices = _search(z, codes, distance, backend)
    # A vector of length 0 is as far from all codes by angle.
    return indices if distance == "euclidean" else torch.where((z == 0).all(1), 0, indices)


def check_search(owner: str, z: Tensor, codes: Tensor, distance: str) -> None:
    """Refuses what no search can take."""
    for name, value in (("z", z), ("codes", codes)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InvalidTypeError(f"`{owner}`: `{name}` must be a floating-point tensor. Got {got}.")
    if z.ndim != 2 or codes.ndim != 2 or z.shape[1] != codes.shape[1]:
        raise InvalidValueError(
            f"`{owner}`: `z` must be (n, d) and `codes` (k, d) with the same d. "
            f"Got {tuple(z.shape)} and {tuple(codes.shape)}."
        )
    if codes.shape[0] == 0:
        raise InvalidValueError(f"`{owner}`: `codes` must hold at least one code. Got 0.")
    if distance not in ("euclidean", "cosine"):
        raise InvalidValueError(f"`{owner}`: `distance` must be 'euclidean' or 'cosine'. Got {distance!r}.")


@torch.library.custom_op("straightvq::search", mutates_args=())
def _search(z: Tensor, codes: Tensor, distance: str, backend: str) -> Tensor:
    if backend == "faiss":
        check_usable(z)
    if z.device.type != "cpu" or backend == "triton":
        return _search_among_few(z, codes, distance, backend)
    if _is_small(z, codes, backend):
        return search_surely(z, codes, distance, "differences")
    use_faiss = backend == "faiss" or (backend == "auto" and is_preferred(z))
    return search_surely(z, codes, distance, "faiss" if use_faiss else "products")


@_search.register_fake
def _(z: Tensor, codes: Tensor, distance: str, backend: str) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


def _is_small(z: Tensor, codes: Tensor, backend: str) -> bool:
    if backend == "tiled":
        return len(z) <= _FEW_VECTORS
    pairs = len(z) * len(codes)
    return backend == "auto" and (len(z) <= _FEW_VECTORS or pairs * (z.shape[1] + 8) <= _FEW_DIFFERENCES)


def _search_among_few(z: Tensor, codes: Tensor, distance: str, backend: str) -> Tensor:
    """The closest of a few candidates, on any device and without asking it; of equal codes the first."""
    table = make_table(codes, distance)
    z = place(z, table, distance)
    if _is_small(z, codes, backend):
        return closest_of_all(z, table.points)[1]
    near = z - table.middle
    if backend == "triton" or (backend == "auto" and can_search(near, table.centred, _PRECISION, _FEW)):
        candidates = search(near, table.centred, table.bias, _PRECISION, few=_FEW)
    else:
        candidates = _candidates(near, table)
    step = max(1, _NUMBERS // (_FEW * max(1, z.shape[1])))
    parts = zip(z.split(step), candidates.split(step), strict=True)
    return first_of_equals(table.points)[torch.cat([closest(part, table.points, few)[1] for part, few in parts])]


def _candidates(near: Tensor, table: Table) -> Tensor:
    """By products in full precision, whatever the program lets them be rounded to: Int64 (n, few)."""
    is_float32 = near.dtype == torch.float32
    is_lowered = is_float32 and products_are_lowered(near.device)
    while True:
        vectors, codes = split(near, table.centred) if is_lowered else (near, table.centred)
        found, _ = best_few(vectors, *padded(codes, table.bias), min(_FEW, len(codes)))
        if is_lowered or not is_float32 or not products_are_lowered(near.device):
            return found.clamp(max=len(codes) - 1)
        is_lowered = True  # by another thread, meanwhile


def _search_in_graph(z: Tensor, codes: Tensor, distance: str) -> Tensor:
    """In operations that other runtimes know, with the matrix."""
    table = make_table(codes, distance)
    z = place(z, table, distance)
    values = table.bias - (z - table.middle) @ table.centred.T
    return closest(z, table.points, values.topk(min(_FEW, len(codes)), largest=False).indices)[1]
