import importlib.util
import json
import os
import re
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
is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
needs_compiled = pytest.mark.skipif(is_interpreted, reason="with TRITON_INTERPRET=1 no kernel is compiled")


def on_the_device(test: Callable[..., None]) -> Callable[..., None]:
    has_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return needs_triton(pytest.mark.gpu(has_device(test)))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.kernels.cases"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    errors: dict[str, str | None] = json.loads(done.stdout)
    assert errors.keys() == CHECKS.keys()
    return errors


@needs_triton
@pytest.mark.parametrize("name", CHECKS)
def test_in_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@on_the_device
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_device(name: str) -> None:
    CHECKS[name]("cuda")


@on_the_device
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


@on_the_device
@pytest.mark.parametrize("d", [8, 64, 256])
def test_the_configuration_chosen_changes_no_float32_index(d: int) -> None:
    """The choice rests on timings: a resumed run may make another, and must still find the same indices."""
    z, codes, _ = inputs(4096, 4096, d, "cuda")
    codes = codes[:1] + 1e-6 * codes  # margins of the size of the rounding
    bias = codes.square().sum(1) / 2
    first, *others = [run(z, codes, bias, "float32", tile) for tile in module.tiles("float32", d)]
    assert all(torch.equal(first, other) for other in others)


@on_the_device
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


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Kernels that were launched, compiled for compute capability 9.0, for which no device is needed."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    kernels = module._kernel_module()
    kernel, launched = kernels.nearest_kernel, []

    class Compiler:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **constants: launched.append(kernel.warmup(*args, grid=grid, **constants))

    pretended = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: "pretended",  # of its own, so that what is compiled for it is kept apart
        get_current_stream=lambda device: 0,
    )
    monkeypatch.setattr(driver, "_active", pretended)
    monkeypatch.setattr(kernels, "nearest_kernel", Compiler())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return launched


@needs_triton
@needs_compiled
def test_a_single_group_of_odd_sizes_is_loaded_16_bytes_at_a_time(compiled: list[Any]) -> None:
    z, codes, bias = inputs(1001, 513, 8, "cpu")
    run(z, codes, bias, "float32", module.tiles("float32", 8)[-1])
    # Vectors and codes; a copy of 4 bytes for each number instead, where the strides hide that rows are aligned.
    copied = re.findall(r"cp\.async\.c[ag]\.shared\.global .*, (\w+), %", compiled[0].asm["ptx"])
    assert {int(size, 0) for size in copied} == {16}


@needs_triton
@needs_compiled
@pytest.mark.parametrize("width", [8, 64, pytest.param(256, marks=pytest.mark.slow)])
def test_the_default_search_fits_into_shared_memory(width: int, compiled: list[Any]) -> None:
    z, codes, bias = inputs(100, 200, width, "cpu")
    for tile in module.tiles("tf32x3", width):
        run(z, codes, bias, "tf32x3", tile, (4,))
    assert min(kernel.metadata.shared for kernel in compiled) <= 99 << 10  # of compute capability 8.6 and 8.9
    assert max(kernel.metadata.shared for kernel in compiled) <= 227 << 10


@needs_triton
@pytest.mark.skipif(is_interpreted, reason="the interpreter takes CPU tensors")
def test_the_cpu_is_refused() -> None:
    with pytest.raises(RuntimeError, match="must be on a CUDA device"):
        search(*inputs(3, 2, 4, "cpu"))


def test_without_triton_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module._kernel_module.cache_clear()
    monkeypatch.delitem(sys.modules, "straightvq.kernels.nearest_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match="needs Triton, which could not be imported"):
        search(*inputs(3, 2, 4, "cpu"))


def test_importing_the_search_does_not_import_triton() -> None:
    code = "import sys, torch; before = set(sys.modules); import straightvq.kernels.nearest; "
    code += "assert 'triton' in before or 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda z, c, b: (z, c, b, "exact"), ValueError, "`precision` must be one of"),
        (lambda z, c, b: (z, c, b, "float32", 0), ValueError, r"`few` must be None or an integer in \[1, 16\]. Got 0"),
        (lambda z, c, b: (z, c, b, "float32", 17), ValueError, "Got 17"),
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
