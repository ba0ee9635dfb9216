from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tests.small_study import edited

from straightvq.runs import read_log
from straightvq.studies import load_study
from straightvq.studies.report.pictures import dots, mean_curve
from straightvq.studies.results import Cell, table


def test_mean_curve_of_seeds_that_validate_at_other_steps() -> None:
    one, other = pd.Series({100: 1.0, 200: 2.0, 300: 4.0}), pd.Series({110: 3.0, 220: 3.0, 330: 3.0})
    assert mean_curve([one, other]).to_dict() == {200: 2.5, 300: 3.5}  # at 100 the second one has not started


def test_mean_curve_ends_with_the_shortest_one_and_takes_values_between_as_straight() -> None:
    mean = mean_curve([pd.Series({0: 0.0, 10: 1.0, 20: 2.0, 30: 3.0}), pd.Series({0: 0.0, 15: 3.0})])
    assert mean.to_dict() == {0: 0.0, 15: (1.5 + 3.0) / 2}


def test_curve_of_a_resumed_run_joins_its_logs_and_the_later_one_counts(tmp_path: Path) -> None:
    for version, lines in ((0, "9,0.5\n19,0.6\n29,\n"), (1, "19,0.7\n29,0.8\n"), (10, "39,0.9\n")):
        file = tmp_path / "metrics" / f"version_{version}" / "metrics.csv"
        file.parent.mkdir(parents=True)
        file.write_text("step,val/accuracy\n" + lines)
    assert read_log(tmp_path, "val/accuracy") == ([10, 20, 30, 40], [0.5, 0.7, 0.8, 0.9])


@pytest.mark.parametrize("measures", [1, 2])
def test_headline_and_names_of_rows_are_whole_and_within_the_figure(measures: int, tmp_path: Path) -> None:
    content = edited(title="Classifiers in whose features images are compared, of which there is one for each set")
    content["measures"] = dict(list(content["measures"].items())[:measures])
    long = "affine (running) + replace + EMA 0.9"
    content["rows"] = {name: content["rows"]["unquantized"] for name in ("VQ", long)}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    study = load_study(str(file))
    figure = dots(study, table([]), [[Cell("digits", "net", row) for row in study.rows]])
    renderer = FigureCanvasAgg(figure).get_renderer()
    (headline,) = figure.texts
    assert headline.get_text() == study.title
    assert headline.get_window_extent(renderer).x1 < figure.bbox.x1
    for ax in figure.axes:
        labels = ax.get_yticklabels()
        assert [label.get_text() for label in labels] == [long, "VQ"]
        assert min(label.get_window_extent(renderer).x0 for label in labels) > 0
        assert ax.get_position().width * figure.get_size_inches()[0] > 5
