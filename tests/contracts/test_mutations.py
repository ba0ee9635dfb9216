"""The planted faults of ``tests/mutations.py`` can still be planted. Whether they are found is that script's to say."""

import ast
import shutil
from pathlib import Path

import pytest

import straightvq
from tests.mutations import FAULTS, ROOT, Fault

PACKAGE = Path(straightvq.__file__).parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_still_applies_and_leaves_python(fault: Fault, tmp_path: Path) -> None:
    copy = tmp_path / fault.file
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(PACKAGE / fault.file, copy)
    before = ast.dump(ast.parse(copy.read_text(encoding="utf-8")))
    fault.apply(tmp_path)
    assert ast.dump(ast.parse(copy.read_text(encoding="utf-8"))) != before
    assert all((ROOT / file).exists() for file in fault.tests.split())


def test_faults_have_different_names() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 16


def test_fault_whose_text_is_gone_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("a = 1\n")
    with pytest.raises(LookupError, match="Got 0 times"):
        Fault("gone", "x.py", "b = 1", "b = 2", "").apply(tmp_path)
