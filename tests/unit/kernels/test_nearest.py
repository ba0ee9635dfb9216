import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.kernels.cases import CHECKS, ERROR, assert_nearest, inputs, run

from straightvq.kernels import nearest as module
from straightvq.kernels.nearest import search

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def _interpret(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    done = _interpret(["-m", "tests.unit.kernels.cases"])
    assert done.returncode == 0, done.stderr
    errors: dict[str, str | None] = json.loads(done.stdout)
    assert errors.keys() == CHECKS.keys()
    return errors


@needs_triton
@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_device(name: str) -> None:
    CHECKS[name]("cuda")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32x3", "tf32", "half"])
def test_large_searches_and_a_captured_graph(precision: str) -> None:
    z, codes, bias = inputs(20_000, 5_000, 64, "cuda")
    assert_nearest(search(z, codes, bias, precision), z, codes, bias, ERROR[precision])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = search(z, codes, bias, precision)
    z.neg_()
    graph.replay()
    assert torch.equal(out, search(z, codes, bias, precision))


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("d", [8, 64, 256])
def test_the_configuration_chosen_changes_no_float32_index(d: int) -> None:
    """The choice rests on timings: a resumed run may make another, and must still find the same indices."""
    z, codes, _ = inputs(4096, 4096, d, "cuda")
    codes = codes[:1] + 1e-6 * codes  # margins of the size of the rounding
    bias = codes.square().sum(1) / 2
    first, *others = [run(z, codes, bias, "float32", tile) for tile in module.tiles("float32", d)]
    assert all(torch.equal(first, other) for other in others)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_offsets_beyond_32_bits_and_no_memory_but_the_result() -> None:
    n, d = (1 << 21) + 5, 1024
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GB of device memory")
    z = torch.zeros(n, d, device="cuda")
    z[-5:] = torch.eye(5, d, device="cuda")
    codes = torch.eye(5, d, device="cuda").flip(0).contiguous()
    bias = codes.new_zeros(5)
    search(z, codes, bias)  # the first call also tries configurations
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    got = search(z, codes, bias)
    assert torch.cuda.max_memory_allocated() - before <= 8 * n + 4096
    assert got[-5:].tolist() == [4, 3, 2, 1, 0]
    assert (got[:-5] == 0).all()


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
def test_the_cpu_is_refused() -> None:
    with pytest.raises(RuntimeError, match="must be on a CUDA device"):
        search(*inputs(3, 2, 4, "cpu"))


def test_without_triton_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module._kernel_module.cache_clear()
    monkeypatch.delitem(sys.modules, "straightvq.kernels.nearest_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match="needs Triton, which could not be imported"):
        search(*inputs(3, 2, 4, "cpu"))


@pytest.mark.parametrize("few", [0, 17])
def test_too_few_or_too_many_candidates_are_refused(few: int) -> None:
    with pytest.raises(ValueError, match=rf"`few` must be in \[1, 16\]. Got {few}"):
        search(*inputs(3, 2, 4, "cpu"), few=few)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_single_group_has_offsets_that_every_width_of_load_divides(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets between groups that are not multiples of 16 make Triton load number by number; of one there are none."""
    launched = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *args, **constants: launched.append(args)

    language = SimpleNamespace(float32="float32", bfloat16="bfloat16", float16="float16")
    fake = SimpleNamespace(tl=language, nearest_kernel=Kernel(), INTERPRETED=False)
    monkeypatch.setattr(module, "_kernel_module", lambda: fake)
    z, codes, bias = (torch.stack(parts) for parts in zip(*[inputs(5, 3, 7, "cpu")] * groups, strict=True))
    module.launch(
        z, codes, bias, torch.empty(groups, 5, 1, dtype=torch.int64), "float32", module.tiles("float32", 7)[0]
    )
    assert list(launched[0][6:9]) == ([0, 0, 0] if groups == 1 else [35, 21, 3])


def test_importing_the_search_does_not_import_triton() -> None:
    code = "import sys, torch; before = set(sys.modules); import straightvq.kernels.nearest; "
    code += "assert 'triton' in before or 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda z, c, b: (z, c, b, "exact"), ValueError, "`precision` must be one of"),
        (lambda z, c, b: (z.double(), c, b), TypeError, "`z` must be of dtype float32, bfloat16, float16. Got"),
        (lambda z, c, b: (z, c, b.half()), TypeError, "`bias` must be of dtype float32. Got torch.float16"),
        (lambda z, c, b: (z, c[:, 1:], b), ValueError, r"Got \(3, 4\), \(2, 3\) and \(2,\)"),
        (lambda z, c, b: (z[0], c, b), ValueError, r"`z` must be \(n, d\)"),
        (lambda z, c, b: (z[None], c, b), ValueError, "same groups in front"),
        (lambda z, c, b: (z, c, b[1:]), ValueError, r"`bias` \(k,\)"),
        (lambda z, c, b: (z, c[:0], b[:0]), ValueError, "there must be a code"),
        (lambda z, c, b: (z[:, :0], c[:, :0], b), ValueError, r"width must be in \[1, 1024\]"),
        (lambda z, c, b: (z, c.to("meta"), b), ValueError, "on one device. Got cpu, meta and cpu"),
    ],
)
def test_bad_input_is_refused(change, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        search(*change(*inputs(3, 2, 4, "cpu")))
