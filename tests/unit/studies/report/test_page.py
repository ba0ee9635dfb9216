"""Numbers of the report, worked out by hand, and its two languages."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from straightvq.studies import Study, load_study
from straightvq.studies.plan import Plan
from straightvq.studies.report.page import Report
from straightvq.studies.report.tables import MainTable, Table, best_rows, compare, spread, tuning_table
from straightvq.studies.results import Cell, Result, Results
from straightvq.studies.study import Config, Measure, Row

STUDY: dict[str, Any] = {
    "title": "A study",
    "about": "What it is.",
    "measures": {
        "test/mse": {"label": "MSE", "better": "lower", "compare": "ratio", "scale": 1000, "digits": 2},
        "test/perplexity": {"label": "perplexity"},
    },
    "tune": {"by": "val/mse", "settings": {"low": {"a": 1}, "high": {"a": 2}}},
    "base": {"a": 0},
    "sets": {"digits": {"config": {}}},
    "rows": {
        "VQ": {"config": {}, "paper": {"digits": {"MSE": 6.0}}},
        "half": {"config": {"b": 1}, "paper": {"digits": {"MSE": 3.0, "perplexity": 7.0}}},
        "same": {"config": {"b": 2}, "paper": {"digits": {"MSE": 5.0}}},
        "none": {"config": {"b": 3}},
    },
    "sizes": {
        "s": {"sets": ["digits"], "seeds": 2, "models": {"net": {"config": {}}}, "config": {}, "tune": {"short": 1}}
    },
}
# MSE by row and seed: `half` wins by 2e-3 and 2.2e-3; `same` loses and wins 1e-4.
VALUES = {"VQ": [0.0040, 0.0044], "half": [0.0020, 0.0022], "same": [0.0041, 0.0043]}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return load_study(str(file))


@pytest.fixture
def plan(study: Study, tmp_path: Path) -> Plan:
    """Two seeds of three of the four rows are finished; tuning chose the second setting."""
    cells = [Cell("digits", "net", row) for row in study.rows]
    found = Plan(study, study.sizes["s"], Results(tmp_path / "out"), {}, cells, cells, 2)
    for cell in cells[:-1]:
        for run, mse in zip(found.tuning(cell), (0.5, 0.25), strict=True):
            found.results.add(run, Result.of(run, 5.0, {"val/mse": mse}))
        for seed, mse in enumerate(VALUES[cell.row]):
            run = found.final(cell, seed)
            found.results.add(run, Result.of(run, 10.0 + seed, {"test/mse": mse, "test/perplexity": 4.0 + seed}))
    return found


def main(plan: Plan, **changed: Row) -> Table:
    """The table of a study with other rows."""
    study = dataclasses.replace(plan.study, rows={**plan.study.rows, **changed})
    return MainTable(study, plan.cells, plan.results.matching(plan.reported())).table()


def page(plan: Plan, command: str = "", remark: str = "") -> str:
    Report(plan, command, remark).write()
    return (plan.results.folder / "report.md").read_text()


def best(values: dict[str, dict[int, float]], headline: Measure) -> str:
    return best_rows(pd.DataFrame({row: series(own) for row, own in values.items()}), headline)


def series(values: dict[int, float]) -> pd.Series:
    return pd.Series(values, dtype=float)


def test_paired_difference_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard deviation 1, error 1 / sqrt(3)."""
    found = compare(series({0: 2.0, 1: 4.0, 2: 6.0, 5: 100.0}), series({0: 1.0, 1: 2.0, 2: 3.0, 7: -50.0}), "higher")
    assert found.difference == 2.0
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.verdict == "better"
    assert compare(series({0: 2.0, 1: 4.0, 2: 6.0}), series({0: 1.0, 1: 2.0, 2: 3.0}), "lower").verdict == "worse"


def test_tied_is_within_two_standard_errors() -> None:
    """Differences 0 and 2: mean 1, error 1; then 1 and 3: mean 2 is just two errors; then 1.1 and 3."""
    assert compare(series({0: 0.0, 1: 2.0}), series({0: 0.0, 1: 0.0}), "higher").verdict == "tied"
    assert compare(series({0: 1.0, 1: 3.0}), series({0: 0.0, 1: 0.0}), "higher").verdict == "tied"
    assert compare(series({0: 1.1, 1: 3.0}), series({0: 0.0, 1: 0.0}), "higher").verdict == "better"
    assert compare(series({0: 1.0}), series({0: 0.0}), "higher").verdict == ""
    assert math.isnan(compare(series({0: 1.0}), series({1: 0.0}), "higher").difference)


