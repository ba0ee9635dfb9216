"""The toy study: its numbers are those of the authors' figure, and the proper rule is not the drawn one."""

from pathlib import Path

import pytest
import torch

from straightvq.studies.toy import RULES, draw_toy, path_length, steps_until_still, trajectory

# After steps 1, 2 and 3 of the rule that counts the commitment gradient twice: z, then the code.
AS_DRAWN = [
    ((-0.4124, -0.4050), (-0.6358, -0.7515)),
    ((-0.1837, -0.1794), (-0.3731, -0.3827)),
    ((-0.0811, -0.0790), (-0.1778, -0.1759)),
]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_the_steps_and_the_way_of_its_recursion(rule: str) -> None:
    z, _ = trajectory(rule)
    assert steps_until_still(z) == RULES[rule].still
    assert path_length(z) == pytest.approx(RULES[rule].length, abs=1e-3)


def test_drawn_panel_is_reproduced_by_counting_twice() -> None:
    z, code = trajectory("the same as the authors draw it", 3)
    torch.testing.assert_close(z[1:], torch.tensor([row[0] for row in AS_DRAWN]), atol=1e-4, rtol=0)
    torch.testing.assert_close(code[1:], torch.tensor([row[1] for row in AS_DRAWN]), atol=1e-4, rtol=0)


def test_proper_rule_differs_from_the_drawn_one() -> None:
    proper, drawn = trajectory("alternated + synchronised", 3)[0], trajectory("the same as the authors draw it", 3)[0]
    assert (proper - drawn).norm(dim=1).max() > 0.1


def test_study_writes_figure_tables_and_points(tmp_path: Path) -> None:
    draw_toy(tmp_path, "Title", "About.")
    assert {path.name for path in tmp_path.iterdir()} == {"toy.png", "report.md", "report.tex", "results.csv"}
    assert "| alternated + synchronised | 10 | 10 | 1.434 | 1.434 | 0.35 |" in (tmp_path / "report.md").read_text()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(RULES) * 61
