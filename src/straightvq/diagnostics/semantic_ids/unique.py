"""How often two items share an ID, and the three usual ways to make IDs unique."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.part import check_float, check_int

Chooser = Callable[[Tensor], Tensor]

# Entries of one block of squared distances.
_NUMBERS = 1 << 22


def check_ids(owner: str, codes: Tensor) -> Tensor:
    """Int64 (n, levels), of at least one item and level, none negative."""
    if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.dtype == torch.bool:
        raise InvalidTypeError(f"`{owner}`: `codes` must hold integers. Got {getattr(codes, 'dtype', type(codes))}.")
    if codes.ndim != 2 or 0 in codes.shape:
        raise InvalidValueError(f"`{owner}`: `codes` must have the shape (items, levels). Got {tuple(codes.shape)}.")
    if int(codes.min()) < 0:
        raise InvalidValueError(f"`{owner}`: `codes` must be >= 0. Got {int(codes.min())}.")
    return codes.long()


def groups_of(codes: Tensor) -> Tensor:
    """Number of the group of items with the same row, Int64 (n,), from 0."""
    return torch.unique(codes, dim=0, return_inverse=True)[1]


def unique_rate(codes: Tensor) -> float:
    """Different IDs over items, in (0, 1]; 1 if no two items share one.

    Args:
        codes: Int (items, levels).

    Example:
        >>> unique_rate(torch.tensor([[0, 1], [0, 1], [0, 2], [1, 1]]))
        0.75
    """
    codes = check_ids("unique_rate", codes)
    return (int(groups_of(codes).max()) + 1) / len(codes)


def collision_rate(codes: Tensor) -> float:
    """Share of the items that are not the first of their ID: 1 - `unique_rate`.

    Args:
        codes: Int (items, levels).

    Source: LC-Rec (arXiv 2311.09049), as its code measures it.

    Example:
        >>> collision_rate(torch.tensor([[0, 1], [0, 1], [0, 2], [1, 1]]))
        0.25
    """
    return 1 - unique_rate(codes)


def number_collisions(codes: Tensor) -> Tensor:
    """IDs with one level more, which numbers the items of one ID in their order: 0 for the first, then 1 and so on.

    Args:
        codes: Int (items, levels).

    Returns:
        Int64 (items, levels + 1), no two rows equal.

    Source: TIGER (arXiv 2305.05065, section 3.1).

    Example:
        >>> number_collisions(torch.tensor([[0, 1], [0, 2], [0, 1]])).tolist()
        [[0, 1, 0], [0, 2, 0], [0, 1, 1]]
    """
    codes = check_ids("number_collisions", codes)
    group = groups_of(codes)
    order = group.argsort(stable=True)
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    number = torch.empty_like(group)
    number[order] = torch.arange(len(codes), device=codes.device) - starts[group[order]]
    return torch.cat([codes, number[:, None]], 1)


def sinkhorn(cost: Tensor, *, epsilon: float = 0.003, iterations: int = 50) -> Tensor:
    """Shares of each vector for each code, so that all codes get as much: entropic optimal transport.

    ``plan = diag(u) exp(-cost / epsilon) diag(v)`` with rows that add up to 1 and columns to ``m / k``; computed with
    logarithms, so that no small ``epsilon`` makes it NaN. After the last iteration the columns are exact.

    Args:
        cost: Float (m, k).
        epsilon: temperature in the unit of the costs, above 0; towards 0 the plan becomes an assignment.
        iterations: rescalings of rows, then columns, at least 1.

    Returns:
        Float (m, k).

    Source: Sinkhorn-Knopp (Cuturi 2013, arXiv 1306.0895).

    Example:
        >>> plan = sinkhorn(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), epsilon=0.1)
        >>> plan.argmax(1).tolist(), plan.sum(0).tolist()
        ([1, 0], [1.0, 1.0])
    """
    if not isinstance(cost, Tensor) or cost.ndim != 2 or not cost.is_floating_point() or 0 in cost.shape:
        got = tuple(cost.shape) if isinstance(cost, Tensor) else type(cost).__name__
        raise InvalidValueError(f"`sinkhorn`: `cost` must be Float (vectors, codes). Got {got}.")
    epsilon = check_float("sinkhorn", "epsilon", epsilon, minimum=0, open_minimum=True)
    plan = -cost.double() / epsilon
    m, k = cost.shape
    for _ in range(check_int("sinkhorn", "iterations", iterations, 1)):
        plan = plan - plan.logsumexp(1, keepdim=True)
        plan = plan - plan.logsumexp(0, keepdim=True) + math.log(m / k)
    return plan.exp().to(cost.dtype)


def sinkhorn_last(
    codes: Tensor, rest: Tensor, table: Tensor, *, epsilon: float = 0.003, iterations: int = 50, rounds: int = 20
) -> Tensor:
    """IDs whose last code is chosen anew, by `sinkhorn`, among the items that share an ID; repeated while some do.

    The squared distances of a group are scaled to [-1, 1], the range that ``epsilon`` is meant for. What still collides
    after the last round stays: number it with `number_collisions`.

    Args:
        codes: Int (items, levels).
        rest: what the levels before the last leave of each item, in the space of the last level's codes, Float
            (items, d).
        table: codes of the last level, Float (k, d).
        epsilon, iterations: of `sinkhorn`.
        rounds: at least 1.

    Returns:
        Int64 (items, levels).

    Source: LC-Rec (arXiv 2311.09049, section 3.1.2): uniform semantic mapping.

    Example:
        >>> codes, rest = torch.tensor([[0, 0], [0, 0]]), torch.tensor([[0.1], [0.4]])
        >>> sinkhorn_last(codes, rest, torch.tensor([[0.0], [1.0]])).tolist()
        [[0, 0], [0, 1]]
    """
    codes = check_ids("sinkhorn_last", codes).clone()
    _check_last("sinkhorn_last", codes, rest, table)

    def choose(distances: Tensor) -> Tensor:
        low, high = distances.min(), distances.max()
        scaled = (distances - (low + high) / 2) / ((high - low) / 2 + 1e-5)
        return sinkhorn(scaled, epsilon=epsilon, iterations=iterations).argmax(1)

    for _ in range(check_int("sinkhorn_last", "rounds", rounds, 1)):
        colliding = list(_colliding(groups_of(codes)))
        if not colliding:
            break
        for rows in colliding:
            codes[rows, -1] = choose(_distances(rest[rows], table)).to(codes.device)
    return codes


def assign_last(codes: Tensor, rest: Tensor, table: Tensor) -> Tensor:
    """IDs whose last code is chosen anew wherever items share an ID: the best assignment in which none do.

    All items with the same codes before the last one are a group. In a group in which some share the last code too, the
    last codes become the different ones with the least sum of squared distances, by the Hungarian algorithm. It is the
    limit of `sinkhorn_last` for epsilon to 0, over the whole group. Groups of more items than there are codes stay as
    they are: number them with `number_collisions`.

    Args:
        codes, rest, table: as for `sinkhorn_last`.

    Returns:
        Int64 (items, levels).

    Source: Kuhn 1955, in scipy.

    Example:
        >>> codes, rest = torch.tensor([[0, 0], [0, 0]]), torch.tensor([[0.1], [0.4]])
        >>> assign_last(codes, rest, torch.tensor([[0.0], [1.0]])).tolist()
        [[0, 0], [0, 1]]
    """
    from scipy.optimize import linear_sum_assignment

    codes = check_ids("assign_last", codes).clone()
    _check_last("assign_last", codes, rest, table)
    prefix = groups_of(codes[:, :-1]) if codes.shape[1] > 1 else torch.zeros_like(codes[:, 0])
    touched = {int(prefix[rows[0]]) for rows in _colliding(groups_of(codes))}
    for rows in _colliding(prefix):
        if int(prefix[rows[0]]) in touched and len(rows) <= len(table):
            found = linear_sum_assignment(_distances(rest[rows], table).double().cpu().numpy())[1]
            codes[rows, -1] = torch.from_numpy(found).to(codes.device)
    return codes


def _colliding(group: Tensor) -> Iterator[Tensor]:
    """The rows of each group of at least two, Int64 (m,)."""
    counts = torch.bincount(group)
    order = group.argsort(stable=True)
    for rows in order.split(counts.tolist()):
        if len(rows) > 1:
            yield rows


def _distances(rest: Tensor, table: Tensor) -> Tensor:
    """Squared distances, (m, k), from differences: near duplicates are what it is about."""
    step = max(1, _NUMBERS // table.numel())
    return torch.cat([(part[:, None] - table).square().sum(2) for part in rest.split(step)])


def _check_last(owner: str, codes: Tensor, rest: Tensor, table: Tensor) -> None:
    if rest.ndim != 2 or table.ndim != 2 or len(rest) != len(codes) or rest.shape[1] != table.shape[1]:
        raise InvalidValueError(
            f"`{owner}`: `rest` and `table` must have the shapes ({len(codes)}, d) and (k, d). "
            f"Got {tuple(rest.shape)} and {tuple(table.shape)}."
        )
    if int(codes[:, -1].max()) >= len(table):
        raise InvalidValueError(
            f"`{owner}`: the last of `codes` must be below {len(table)}, the rows of `table`. "
            f"Got {int(codes[:, -1].max())}."
        )
