from pathlib import Path

import pytest

from straightvq.studies.figures import mean_curve
from straightvq.tasks._run import read_log


def test_mean_curve_of_seeds_that_validate_at_other_steps() -> None:
    steps, values = mean_curve([([100, 200, 300], [1.0, 2.0, 4.0]), ([110, 220, 330], [3.0, 3.0, 3.0])])
    assert steps == [200, 300]  # at 100 the second one has not started
    assert values == pytest.approx([2.5, 3.5])


def test_mean_curve_ends_with_the_shortest_one_and_takes_values_between_as_straight() -> None:
    steps, values = mean_curve([([0, 10, 20, 30], [0.0, 1.0, 2.0, 3.0]), ([0, 15], [0.0, 3.0])])
    assert steps == [0, 15]
    assert values == pytest.approx([0.0, (1.5 + 3.0) / 2])


def test_mean_curve_leaves_out_runs_without_a_log() -> None:
    assert mean_curve([([], []), ([1, 2], [3.0, 4.0])]) == ([1, 2], [3.0, 4.0])
    assert mean_curve([([], [])]) == ([], [])


def test_curve_of_a_resumed_run_joins_its_logs_and_the_later_one_counts(tmp_path: Path) -> None:
    for version, lines in ((0, "9,0.5\n19,0.6\n29,\n"), (1, "19,0.7\n29,0.8\n"), (10, "39,0.9\n")):
        file = tmp_path / "metrics" / f"version_{version}" / "metrics.csv"
        file.parent.mkdir(parents=True)
        file.write_text("step,val/accuracy\n" + lines)
    assert read_log(tmp_path, "val/accuracy") == ([10, 20, 30, 40], [0.5, 0.7, 0.8, 0.9])
