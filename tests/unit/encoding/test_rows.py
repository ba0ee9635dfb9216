"""Rows read ahead: in their order, not too far, and errors come to who asks."""

import time
from collections.abc import Sequence

import numpy as np
import pytest

from straightvq.encoding.rows import Loaded, Rows, Span, read_ahead, spans


class Numbers(Rows):
    """Row i is the number i."""

    digest = ""

    def __init__(self) -> None:
        self.read_so_far: list[int] = []

    def __len__(self) -> int:
        return 100

    def read(self, shard: int, start: int, stop: int) -> Loaded:
        if start == 66:
            raise OSError(5, "gone")
        self.read_so_far.append(start)
        return Loaded(shard, [str(row) for row in range(start, stop)], [np.zeros(1)] * (stop - start), [])


def test_a_batch_is_of_one_shard() -> None:
    assert spans([(0, range(0, 5)), (2, range(10, 12))], 3) == [(0, 0, 3), (0, 3, 5), (2, 10, 12)]


@pytest.mark.parametrize("processes", [0, 2])
def test_order_is_kept(processes: int) -> None:
    asked: Sequence[Span] = spans([(0, range(0, 20)), (1, range(20, 33))], 4)
    found = list(read_ahead(Numbers(), asked, processes))
    assert [key for each in found for key in each.keys] == [str(row) for row in range(33)]
    assert [each.shard for each in found] == [0] * 5 + [1] * 4


def test_some_pieces_are_read_ahead_and_no_more() -> None:
    rows = Numbers()
    pieces = read_ahead(rows, spans([(0, range(0, 60))], 1), 0)
    next(pieces)
    end = time.monotonic() + 10
    while len(rows.read_so_far) < 5 and time.monotonic() < end:
        time.sleep(0.001)
    assert rows.read_so_far == list(range(5))
    pieces.close()
    assert len(rows.read_so_far) == 5


def test_an_error_comes_in_its_place() -> None:
    pieces = read_ahead(Numbers(), spans([(0, range(60, 70))], 3), 0)
    assert [next(pieces).keys[0] for _ in range(2)] == ["60", "63"]
    with pytest.raises(OSError, match="gone"):
        next(pieces)
