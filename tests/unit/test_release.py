"""What a release says of itself is the same in every place."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import straightvq

ROOT = Path(__file__).parents[2]
PAPER = "Straightening Out the Straight-Through Estimator"


def test_version_is_that_of_the_citation_and_the_newest_entry_of_the_changelog() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert straightvq.__version__ == cited["version"] == newest[1]


def test_citation_has_what_readers_of_its_format_require() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["authors"] == [{"name": "The straightvq developers"}]
    (paper,) = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["title"].startswith(PAPER)
    assert [author["family-names"] for author in paper["authors"]] == ["Huh", "Cheung", "Agrawal", "Isola"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout, so git cannot be asked")
def test_archive_of_the_sources_takes_all_of_the_repository() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {name.partition("/")[0] for name in files if not name.startswith(".")}
    by_itself = {"LICENSE", "README.md", "pyproject.toml", "MANIFEST.in"}  # setuptools takes these
    assert sorted(found - by_itself - set((ROOT / "MANIFEST.in").read_text().split())) == []
