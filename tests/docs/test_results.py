"""The page of results shows the reports of the studies as they were written, and nothing that they lack."""

import re
from pathlib import Path

import pytest
from benchmarks.collect import BEFORE, PAGE, PICTURE, RESULTS, collect, filled
from PIL import Image

REPORTS = sorted(RESULTS.glob("*/report.md"))


def test_page_shows_every_study_as_it_was_written() -> None:
    shown = re.findall(r"<!-- study: (\S+) -->", PAGE.read_text())
    assert sorted(shown) == [report.parent.name for report in REPORTS]
    assert filled(PAGE.read_text()) == PAGE.read_text(), "run `python benchmarks/collect.py`"


@pytest.mark.parametrize("report", sorted(RESULTS.glob("**/report.md")), ids=lambda path: path.parent.name)
def test_every_report_says_by_which_command_and_has_its_numbers_and_pictures(report: Path) -> None:
    text = report.read_text()
    assert "`straightvq reproduce " in text
    assert (report.parent / "results.csv").is_file()
    for name in [*PICTURE.findall(text), *(found[0] for found in BEFORE.finditer(text))]:
        assert (report.parent / name).is_file(), name


def test_a_study_is_taken_with_what_it_shows_and_without_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "studies" / "mine-small"
    content = {
        "report.md": "# Mine\n\nUpon [other](other/report.md).\n\n## A on b\n\n![samples](runs/a/grid.png)\n\n"
        "## Tuning\n\nx\n",
        "results.csv": "set\n",
        "runs/a/grid.png": "picture",
        "runs/a/config.yaml": "/home/me",
        "configs/base.yaml": "",
        "other/report.md": "# Other\n",
        "other/results.csv": "",
        "other/runs/b/last.ckpt": "",
        "comparison/comparison.md": "# C\n\n![C](comparison.png)\n\n## a\n\n![P](../runs/a/analysis/divergence.png)\n\n"
        "## b\n\n![P](../runs/b/analysis/divergence.png)\n",
        "comparison/comparison.csv": "method\n",
        "comparison/comparison.png": "picture",
        "runs/a/analysis/divergence.png": "picture",
        "runs/a/analysis/curves.png": "another picture",
        "runs/b/analysis/divergence.png": "of a run that the page does not show",
    }
    for name, text in content.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (8, 8), "red").save(study / name)
        else:
            (study / name).write_text(text)
    results = tmp_path / "results"
    monkeypatch.setattr("benchmarks.collect.PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("![of a](../benchmarks/results/mine-small/runs/a/analysis/divergence.png)")
    (results / "mine-small").mkdir(parents=True)
    (results / "mine-small" / "old.png").write_text("of an older report")
    target = collect(study, results)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "comparison/comparison.csv", "comparison/comparison.md", "comparison/comparison.png", "other/report.md",
        "other/results.csv", "report.md", "results.csv", "runs/a/analysis/divergence.png", "runs/a/grid.png",
    ]  # fmt: skip
    comparison = (target / "comparison" / "comparison.md").read_text()
    assert comparison == "# C\n\n![C](comparison.png)\n\n## a\n\n![P](../runs/a/analysis/divergence.png)\n\n"
    with Image.open(target / "runs" / "a" / "grid.png") as picture:
        assert picture.convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    page = "before\n<!-- study: mine-small -->\nstale\n<!-- end -->\nafter\n"
    shown = filled(page, results)
    assert filled(shown, results) == shown
    assert shown == (
        "before\n<!-- study: mine-small -->\n\nUpon [other](../benchmarks/results/mine-small/other/report.md).\n\n"
        "### A on b\n\n![samples](../benchmarks/results/mine-small/runs/a/grid.png)\n\n"
        "The whole report: [mine-small](../benchmarks/results/mine-small/report.md).\n\n<!-- end -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="is where the results are taken to"):
        collect(target, results)
    monkeypatch.chdir(study)
    assert collect(Path("."), results) == target
    assert (results / "mine-small" / "report.md").is_file()
    with pytest.raises(SystemExit, match=r"has no report\.md; pass the folder of a study"):
        collect(tmp_path, results)