def test_equal_runs_are_tied() -> None:
    assert compare(series({0: 1.0, 1: 2.0}), series({0: 1.0, 1: 2.0}), "lower").verdict == "tied"


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread(pd.Series([1.0, 3.0]), 2) == "2.00 ± 1.41"
    assert spread(series({}), 2) == "–"


def test_best_row_and_those_tied_with_it() -> None:
    accuracy = Measure("accuracy", "accuracy", better="higher")
    by_row = {"a": {0: 1.0, 1: 1.2}, "b": {0: 3.0, 1: 4.0}, "c": {0: 2.0, 1: 4.5}, "empty": {}}
    assert best(by_row, accuracy) == "Best accuracy: b; tied with it: c."
    assert best(by_row, dataclasses.replace(accuracy, better="lower")) == "Best accuracy: a; tied with it: c."
    assert best(by_row, dataclasses.replace(accuracy, better="")) == ""
    assert best({"a": {0: 2.0, 1: 2.1}, "b": {0: 1.0, 1: 1.2}}, accuracy) == "Best accuracy: a; tied with it: none."
    assert best({"a": {0: 1.0}}, accuracy) == ""


def test_too_few_seeds_are_not_called_a_tie() -> None:
    accuracy = Measure("accuracy", "accuracy", better="higher")
    one = {"a": {0: 1.0}, "b": {0: 3.0}}
    assert best(one, accuracy) == "Best accuracy: b; too few common seeds to compare it with: a."
    some = {"a": {0: 9.0}, "b": {0: 3.0, 1: 4.0}, "c": {0: 2.0, 1: 4.5}}
    assert best(some, accuracy).endswith("b; tied with it: c; too few common seeds to compare it with: a.")


def test_a_row_is_not_best_by_a_seed_that_the_others_lack() -> None:
    """Over seeds 0 and 1: 1 and 1.85."""
    accuracy = Measure("accuracy", "accuracy", better="higher")
    values = {"a": {0: 1.0, 1: 1.0, 2: 4.0}, "b": {0: 1.9, 1: 1.8}}
    assert best(values, accuracy) == "Best accuracy: b; tied with it: none."
    # A single run takes no part in what is common; and one common seed is too few.
    assert best({**values, "c": {2: 9.0}}, accuracy).startswith("Best accuracy: b; tied with it: none; too few")
    assert best({"a": values["a"], "b": {0: 1.9, 3: 1.8}}, accuracy).startswith("Best accuracy: a;")


def test_equal_values_of_the_paper_give_no_direction(plan: Plan) -> None:
    rows = plan.study.rows
    table = main(plan, half=dataclasses.replace(rows["half"], paper=rows["VQ"].paper))
    half = next(row for row in table.rows if row[0] == "half")
    assert half[-6:-2] == ["-2.10 ± 0.10 (x 0.50)", "better", "+0.00 (x 1.00)", "–"]


def test_a_bound_is_never_the_best_row(plan: Plan) -> None:
    best = min(VALUES, key=lambda row: sum(VALUES[row]))
    assert f": {best};" in main(plan).note
    assert best not in main(plan, **{best: dataclasses.replace(plan.study.rows[best], bound=True)}).note


def test_a_row_is_compared_with_the_rows_that_it_names(plan: Plan) -> None:
    """Differences of `half` and `same`: -2.1 and -2.1; the paper's are 3 and 5."""
    named = dataclasses.replace(plan.study.rows["half"], against=["same", "none"])
    note = main(plan, half=named).note
    assert note.endswith(" half against same: -2.10 ± 0.00 (x 0.50), better (paper -2.00 (x 0.60): agrees).")
    assert "against none" not in note
    # Two forms of one row of the paper's: it has nothing to say on their difference.
    note = main(plan, half=dataclasses.replace(named, paper=plan.study.rows["same"].paper)).note
    assert note.endswith(" half against same: -2.10 ± 0.00 (x 0.50), better.")


