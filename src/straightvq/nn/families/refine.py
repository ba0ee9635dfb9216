"""Joint refinement of a residual quantizer's codebooks: each level fitted to what all the others leave."""

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.functional.sums import code_sums
from straightvq.nn.families.residual import ResidualQuantizer
from straightvq.nn.part import check_int, check_part
from straightvq.nn.slots.assigners import Nearest
from straightvq.nn.slots.parametrizations import Affine, Direct
from straightvq.nn.slots.transforms import Identity
from straightvq.nn.vector_quantizer import VectorQuantizer

# Share of the vectors' size that counts as no error.
_NOTHING = 1e-12


@torch.no_grad()
def refine_residual(quantizer: ResidualQuantizer, z: Tensor, *, rounds: int = 4, sweeps: int = 3) -> list[float]:
    """Refits all levels together, because level by level each was fitted as if it were the last one.

    With the indices i held, the codes that are best for ``|z - (c_1[i_1] + ... + c_L[i_L])|^2`` solve one least squares
    problem. A sweep goes through the levels and sets every code that is in use to its solution for the others as they
    are, ``c_l[k] <- mean of z - sum_{m != l} c_m[i_m] over the vectors with i_l = k``; a code that is not in use takes
    the vector that is worst served. Neither raises the error.
    A round is some sweeps and a new assignment by the quantizer's own search, which with several levels finds what is
    good but not what is best: the error after it may grow for once. The codes of the best round are kept.

    Train first and refine at the end: an update that moves the codes level by level would undo it. Wider beams gain
    more (``quantizer.beam``), as a greedy search finds little of what the codes could give. What is paid is the prefix:
    the first levels alone serve a little worse.

    Codes are written as by ``set_codes``, so per-row state of their updates starts over; no random number is drawn.
    Memory is O(n d).

    Args:
        quantizer: with levels of their own that are ``VectorQuantizer`` layers with ``Nearest`` by the Euclidean
            distance, no transform, and tables that are ``Direct`` or ``Affine``.
        z: vectors as the quantizer gets them, Float (n, dim) on its device, with ``channel_dim`` last; of all ranks.
        rounds: assignments, at least 1; each costs an ``encode``.
        sweeps: passes over the levels in a round, at least 1; cheap.

    Returns:
        mean squared error per vector, the sum over its channels, of what ``encode`` finds: before the first round, and
        after each. The codes left behind are those of the least of them.

    Raises:
        TypeError, ValueError: for another quantizer, other vectors, and counts below 1; nothing is changed then.

    Source: the codebook update of additive quantization (Babenko and Lempitsky 2014), by coordinates.

    Example:
        >>> import straightvq as svq
        >>> rvq = svq.presets.straight_residual(4, 4, num_quantizers=2)
        >>> z = torch.randn(200, 4)
        >>> _ = rvq(z)
        >>> errors = refine_residual(rvq, z, rounds=3)
        >>> len(errors), min(errors) < errors[0]
        (4, True)
    """
    levels = _check(quantizer, z)
    check_int("refine_residual", "rounds", rounds, 1)
    check_int("refine_residual", "sweeps", sweeps, 1)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    tables = [level.codes().to(z.dtype) for level in levels]
    indices = quantizer.encode(z)
    errors = [_error(z, tables, indices)]
    best = list(tables)
    for _ in range(rounds):
        total = _sum(tables, indices)
        for _ in range(sweeps):
            for place, table in enumerate(tables):
                others = total - table[indices[:, place]]
                tables[place], indices[:, place] = _fitted(z - others, indices[:, place], table)
                total = others + tables[place][indices[:, place]]
        _write(levels, tables)
        indices = quantizer.encode(z)
        errors.append(_error(z, tables, indices))
        if errors[-1] == min(errors):
            best = list(tables)
    _write(levels, best)
    return errors


def _fitted(rest: Tensor, own: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """One level for what the others leave: each code the mean of its vectors, an idle one the worst served vector."""
    counts, sums = code_sums(rest, own, len(table))
    idle = (counts == 0).nonzero()[:, 0]
    fitted = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], table)
    if len(idle):
        errors = (rest - fitted[own]).square().sum(1)
        most, worst = errors.topk(min(len(idle), len(rest)))
        worst = worst[most > _NOTHING * rest.square().sum(1).mean()]
        own = own.index_copy(0, worst, idle[: len(worst)])
        fitted[idle[: len(worst)]] = rest[worst]
    return fitted, own


def _write(levels: list[VectorQuantizer], tables: list[Tensor]) -> None:
    for level, table in zip(levels, tables, strict=True):
        level.set_codes(table)


def _sum(tables: list[Tensor], indices: Tensor) -> Tensor:
    total = tables[0][indices[:, 0]]
    for level, table in enumerate(tables[1:], 1):
        total = total + table[indices[:, level]]
    return total


def _error(z: Tensor, tables: list[Tensor], indices: Tensor) -> float:
    """Squared error of a vector, the mean over all."""
    return (z - _sum(tables, indices)).square().sum(1).mean().item()


def _check(quantizer: ResidualQuantizer, z: Tensor) -> list[VectorQuantizer]:
    check_part("refine_residual", "quantizer", quantizer, ResidualQuantizer)
    levels = [level for level in quantizer.parts if isinstance(level, VectorQuantizer)]
    is_plain = len(levels) == len(quantizer.levels) and isinstance(quantizer.transform, Identity)
    for level in levels:
        is_near = type(level.assigner) is Nearest and level.assigner.distance == "euclidean"
        is_free = type(level.codebook.parametrization) in (Direct, Affine)  # takes any code exactly
        is_plain = is_plain and is_near and is_free and isinstance(level.transform, Identity)
    if not is_plain:
        kinds = " and ".join(dict.fromkeys(type(level).__name__ for level in quantizer.parts))
        raise InvalidValueError(
            "`refine_residual`: `quantizer` must have levels of their own that are VectorQuantizer layers with Nearest "
            "by the Euclidean distance, no transform, and codes that are Direct or Affine. "
            f"Got {quantizer.num_parts} levels of {kinds}."
        )
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise InvalidTypeError(
            f"`refine_residual`: `z` must be a floating-point tensor. Got {getattr(z, 'dtype', type(z))}."
        )
    if z.ndim != 2 or z.shape[1] != quantizer.dim or not len(z):
        raise InvalidValueError(
            f"`refine_residual`: `z` must have the shape (n, {quantizer.dim}) with n >= 1. Got {tuple(z.shape)}."
        )
    if not z.isfinite().all():
        raise InvalidValueError("`refine_residual`: `z` must be finite. Got NaN or infinite values.")
    return levels
