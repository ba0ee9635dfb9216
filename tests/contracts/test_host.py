"""A training step does not wait for the host: nothing is read back from the device, nothing is copied to it.

The step runs on torch's meta device: every operator checks its arguments and none computes, so the tests need no
accelerator, and whatever asks for a value is found. Custom operators show their outside only, so the search's inside is
called by itself. The kernels are torch's own or have no such question to ask.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import straightvq as svq
from straightvq.functional import nearest
from tests.contracts.cases import CASES, DIM, Factory, every
from tests.ranks import pretend_ranks

every_case = every("make", CASES)

# Operators whose result, or its shape, is known only when the device has come to them.
WAITING = {
    "_local_scalar_dense", "bincount", "equal", "masked_select", "nonzero", "nonzero_numpy", "repeat_interleave",
    "unique_dim", "_unique", "_unique2", "unique_consecutive",
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Refuses every operator that waits for the device, and every copy between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in WAITING, f"{name} waits for the device"
        if name.startswith("index"):
            indices = [x for x in args[1] or () if x is not None] if isinstance(args[1], (list, tuple)) else []
            assert all(x.dtype != torch.bool for x in indices), f"{name} with a mask waits for the device"
        out = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_", "_copy_from"):
            devices = {x.device for x in tree_leaves((args, out)) if isinstance(x, Tensor)}
            assert len(devices) == 1, f"a copy between {sorted(map(str, devices))}"
        return out


class NoHostData(TorchFunctionMode):
    """Refuses device tensors made of Python's numbers: they are made on the host and copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            assert out.device.type == "cpu", f"a copy of Python's numbers to {out.device}"
        return out


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no autocast to switch off."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    with NoHostData(), NoWaiting():
        yield


def started(make: Factory) -> svq.VectorQuantizer:
    """After its init, on a device without values."""
    torch.manual_seed(0)
    layer = make(channel_dim=-1)
    layer(torch.randn(80, DIM))
    assert layer.codebook._ready
    return layer.to("meta")


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("ranks", [1, 2])
@every_case
def test_training_step_waits_for_nothing(
    make: Factory, ranks: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = started(make)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1)), *layer.parameters()], 0.1, momentum=0.9)
    svq.attach_optimizer(optimizer, layer)
    if ranks > 1:
        pretend_ranks(monkeypatch, ranks)
    mask = torch.ones(80, dtype=torch.bool, device="meta") if masked else None
    for _ in range(2):
        z = torch.randn(80, DIM, device="meta", requires_grad=True)
        with no_waiting():
            out = layer(z, mask)
            (out.quantized.square().mean() + out.loss).backward()
            optimizer.step()
        assert z.grad is not None
        assert z.grad.is_meta


@every_case
def test_evaluation_encoding_and_decoding_wait_for_nothing(make: Factory) -> None:
    layer = started(make).eval()
    z = torch.randn(80, DIM, device="meta")
    with no_waiting():
        layer(z)
        layer.decode(layer.encode(z))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_tiled_search_waits_for_nothing(distance: str) -> None:
    z, codes = torch.randn(3000, DIM, device="meta"), torch.randn(5000, DIM, device="meta")
    with no_waiting():
        assert nearest._search_among_few(z, codes, distance, "tiled").shape == (3000,)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x + torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.copy_(torch.zeros(2)),
    ],
    ids=["item", "bool", "nonzero", "mask", "select", "unique", "to host", "from list", "from host"],
)
def test_a_wait_is_found(wait: Any) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=r"waits for|a copy|meta"), no_waiting():
        wait(torch.zeros(2, device="meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_case
def test_training_step_waits_for_nothing_on_cuda(make: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # autocast as it is
    torch.manual_seed(0)
    layer = make(channel_dim=-1).to("cuda")
    layer(torch.randn(80, DIM, device="cuda"))
    z = torch.randn(80, DIM, device="cuda", requires_grad=True)
    waits = any(isinstance(module, (svq.WassersteinLoss, svq.RegionLoss)) for module in layer.modules())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing") if waits else contextlib.nullcontext():
            out = layer(z)
            (out.quantized.square().mean() + out.loss).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
