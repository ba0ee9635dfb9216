"""The nearest-code search of the CPU: every index is certain.

A matrix product proposes codes. The distance of the best is then computed by differences, and a bound on the rounding
of the product says whether one that was not proposed could be nearer. Vectors for which it could are searched again,
with more candidates, in float64, and at last by differences to all codes.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from straightvq.functional.copies import first_of_equals
from straightvq.functional.knn import knn
from straightvq.functional.points import Table, closest, closest_of_all, make_table, place
from straightvq.functional.tiles import best_and_next, best_few, padded, products_are_lowered

# FAISS tells the nearest code and nothing of the others: one whose squared distance is smaller by no more than this
# part may be missed.
_TOLERANCE = 2.0**-12
# Below this squared chord, an angle of half a degree, the rounding of unit vectors in float32 may exceed the tolerance.
_SHORT_CHORD = 2.0**-14
_CANDIDATES = 8
# A search for more vectors than that takes longer than to look for copies among the codes.
_CHEAP = 64
# Numbers of one chunk of vectors, and distances by differences held at once: what is made of them stays in the cache.
_CHUNK, _TILE = 1 << 20, 1 << 20

Found = tuple[Tensor, Tensor]  # indices (n,), and whether each is certain (n,)
Search = Callable[[Tensor, Tensor, str], Found]  # vectors, codes, distance


def search_surely(z: Tensor, codes: Tensor, distance: str, by: Literal["differences", "faiss", "products"]) -> Tensor:
    """A quick search, then more careful ones for the vectors that are still in doubt: Int64 (n,)."""
    quick: dict[str, list[Search]] = {
        "differences": [_by_differences],
        "faiss": [_by_faiss, _by_products],
        "products": [_by_products],
    }
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    rows: slice | Tensor = slice(None)
    for search in (*quick[by], _by_candidates, _by_candidates_in_float64, _by_differences_in_float64):
        indices[rows], is_certain = search(z[rows], codes, distance)
        rows = torch.arange(len(z), device=z.device)[rows][~is_certain]
        if not len(rows):
            break
    return indices


def _by_faiss(z: Tensor, codes: Tensor, distance: str) -> Found:
    table = make_table(codes, distance)
    first = first_of_equals(table.points)  # of equal codes FAISS may take any

    def propose(near: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        squares, indices = knn(near, table.centred)
        return first[indices][:, None], squares

    return _settle(propose, z, table, distance, _TOLERANCE)


def _by_products(z: Tensor, codes: Tensor, distance: str) -> Found:
    return _in_full_precision(best_and_next, z, codes, distance)


def _by_candidates(z: Tensor, codes: Tensor, distance: str) -> Found:
    """Without copies of codes, which leave a doubt that no precision removes."""
    first = torch.arange(len(codes), device=codes.device)
    if len(z) > _CHEAP or z.dtype == torch.float64:
        first = first_of_equals(codes)
    places = (first == torch.arange(len(codes), device=codes.device)).nonzero()[:, 0]
    best = functools.partial(best_few, few=_CANDIDATES)
    indices, is_certain = _in_full_precision(best, z, codes.index_select(0, places), distance)
    return places[indices], is_certain


def _by_candidates_in_float64(z: Tensor, codes: Tensor, distance: str) -> Found:
    return _by_candidates(z.double(), codes.double(), distance)


def _by_differences(z: Tensor, codes: Tensor, distance: str) -> Found:
    table = make_table(codes, distance)
    parts = place(z, table, distance).split(max(1, _TILE // len(codes)))
    nearest, indices = map(torch.cat, zip(*(closest_of_all(part, table.points) for part in parts), strict=True))
    return indices, _is_certain(nearest, nearest.square(), distance)


def _by_differences_in_float64(z: Tensor, codes: Tensor, distance: str) -> Found:
    return _by_differences(z.double(), codes.double(), distance)


def _in_full_precision(
    best: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], z: Tensor, codes: Tensor, distance: str
) -> Found:
    """Proposals by products, made in float64 where the program has those in float32 rounded to fewer digits."""
    if z.dtype == torch.float32 and products_are_lowered(z.device):
        return _in_full_precision(best, z.double(), codes.double(), distance)
    table = make_table(codes, distance)
    operands = padded(table.centred, table.bias)

    def propose(near: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        indices, value = best(near, *operands)
        return indices.clamp(max=len(codes) - 1), 2 * value + length.square()

    found = _settle(propose, z, table, distance)
    if z.dtype == torch.float32 and products_are_lowered(z.device):  # by another thread, meanwhile
        return _in_full_precision(best, z.double(), codes.double(), distance)
    return found


def _settle(
    propose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    z: Tensor,
    table: Table,
    distance: str,
    tolerance: float = 0.0,
) -> Found:
    """The closest of the codes proposed.

    ``propose``: vectors relative to the middle and their lengths -> candidates (n, few), and the computed squared
    distance below which no other code lies (n,).
    """
    found = []
    for part in z.split(max(1, _CHUNK // max(1, z.shape[1]))):
        part = place(part, table, distance)
        near = part - table.middle
        length = near.norm(dim=1)
        candidates, floor = propose(near, length)
        nearest, indices = closest(part, table.points, candidates)
        floor = floor - _rounding(length, nearest, near.shape[1])
        found.append((indices, _is_certain(nearest, floor, distance, tolerance)))
    indices, is_certain = map(torch.cat, zip(*found, strict=True))
    return indices, is_certain


def _rounding(length: Tensor, nearest: Tensor, width: int) -> Tensor:
    """What the computed squared distance of a code no farther than ``nearest`` may be off by, (n,).

    With u = eps / 2, the vector at ``length`` from the middle and the code within ``r = length + nearest`` of it: the
    product is off by ``D u length r`` and counts twice, squares by ``(D / 8 + 4) u r^2`` each, the subtraction of the
    middle by ``4 u r^2``.
    """
    r = length + nearest
    return torch.finfo(r.dtype).eps * (width * length + (width / 8 + 8) * r) * r


def _is_certain(nearest: Tensor, floor: Tensor, distance: str, tolerance: float = 0.0) -> Tensor:
    """Whether no other code, at a squared distance of ``floor`` or more, is nearer than ``nearest``, a distance."""
    square = nearest.square()
    is_certain = square - floor <= tolerance * square
    if tolerance:  # equal codes are one there, so that nothing is nearer than 0
        is_certain |= nearest == 0
    if distance == "cosine" and nearest.dtype == torch.float32:
        is_certain &= square >= _SHORT_CHORD
    return is_certain
