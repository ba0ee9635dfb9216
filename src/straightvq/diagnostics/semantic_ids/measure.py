"""What IDs are worth: the error of every prefix, the codes in use, how alike items of one prefix are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.diagnostics.semantic_ids.unique import check_ids, collision_rate, groups_of, unique_rate
from straightvq.errors import InvalidValueError


@dataclass(frozen=True)
class IdReport:
    """What was measured on the IDs of a set of items.

    Attributes:
        num_items: number of items.
        codebook_sizes: codes of each level.
        codes_used: codes of each level that some item has.
        relative_error: of the reconstruction from the first 1, 2, ... codes: squared distances from the vectors over
            those from their mean; 0 perfect, 1 as good as the mean. None where all vectors are equal.
        relative_error_unique: of the reconstruction from as many codes of the IDs that were made unique; None if that
            was not measured.
        cosine: mean cosine of two items that share their first 1, 2, ... codes; None where no two do.
        cosine_random: mean cosine of any two items.
        unique: different IDs over items, before and after they were made unique.
        collisions: 1 - ``unique``, before and after.
        id_length: codes of an ID after that.
    """

    num_items: int
    codebook_sizes: list[int]
    codes_used: list[int]
    relative_error: list[float | None]
    relative_error_unique: float | None
    cosine: list[float | None]
    cosine_random: float | None
    unique: tuple[float, float]
    collisions: tuple[float, float]
    id_length: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_ids(
    vectors: Tensor,
    codes: Tensor,
    ids: Tensor,
    prefixes: Sequence[Tensor],
    codebook_sizes: Sequence[int],
    from_ids: Tensor | None = None,
) -> IdReport:
    """Measures the IDs of all items.

    Args:
        vectors: the items' vectors as they were given, Float (items, d).
        codes: what the quantizer gave, Int (items, levels).
        ids: the same made unique, Int (items, levels or more).
        prefixes: for each level the reconstruction of the vectors from the codes up to it, Float (items, d).
        codebook_sizes: codes of each level.
        from_ids: the reconstruction from the first ``levels`` codes of ``ids``, Float (items, d).

    Raises:
        TypeError, ValueError: for shapes that do not fit.
    """
    codes, ids = check_ids("report_ids", codes), check_ids("report_ids", ids)
    levels = codes.shape[1]
    if len(prefixes) != levels or len(codebook_sizes) != levels or len(ids) != len(codes):
        raise InvalidValueError(
            f"`report_ids`: `prefixes`, `codebook_sizes` and `ids` must fit {len(codes)} items of {levels} levels. "
            f"Got {len(prefixes)}, {len(codebook_sizes)} and {len(ids)} items."
        )
    for each in [*prefixes, *([] if from_ids is None else [from_ids])]:
        if each.shape != vectors.shape or len(vectors) != len(codes):
            raise InvalidValueError(
                f"`report_ids`: every prefix must have the shape of `vectors`, {tuple(vectors.shape)}, and one row per "
                f"item. Got {tuple(each.shape)} and {len(codes)} items."
            )
    x = vectors.double()
    spread = (x - x.mean(0)).square().sum().item()

    def relative(given: Tensor | None) -> float | None:
        return None if given is None or not spread else (given.double() - x).square().sum().item() / spread

    cosines, random = prefix_cosines(vectors, codes)
    return IdReport(
        num_items=len(codes),
        codebook_sizes=list(codebook_sizes),
        codes_used=[len(codes[:, level].unique()) for level in range(levels)],
        relative_error=[relative(each) for each in prefixes],
        relative_error_unique=relative(from_ids),
        cosine=cosines,
        cosine_random=random,
        unique=(unique_rate(codes), unique_rate(ids)),
        collisions=(collision_rate(codes), collision_rate(ids)),
        id_length=ids.shape[1],
    )


def prefix_cosines(vectors: Tensor, codes: Tensor) -> tuple[list[float | None], float | None]:
    """Mean cosine over all pairs of items that share their first 1, 2, ... codes; and over all pairs.

    Exact and without a pair in memory: of unit vectors u in one group, the pairs' cosines add up to
    ``(|sum u|^2 - sum |u|^2) / 2``. A zero vector has cosine 0 with every other.

    Args:
        vectors: Float (items, d).
        codes: Int (items, levels).

    Returns:
        one value per level, None where no two items share that prefix; and the one of all pairs, None for one item.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> cosines, any_two = prefix_cosines(vectors, torch.tensor([[0, 1], [0, 1], [0, 2]]))
        >>> [round(each, 6) for each in cosines], round(any_two, 6)
        ([0.333333, 1.0], 0.333333)
    """
    codes = check_ids("prefix_cosines", codes)
    if vectors.ndim != 2 or len(vectors) != len(codes):
        raise InvalidValueError(
            f"`prefix_cosines`: `vectors` must have the shape ({len(codes)}, d). Got {tuple(vectors.shape)}."
        )
    units = F.normalize(vectors.double(), dim=1, eps=torch.finfo(torch.float64).tiny)
    everyone = torch.zeros(len(units), dtype=torch.int64, device=units.device)
    by_level = [_mean_cosine(units, groups_of(codes[:, : level + 1])) for level in range(codes.shape[1])]
    return by_level, _mean_cosine(units, everyone)


def _mean_cosine(units: Tensor, group: Tensor) -> float | None:
    counts = torch.bincount(group)
    pairs = (counts * (counts - 1)).sum().item() / 2
    if not pairs:
        return None
    sums = units.new_zeros(len(counts), units.shape[1]).index_add(0, group, units)
    return ((sums.square().sum() - units.square().sum()) / 2 / pairs).item()
