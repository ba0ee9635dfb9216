"""The few nearest codes of each vector, nearest first: what a beam search branches over."""

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.functional.nearest import check_search
from straightvq.functional.points import make_table, place
from straightvq.functional.tiles import best_few, padded

# Candidates beyond those asked for, so that the rounding of products costs none; numbers held at once.
_SPARE, _NUMBERS = 4, 1 << 22


def nearest_few(z: Tensor, codes: Tensor, few: int, *, distance: str = "euclidean") -> Tensor:
    """Indices of the ``few`` nearest codes, nearest first; of equally near ones the lowest index first.

    A product proposes a few more than asked for, differences order them. No ``n x k`` matrix is held.

    Args:
        z: vectors.
        codes: code vectors.
        few: how many; at most all codes are given.
        distance: ``"euclidean"`` or ``"cosine"``, as for ``nearest_code``.

    Shape:
        z: Float (n, d); codes: Float (k, d).

    Returns:
        Int64 (n, min(few, k)).

    Example:
        >>> nearest_few(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [-2.0]]), 2).tolist()
        [[1, 2]]
    """
    check_search("nearest_few", z, codes, distance)
    if not isinstance(few, int) or isinstance(few, bool):
        raise InvalidTypeError(f"`nearest_few`: `few` must be an integer >= 1. Got {few!r}.")
    if few < 1:
        raise InvalidValueError(f"`nearest_few`: `few` must be an integer >= 1. Got {few}.")
    if torch.compiler.is_exporting():
        return _search(z, codes, few, distance)
    return _search_op(z.detach(), codes.detach(), few, distance)


def _search(z: Tensor, codes: Tensor, few: int, distance: str) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(z.dtype, codes.dtype), torch.float32)
    table = make_table(codes.detach().to(dtype), distance)
    z = place(z.detach().to(dtype), table, distance)
    few, taken = min(few, len(codes)), min(few + _SPARE, len(codes))
    candidates, _ = best_few(z - table.middle, *padded(table.centred, table.bias), taken)
    candidates = candidates.clamp(max=len(codes) - 1).sort(1).values
    step = max(1, _NUMBERS // (taken * max(1, z.shape[1])))
    found = []
    for part, some in zip(z.split(step), candidates.split(step), strict=True):
        distances = (part[:, None] - table.points[some]).norm(dim=2)
        found.append(some.gather(1, distances.argsort(dim=1, stable=True)[:, :few]))
    return torch.cat(found)


@torch.library.custom_op("straightvq::search_few", mutates_args=())
def _search_op(z: Tensor, codes: Tensor, few: int, distance: str) -> Tensor:
    return _search(z, codes, few, distance)


@_search_op.register_fake
def _(z: Tensor, codes: Tensor, few: int, distance: str) -> Tensor:
    return z.new_empty(z.shape[0], min(few, codes.shape[0]), dtype=torch.int64)
