"""The docstrings' examples, every module of the package, the seed reset before each."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import straightvq

ROOT = Path(straightvq.__file__).parent


def module_names() -> list[str]:
    """All modules, found by their files: nothing is imported while tests are collected."""
    names = []
    for file in sorted(ROOT.rglob("*.py")):
        parts = ("straightvq", *file.relative_to(ROOT).with_suffix("").parts)
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("name", module_names())
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "straightvq.kernels.nearest_kernel":
        pytest.importorskip("triton")  # nothing else imports it before the first CUDA search
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        torch.manual_seed(0)
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_every_module_is_found():
    found = {info.name for info in pkgutil.walk_packages([str(ROOT)], "straightvq.")}
    assert found <= set(module_names())