def test_main_table(plan: Plan) -> None:
    table = main(plan)
    assert table.title == "net on digits"
    assert table.header == [
        "row", "MSE", "paper", "perplexity", "paper", "against VQ", "verdict", "paper", "direction", "seeds",
        "s per run",
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["VQ"] == ["4.20 ± 0.28", "6.00", "4.5 ± 0.7", "–", "", "", "", "", "2", "10"]
    # Differences -2.0 and -2.2: mean -2.1, error 0.1; 2.1 / 4.2 = 0.5.
    assert rows["half"][4:8] == ["-2.10 ± 0.10 (x 0.50)", "better", "-3.00 (x 0.50)", "agrees"]
    # Differences 0.1 and -0.1.
    assert rows["same"][4:8] == ["+0.00 ± 0.10 (x 1.00)", "tied", "-1.00 (x 0.83)", "tied here"]
    assert rows["none"] == ["–", "–", "–", "–", "–", "", "", "", "0", "–"]


def test_tuning_table_marks_the_best(plan: Plan) -> None:
    table = tuning_table(plan.study, plan.cells, plan.results.matching(plan.reported()))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["half"] == ["low: 0.5", "**high: 0.25**"]
    assert rows["none"] == ["–", "–"]


def test_both_languages_have_every_number(plan: Plan) -> None:
    text = page(plan, "straightvq reproduce mine", "A remark.")
    tex = (plan.results.folder / "report.tex").read_text()
    assert text.startswith("# A study\n\nWhat it is.\n")
    assert "`straightvq reproduce mine`. 6 of 8 runs are finished" in text
    assert "\n\nA remark.\n\n" in text
    assert "| half | 2.10 ± 0.14 | 3.00 |" in text
    assert r"half & 2.10 $\pm$ 0.14 & 3.00" in tex
    assert r"(\textbf" not in tex
    assert r"\textbf{high: 0.25}" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2


def test_failed_runs_are_named_and_not_counted(plan: Plan) -> None:
    run = plan.final(plan.cells[-1], 0)
    plan.results.add(run, Result.of(run, 1.0, {}, error="`VectorQuantizer`: `z` must be finite."))
    text = page(plan)
    assert "- digits net none, final 0: `VectorQuantizer`: `z` must be finite." in text
    assert "| none | – |" in text


def test_a_failed_run_counts_in_no_mean_even_if_it_left_values(plan: Plan) -> None:
    before = next(row for row in main(plan).rows if row[0] == "half")
    run = plan.final(Cell("digits", "net", "half"), 1)
    plan.results.add(run, Result.of(run, 99.0, {"test/mse": 9.0}, error="diverged"))
    after = next(row for row in main(plan).rows if row[0] == "half")
    assert before[1] == "2.10 ± 0.14"
    assert after[1] == "2.00"
    assert after[5:7] == ["-2.00 (x 0.50)", ""], "one common seed has no verdict"
    assert after[-2:] == ["1", "10"]


def test_a_report_tells_when_and_with_what_its_runs_were_made(plan: Plan) -> None:
    made = {"versions": "straightvq 9", "hardware": "a machine"}
    for number, run in enumerate(plan.reported()):
        found = plan.results.of(run)
        if found:
            plan.results[run.folder] = dataclasses.replace(found, date=f"2026-01-0{number % 3 + 1}", **made)
    assert "6 of 8 runs are finished, straightvq 9, a machine, 2026-01-01 to 2026-01-03." in page(plan)


def test_results_of_other_settings_and_further_seeds_are_left_out(plan: Plan) -> None:
    runs = [plan.final(Cell("digits", "net", "half"), seed) for seed in (0, 1, 2)]
    other = dataclasses.replace(runs[1], overlays=[*runs[1].overlays, Config({"b": 7})])
    assert plan.results.matching([runs[0], other, runs[2]]).number.tolist() == [0]
    assert plan.results.is_stale(other)
    assert not plan.results.is_stale(runs[2])


def test_a_value_of_tuning_that_failed_is_not_chosen(plan: Plan) -> None:
    cell = plan.cells[0]
    assert plan.final(cell, 0).setting == "high"
    best = plan.tuning(cell)[1]
    plan.results.add(best, Result.of(best, 1.0, {}, error="diverged"))
    assert plan.final(cell, 0).setting == "low"


def test_signs_of_either_language_are_escaped() -> None:
    text = Table("t", ["a|b", "%"], [["l2|c", "1"]]).markdown()
    assert text.splitlines() == [r"| a\|b | % |", "|---|---:|", r"| l2\|c | 1 |"]
    text = Table("t", ["a_b", "%"], [["l2 & c", "– x"]]).latex()
    assert r"a\_b & \% \\" in text
    assert r"l2 \& c & -- x \\" in text
    signs = Table("t", ["a^b"], [["~"], ["c\\d {e} ± 1 (x 2)"]]).latex()
    assert r"a\textasciicircum{}b \\" in signs
    assert r"\textasciitilde{} \\" in signs
    assert r"c\textbackslash{}d \{e\} $\pm$ 1 ($\times$ 2) \\" in signs
