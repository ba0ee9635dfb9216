"""The doctor's numbers, on tables whose answers can be seen."""

import math
from typing import Any

import pytest
import torch

import straightvq as svq
from straightvq.analysis.doctor import measure
from straightvq.analysis.doctor.measure import measure_codes, send, tables_of, unused_by_statistics


def test_codes_on_a_grid_are_all_apart() -> None:
    # 16 points (i, j), i and j in 1..4: each has a neighbour at 1; variance per channel 5/4.
    grid = torch.cartesian_prod(torch.arange(1.0, 5), torch.arange(1.0, 5))
    values = measure_codes(grid)
    assert values["nearest_min"] == values["nearest_median"] == 1
    assert values["spread"] == pytest.approx(math.sqrt(2.5))
    assert values["same_spot"] == pytest.approx(0.01 * math.sqrt(2.5) / 4)  # k^(-1/d) = 16^(-1/2)
    assert values["crowded"] == values["at_origin"] == 0
    assert values["norm_max"] == pytest.approx(math.sqrt(32))
    assert values["code_directions"] == pytest.approx(2)


def test_codes_on_one_spot_are_counted_each() -> None:
    # Two spots, of 3 and 2 codes, one of them at the origin, and one code alone.
    codes = torch.tensor([[0.0, 0], [0, 0], [0, 1e-4], [5, 5], [5, 5.0001], [3, -4]])
    values = measure_codes(codes)
    assert (values["crowded"], values["at_origin"]) == (5, 3)
    assert values["nearest_min"] == 0
    assert values["norm_median"] == pytest.approx(math.sqrt(50))  # of 5, 7.07 and 7.07
    codes[2, 1], codes[4, 1] = 0.1, 5.1  # within is 0.01 * 4.8 / sqrt(6)
    assert measure_codes(codes)["crowded"] == 2


def test_of_a_large_table_an_even_selection_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.arange(100.0)[:, None]
    codes[50:] = 1000.0
    monkeypatch.setattr(measure, "MOST_CODES", 20)
    values = measure_codes(codes)
    assert values["crowded"] == 50
    assert values["nearest_min"] == 0
    assert values["norm_max"] == 1000  # of all


def test_codes_that_are_not_finite_are_all_that_is_said() -> None:
    codes = torch.ones(4, 2)
    codes[1, 0], codes[3, 1] = math.nan, math.inf
    assert measure_codes(codes) == {"not_finite": 2}


def book(**parts: Any) -> svq.Codebook:
    layer = svq.VectorQuantizer(2, svq.Codebook(4, **parts))
    layer.codebook.is_ready.fill_(1)
    layer.codebook.read_flags()
    return layer.codebook


def test_each_kind_of_statistic_tells_which_codes_are_unused() -> None:
    ema = book(update=svq.EMAUpdate())
    assert unused_by_statistics(ema) == (None, "")  # all alike: nothing was counted
    ema.update.cluster_size.copy_(torch.tensor([3.0, 0.009, 0.011, 1e-30]))
    mask, words = unused_by_statistics(ema)
    assert (mask.tolist(), words) == ([False, True, False, True], "their moving number of vectors is below 0.01")

    kept = book(update=svq.EMAUpdate(), reset=svq.DeadCodeReset(patience=20))
    kept.reset.idle.copy_(torch.tensor([0.0, 3.9, 4.0, 19.0]))
    mask, words = unused_by_statistics(kept)
    assert (mask.tolist(), words) == ([False, False, True, True], "4 vectors per code have passed them by")

    counted = book(update=svq.AlternatedUpdate(memory=100.0))
    assert unused_by_statistics(counted) == (None, "")
    counted.update.seen.copy_(torch.tensor([0.0, 2.0, 100.0, 0.0]))
    mask, words = unused_by_statistics(counted)
    assert (mask.tolist(), words) == ([True, False, False, True], "none of them has ever had a vector")

    assert unused_by_statistics(book()) == (None, "")


def line() -> svq.VectorQuantizer:
    """Codes at 0, 10, 20 and 1000 on the first of two axes."""
    layer = svq.presets.vq_vae(2, 4)
    layer.set_codes(torch.tensor([[0.0, 0], [10, 0], [20, 0], [1000, 0]]))
    return layer


def test_what_data_show_is_of_exactly_these_data() -> None:
    layer = line()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    z = torch.tensor([[0.0, 1.0], [10.0, -1.0]]).repeat(8, 1)  # every vector is 1 from its code
    (table,) = tables_of(layer)
    send(layer, [table], z.split(5), layer)
    assert table.values["vectors"] == 16
    assert table.values["used"] == 2
    assert table.values["perplexity"] == pytest.approx(2)
    assert table.values["error"] == pytest.approx(1 / 26)  # squared error 1, variance 25 + 1
    assert table.values["scale"] == pytest.approx(table.values["spread"] / math.sqrt(26))
    assert table.unused.tolist() == [False, False, True, True]
    assert table.unused_by == "none of 16 vectors chose them"
    assert table.values["far"] == 2  # 10 and 990 from the data, where 3 is the limit
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert layer.training


def test_a_code_among_the_data_is_not_far() -> None:
    layer = line()
    z = torch.tensor([[0.0, 1.0], [10.0, -1.0], [13.0, 0.0]]).repeat(6, 1)
    (table,) = tables_of(layer)
    send(layer, [table], [z], layer)
    # The usual distance is 1, the nearest vector to 20 is 7 away, that to 1000 is 987 away.
    assert table.values["far"] == 2
    near = torch.cat([z, torch.tensor([[14.9, 0.0]] * 7), torch.tensor([[5.1, 0.0]] * 14)])
    (table,) = tables_of(layer)
    send(layer, [table], [near], layer)
    assert table.values["far"] == 1  # 4.9 is usual now, and 5.1 no more than three times that


def test_too_few_vectors_say_nothing_of_unused_codes() -> None:
    layer = line()
    (table,) = tables_of(layer)
    send(layer, [table], [torch.zeros(15, 2)], layer)
    assert table.unused is None
    assert table.values["used"] == 1
    assert "far" not in table.values


def test_too_few_vectors_say_nothing_of_where_unused_codes_are() -> None:
    layer = line()
    (table,) = tables_of(layer)
    table.unused = torch.arange(4) >= 2  # as the averages of a file tell
    send(layer, [table], [torch.zeros(15, 2)], layer)
    assert "far" not in table.values


def test_levels_are_measured_each_with_what_it_gets() -> None:
    layer = svq.ResidualQuantizer(2, [line(), line()])
    tables = tables_of(layer)
    assert [table.name for table in tables] == ["parts.0", "parts.1"]
    z = torch.tensor([[0.0, 1.0], [10.0, -1.0]]).repeat(8, 1)
    send(layer, tables, [z], layer)
    assert [table.values["used"] for table in tables] == [2, 1]  # what is left is at 0


def test_without_a_table_of_codes_there_is_usage_alone() -> None:
    layer = svq.presets.fsq(2, [3, 3])
    (table,) = tables_of(layer)
    assert table.values == {"codes": 9, "width": 2}
    send(layer, [table], [torch.randn(100, 2)], layer)
    assert table.values["used"] > 5
    assert "scale" not in table.values
