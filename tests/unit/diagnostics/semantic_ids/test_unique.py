"""Collisions, and the three ways out of them, against loops and an exhaustive search."""

import itertools

import numpy as np
import pytest
import torch

from straightvq.diagnostics.semantic_ids import (
    assign_last,
    collision_rate,
    number_collisions,
    sinkhorn,
    sinkhorn_last,
    unique_rate,
)


def some_codes(n: int = 60, levels: int = 2, size: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(size, (n, levels), generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rates_count_different_ids() -> None:
    codes = some_codes()
    different = len({tuple(row) for row in codes.tolist()})
    assert unique_rate(codes) == different / 60
    assert collision_rate(codes) == 1 - different / 60


def test_numbering_counts_within_each_id_in_the_items_order() -> None:
    codes = some_codes()
    seen: dict[tuple[int, ...], int] = {}
    expected = []
    for row in codes.tolist():
        number = seen.get(tuple(row), 0)
        seen[tuple(row)] = number + 1
        expected.append([*row, number])
    assert number_collisions(codes).tolist() == expected
    assert unique_rate(number_collisions(codes)) == 1


def test_sinkhorn_is_the_textbooks_loop() -> None:
    cost = normal(7, 5).square()
    kernel = np.exp(-cost.double().numpy() / 0.3)
    for _ in range(30):
        kernel = kernel / kernel.sum(1, keepdims=True)
        kernel = kernel / kernel.sum(0, keepdims=True) * 7 / 5
    torch.testing.assert_close(sinkhorn(cost, epsilon=0.3, iterations=30).double(), torch.from_numpy(kernel))


def test_sinkhorn_stays_finite_where_the_kernel_underflows() -> None:
    plan = sinkhorn(1e4 * normal(20, 6).square(), epsilon=1e-3)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 20 / 6))


def test_the_assignment_is_the_best_of_all() -> None:
    """Four items of one prefix and five codes: all 120 ways to give different ones."""
    rest, table = normal(4, 3), normal(5, 3, seed=2)
    distances = torch.cdist(rest.double(), table.double()).square()
    ways = list(itertools.permutations(range(5), 4))
    best = min(ways, key=lambda way: sum(float(distances[row, code]) for row, code in enumerate(way)))
    codes = torch.tensor([[3, 0], [3, 0], [3, 0], [3, 1]])
    assert assign_last(codes, rest, table).tolist() == [[3, code] for code in best]


def test_a_prefix_without_a_collision_is_left_as_it_is() -> None:
    codes = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 2]])
    rest, table = normal(4, 3), normal(5, 3, seed=2)
    for chosen in (assign_last(codes, rest, table), sinkhorn_last(codes, rest, table)):
        assert chosen[:2].tolist() == [[0, 0], [0, 1]]
        assert unique_rate(chosen) == 1
        assert chosen[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("choose", [assign_last, sinkhorn_last])
def test_the_last_codes_alone_change_and_collisions_go(choose) -> None:
    codes = some_codes(40, 3, 4)
    rest, table = normal(40, 3), normal(32, 3, seed=2)
    before = codes.clone()
    chosen = choose(codes, rest, table)
    assert torch.equal(codes, before)
    assert torch.equal(chosen[:, :-1], codes[:, :-1])
    assert unique_rate(codes) < 0.8
    # Sinkhorn's shares may agree to the last; the numbering then tells such items apart.
    assert unique_rate(chosen) == 1 if choose is assign_last else unique_rate(chosen) > 0.95


def test_more_items_than_codes_stay_for_the_numbering() -> None:
    codes = torch.zeros(5, 1, dtype=torch.int64)
    rest, table = normal(5, 2), normal(3, 2, seed=2)
    assert torch.equal(assign_last(codes, rest, table), codes)
    assert unique_rate(number_collisions(sinkhorn_last(codes, rest, table))) == 1


def test_equal_items_are_told_apart_too() -> None:
    codes, rest = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2)
    assert unique_rate(assign_last(codes, rest, normal(8, 2))) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unique_rate(torch.zeros(0, 2, dtype=torch.int64)), r"must have the shape (items, levels). Got (0, 2)"),
        (lambda: unique_rate(torch.zeros(3, dtype=torch.int64)), "Got (3,)"),
        (lambda: number_collisions(torch.zeros(3, 2)), "must hold integers. Got torch.float32"),
        (lambda: number_collisions(torch.tensor([[0, -1]])), "must be >= 0. Got -1"),
        (lambda: sinkhorn(torch.zeros(3)), "must be Float (vectors, codes). Got (3,)"),
        (lambda: sinkhorn(torch.zeros(3, 2), epsilon=0.0), "`epsilon`"),
        (lambda: sinkhorn(torch.zeros(3, 2), iterations=0), "`iterations` must be an integer >= 1"),
        (
            lambda: sinkhorn_last(some_codes(), normal(60, 2), normal(4, 3)),
            "(60, d) and (k, d). Got (60, 2) and (4, 3)",
        ),
        (lambda: assign_last(some_codes(), normal(60, 2), normal(3, 2)), "must be below 3, the rows of `table`. Got 3"),
    ],
)
def test_what_does_not_fit_is_refused(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        call()
    assert message in str(refused.value)
