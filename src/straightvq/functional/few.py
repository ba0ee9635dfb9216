"""The few nearest codes of each vector, nearest first: what a beam search chooses from, and who resolves collisions."""

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.functional.nearest import check_search
from straightvq.functional.points import make_table, place
from straightvq.functional.tiles import best_few, padded
from straightvq.internals import is_exporting

# Candidates beyond those asked for, so that the rounding of products costs none; numbers held at once.
_SPARE, _NUMBERS = 4, 1 << 22


def nearest_codes(z: Tensor, codes: Tensor, k: int, *, distance: str = "euclidean") -> tuple[Tensor, Tensor]:
    """Distances and indices of the ``k`` nearest codes, nearest first; of equally near ones the lowest index first.

    A product proposes four more than asked for, differences order them: only where more than four others are as near
    as the last one, up to the rounding of a product, may another of them take its place. All codes are compared by
    differences where they are no more than ``k + 4``. No ``n x codebook_size`` matrix is held. Computed in at least
    float32. No gradient.

    Args:
        z: vectors.
        codes: code vectors, at least one.
        k: how many, at least 1; at most all codes are given.
        distance: ``"euclidean"``, or ``"cosine"`` for ``1 - cos``, which is 1 for a vector or code of length 0.

    Shape:
        z: Float (n, d); codes: Float (codebook_size, d).

    Returns:
        Float and Int64 (n, min(k, codebook_size)).

    Raises:
        ValueError, TypeError: for shapes that do not fit, other dtypes, an unknown distance, a ``k`` below 1.

    Example:
        >>> nearest_codes(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [-2.0]]), 2)
        (tensor([[1., 2.]]), tensor([[1, 2]]))
    """
    return _checked("nearest_codes", "k", z, codes, k, distance)


def nearest_few(z: Tensor, codes: Tensor, few: int, *, distance: str = "euclidean") -> Tensor:
    """The indices alone of ``nearest_codes``.

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
    return _checked("nearest_few", "few", z, codes, few, distance)[1]


def _checked(owner: str, name: str, z: Tensor, codes: Tensor, few: int, distance: str) -> tuple[Tensor, Tensor]:
    check_search(owner, z, codes, distance)
    if not isinstance(few, int) or isinstance(few, bool):
        raise InvalidTypeError(f"`{owner}`: `{name}` must be an integer >= 1. Got {few!r}.")
    if few < 1:
        raise InvalidValueError(f"`{owner}`: `{name}` must be an integer >= 1. Got {few}.")
    if is_exporting():
        return _search(z, codes, few, distance)
    distances, indices = _search_op(z.detach(), codes.detach(), few, distance)
    return distances, indices


def _search(z: Tensor, codes: Tensor, few: int, distance: str) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(z.dtype, codes.dtype), torch.float32)
    table = make_table(codes.detach().to(dtype), distance)
    z = place(z.detach().to(dtype), table, distance)
    few, taken = min(few, len(codes)), min(few + _SPARE, len(codes))
    if taken < len(codes):
        candidates, _ = best_few(z - table.middle, *padded(table.centred, table.bias), taken)
        candidates = candidates.clamp(max=len(codes) - 1).sort(1).values
    else:
        candidates = torch.arange(taken, device=z.device).expand(len(z), -1)
    step = max(1, _NUMBERS // (taken * max(1, z.shape[1])))
    found = [(z.new_empty(0, few), candidates[:0, :few])]
    for part, some in zip(z.split(step), candidates.split(step), strict=True):
        distances, order = (part[:, None] - table.points[some]).norm(dim=2).sort(dim=1, stable=True)
        found.append((distances[:, :few], some.gather(1, order[:, :few])))
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    if distance == "cosine":
        # Half the squared distance of unit vectors keeps its digits near 0, where 1 - cos would not.
        distances = torch.where((z == 0).all(1, keepdim=True), 1, distances.square() / 2)
    return distances, indices


@torch.library.custom_op("straightvq::search_few", mutates_args=())
def _search_op(z: Tensor, codes: Tensor, few: int, distance: str) -> tuple[Tensor, Tensor]:
    return _search(z, codes, few, distance)


@_search_op.register_fake
def _(z: Tensor, codes: Tensor, few: int, distance: str) -> tuple[Tensor, Tensor]:
    shape, dtype = (z.shape[0], min(few, codes.shape[0])), torch.promote_types(z.dtype, codes.dtype)
    return z.new_empty(shape, dtype=torch.promote_types(dtype, torch.float32)), z.new_empty(shape, dtype=torch.int64)
