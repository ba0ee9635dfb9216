"""Ranks, verdicts, the page and the picture, on made-up results whose outcome is worked out by hand."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from straightvq.studies.comparing.comparing import prepare
from straightvq.studies.comparing.page import Ranking
from straightvq.studies.comparing.picture import COLORS, draw_ranking
from straightvq.studies.comparing.request import Request
from straightvq.studies.comparing.standings import Standings
from straightvq.studies.plan import Plan
from straightvq.studies.results import Cell, Result, Results, table
from straightvq.studies.study import Config, DataSet, Measure, Model, Row, Size, Study

MSE = Measure("test/mse", "MSE", "lower", "ratio", digits=2)
PSNR = Measure("test/psnr", "PSNR", "higher", digits=1)
# Over three seeds. b - a is 1, 1, 1: worse beyond doubt. c - a is -2, 2, 4.5: mean 1.5, error sqrt(10.75 / 3) = 1.89.
VALUES = {"b": [3.0, 4.0, 5.0], "a": [2.0, 3.0, 4.0], "c": [0.0, 5.0, 8.5], "none": [0.5, 0.5, 0.5]}


def study() -> Study:
    names = [*VALUES, "d"]
    return Study(
        "compare",
        "Made up",
        measures={"MSE": MSE, "PSNR": PSNR},
        sets={"s": DataSet("s", Config())},
        rows={name: Row(name, Config(), bound=name == "none") for name in names},
        sizes={"small": Size("small", 3, Config(), sets=["s"], models={"n": Model("n", Config())})},
    )


def result(row: str, seed: int, metrics: dict[str, float], error: str = "") -> Result:
    return Result("s", "n", row, "final", seed, "", "", 2.0, error=error, metrics=metrics)


def standings(*left_out: tuple[str, int]) -> Standings:
    found = [
        result(row, seed, {"test/mse": value, "test/psnr": -value})
        for row, values in VALUES.items()
        for seed, value in enumerate(values)
        if (row, seed) not in left_out
    ]
    found += [result("d", seed, {}, "the loss is NaN") for seed in range(3)]
    found += [result(row, seed, {}, "MemoryError: no room") for row, seed in left_out]
    return Standings(study(), table(found), 3)


def test_rows_are_ranked_with_paired_differences_and_verdicts() -> None:
    places = standings().by(MSE)
    assert [(one.row, one.rank, one.verdict) for one in places] == [
        ("a", 1, "best"),
        ("b", 2, "worse"),
        ("c", 3, "tied"),
        ("d", None, "3 of 3 seeds failed: the loss is NaN"),
        ("none", None, ""),
    ]
    assert places[0].to_best is None
    assert places[1].to_best is not None
    assert places[2].to_best is not None
    assert (places[1].to_best.difference, places[1].to_best.error) == (1.0, 0.0)
    assert (places[2].to_best.difference, places[2].to_best.error) == pytest.approx((1.5, math.sqrt(10.75 / 3)))
    assert places[2].to_best.text(MSE) == "+1.50 ± 1.89 (x 1.50)"
    assert [one.is_leading for one in places] == [True, False, True, False, False]


def test_where_higher_is_better_the_order_is_the_same_for_the_opposite_values() -> None:
    assert [one.row for one in standings().by(PSNR)] == [one.row for one in standings().by(MSE)]


def test_a_row_cannot_win_by_the_seeds_it_lost() -> None:
    """Without its bad seeds c has the least mean, of one seed: that proves nothing."""
    places = standings(("c", 1), ("c", 2)).by(MSE)
    assert [one.row for one in places][:2] == ["a", "c"]
    assert places[1].verdict == "too few seeds; 2 of 3 seeds failed: MemoryError: no room"
    assert not places[1].is_leading


def test_the_picture_has_ranks_from_the_top_and_colours_by_verdict() -> None:
    figure = draw_ranking(standings(), MSE, [MSE, PSNR], "Made up")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["c", "b", "a"]
    assert left.get_yticks().tolist() == [0, 1, 2]

    def dots(ax: Any) -> dict[tuple[float, float], str]:
        lines = [line for line in ax.lines if line.get_marker() == "o"]
        return {(float(line.get_xdata()[0]), float(line.get_ydata()[0])): line.get_color() for line in lines}

    leading, behind = COLORS["best or tied"], COLORS["behind"]
    assert dots(left) == {(4.5, 0.0): leading, (4.0, 1.0): behind, (3.0, 2.0): leading}
    bar = next(line for line in left.lines if list(line.get_ydata()) == [2, 2])
    assert list(bar.get_xdata()) == pytest.approx([3 - 2 / math.sqrt(3), 3 + 2 / math.sqrt(3)])
    assert any(line.get_linestyle() == "--" and line.get_xdata()[0] == -0.5 for line in right.lines)


def test_one_seed_gives_no_verdict() -> None:
    only = Standings(study(), table([result(row, 0, {"test/mse": VALUES[row][0]}) for row in ("a", "b")]), 1)
    assert [(one.row, one.verdict) for one in only.by(MSE)][:2] == [("a", "best"), ("b", "too few seeds")]
    colors = [line.get_color() for line in draw_ranking(only, MSE, [MSE], "One").axes[0].lines]
    assert colors == [COLORS["too few seeds"], COLORS["best or tied"]]


def test_page_and_table_say_what_was_measured(tmp_path: Path) -> None:
    prepared = prepare(Request(presets=["ema", "vq_vae"], data="digits", size="tiny", seeds=2))
    size = prepared.study.sizes["tiny"]
    cells = [Cell("digits", "autoencoder", row) for row in prepared.study.rows]
    plan = Plan(prepared.study, size, Results(tmp_path), {}, cells, cells, 2, command="compare")
    values = {"ema": (0.02, 17.0), "vq_vae": (0.04, 14.0), "unquantized": (0.01, 20.0)}
    for run in plan:
        mse, psnr = values[run.cell.row]
        bad = run.cell.row == "vq_vae" and run.kind == "final" and run.number == 1
        lr = run.overlays[-1 if run.kind == "final" else -2]["model"]["init_args"]["optimizer"]["lr"]
        metrics = {"val/mse": mse - lr} if run.kind == "tune" else {"test/mse": mse + run.number / 1e3}
        metrics |= {"test/psnr": psnr, "test/distortion": 0.25, "test/usage": 0.5} if run.kind == "final" else {}
        made = Result.of(run, 0.5, {} if bad else metrics, error="diverged" if bad else "")
        plan.results.add(run, made)
    report = Ranking(plan, prepared.target, prepared.methods, 16, 10, "straightvq compare", "Conditions.")
    report.draw()
    report.write()
    page = (tmp_path / "report.md").read_text()
    assert "| 1 | ema | 0.2500 ± 0.0000 | 20.500 ± 0.707 | 17.00 ± 0.00 | – | best | 3.00 |" in page
    assert "too few seeds; 1 of 2 seeds failed: diverged | 6.00 |" in page
    assert "| – | unquantized | – |" not in page  # it has values of its own
    assert "5 of 6 runs are finished" in page
    assert "| ema | 50.0 ± 0.0 | – |" in page
    assert "| 50 | 4.00 | yes | 2 | lr 0.003 |" in page
    assert "**lr 0.003: 0.017**" in page
    assert "![rows from the best down" in page
    assert "So few vectors per code" not in page
    rows = pd.read_csv(tmp_path / "ranking.csv").set_index("quantizer")
    assert list(rows["rank"].fillna(0)) == [1, 2, 0]
    assert rows.loc["ema", "mse"] == pytest.approx(0.0205)
    assert rows.loc["vq_vae", "to_best"] == pytest.approx(0.02)
    assert rows.loc["ema", "run_ms"] == 50


def test_a_small_test_set_is_pointed_out(tmp_path: Path) -> None:
    prepared = prepare(Request(presets=["ema"], size="tiny", codebook_size=256))
    cells = [Cell("moving", "no network", "ema")]
    plan = Plan(prepared.study, prepared.study.sizes["tiny"], Results(tmp_path), {}, cells, cells, 1)
    Ranking(plan, prepared.target, prepared.methods, 256, 10, "straightvq compare", "Conditions.").write()
    assert "1,024 vectors of the test set, 4 per code" in (tmp_path / "report.md").read_text()
    assert "So few vectors per code" in (tmp_path / "report.md").read_text()
