"""Law 6: distances, statistics and state are at least float32, whatever the network around the layer computes in."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import straightvq as svq
from tests.contracts.cases import CASES, DIM, SIZE, Factory, every

every_case = every("make", CASES)
HALVES = [torch.bfloat16, torch.float16]
every_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


def data(seed: int, n: int = 80, offset: float = 0.0) -> Tensor:
    return offset + torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self, make: Factory) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.layer, self.decoder = nn.Linear(DIM, DIM), make(channel_dim=-1), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, svq.QuantizerOutput]:
        z = self.encoder(x)
        out = self.layer(z)
        return self.decoder(out.quantized), z, out


def train(
    net: Net,
    *,
    steps: int = 6,
    dtype: torch.dtype = torch.float32,
    context: Callable[[], Any] = contextlib.nullcontext,
    scaler: torch.amp.GradScaler | None = None,
    device: str = "cpu",
) -> None:
    """Training steps; after each of them all state is finite and in float32 at least."""
    optimizer = torch.optim.SGD(svq.parameter_groups(net, lr=0.05, weight_decay=0.01))
    svq.attach_optimizer(optimizer, net)
    expected = torch.promote_types(dtype, torch.float32)
    for step in range(steps):
        x = data(step).to(device, dtype)
        optimizer.zero_grad()
        with context():
            y, z, out = net(x)
            loss = (y - x).float().square().mean() + out.loss
        assert out.quantized.dtype == z.dtype
        assert out.loss.dtype == expected
        assert all(term.dtype == expected for term in out.terms.values())
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        for name, value in net.state_dict().items():
            assert value.isfinite().all(), f"{name} after step {step}"
        for name, value in net.layer.state_dict().items():
            assert not value.is_floating_point() or value.dtype == expected, name


@every_half
@every_case
def test_training_under_autocast_keeps_the_state_finite_and_in_float32(make: Factory, dtype: torch.dtype) -> None:
    train(Net(make), context=lambda: torch.autocast("cpu", dtype))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=["bfloat16", "float16", "float64"])
@every_case
def test_training_of_a_converted_network_keeps_the_state_finite(make: Factory, dtype: torch.dtype) -> None:
    net = Net(make).to(dtype)
    assert net.encoder.weight.dtype == dtype
    train(net, dtype=dtype)


@pytest.mark.parametrize("name", ["ema", "straight-sync", "vq_ste_pp"])
def test_training_with_a_loss_scale_keeps_the_state_finite(name: str) -> None:
    # The first steps overflow in float16 and are left out.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    train(Net(CASES[name]), steps=40, context=lambda: torch.autocast("cpu", torch.float16), scaler=scaler)
    assert 1 <= scaler.get_scale() < 2.0**40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_case
def test_training_in_float16_with_a_loss_scale_on_cuda(make: Factory) -> None:
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    context = lambda: torch.autocast("cuda", torch.float16)  # noqa: E731
    train(Net(make).to("cuda"), steps=40, context=context, scaler=scaler, device="cuda")
    assert 1 <= scaler.get_scale() < 2.0**40


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=["bfloat16", "float16", "float64"])
@every_case
def test_layer_made_where_tensors_are_made_in_another_dtype(make: Factory, dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        net = Net(make)
        assert net.encoder.weight.dtype == dtype
        assert len(net.layer.codes().unique(dim=0)) == SIZE
        train(net, dtype=dtype)
        assert torch.get_default_dtype() == dtype


# --- inside the layer -----------------------------------------------------------------------------------------------

# What moves numbers or compares them, and computes none.
HARMLESS = {
    "_to_copy", "_unsafe_view", "alias", "aminmax", "as_strided", "clone", "detach", "empty_like", "expand", "fill_",
    "isfinite", "new_empty_strided", "new_zeros", "ones_like", "permute", "scalar_tensor", "select", "slice",
    "slice_backward", "t", "transpose", "unsqueeze", "view", "where", "zeros", "zeros_like",
}  # fmt: skip


class NoHalfPrecision(TorchDispatchMode):
    """Refuses arithmetic in less than float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name not in HARMLESS:
            for x in tree_leaves((args, kwargs, out)):
                is_half = isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize < 4
                assert not is_half, f"{name} in {x.dtype}"
        return out


@every_half
@every_case
def test_nothing_is_computed_in_half_precision(make: Factory, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = make(channel_dim=-1).to(dtype)
    for step in range(6):
        mask = torch.arange(80) % 4 != 0 if step % 2 else None
        z = data(step).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype), NoHalfPrecision():
            out = layer(z, mask)
        (out.quantized.sum() + out.loss).backward()
        assert z.grad is not None
        assert z.grad.dtype == dtype
    with torch.autocast("cpu", dtype), NoHalfPrecision():
        layer.eval()(z, mask)
        layer.decode(layer.encode(z, mask))


def test_half_precision_is_found() -> None:
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match=r"mm in torch.bfloat16"), NoHalfPrecision():
        x @ x


# --- indices --------------------------------------------------------------------------------------------------------


def clear_indices(layer: svq.VectorQuantizer, z: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Nearest codes in float64, and where they are nearest by more than rounding."""
    exact = copy.deepcopy(layer).double()
    x, codes = exact.transform(z.double()).detach(), exact.codes()
    if isinstance(layer.assigner, svq.LargestProduct):
        # Of equally long codes the nearest: |x - c|^2 is then -2 <x, c> and a number without c.
        rest = codes.square().sum(1).max() - codes.square().sum(1, keepdim=True)
        x, codes = F.pad(x, (0, 1)), torch.cat([codes, rest.sqrt()], 1)
    if layer.assigner.distance == "cosine":
        x, codes = F.normalize(x, dim=1), F.normalize(codes, dim=1)
    nearest = torch.cdist(x, codes, compute_mode="donot_use_mm_for_euclid_dist").topk(2, largest=False)
    gap = nearest.values[:, 1] - nearest.values[:, 0]
    return nearest.indices[:, 0], gap > rounding


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["near", "far"])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=["bf16", "fp16", "fp32", "fp64"])
@every_case
def test_indices_are_those_of_float64_wherever_it_is_not_rounding(
    make: Factory, dtype: torch.dtype, offset: float
) -> None:
    """For the vectors as the layer gets them: rounding them to half precision is the caller's choice."""
    torch.manual_seed(0)
    layer = make(channel_dim=-1)
    for step in range(6):
        layer(data(step, offset=offset))
    is_double = dtype == torch.float64
    layer.to(dtype).eval()
    z = data(50, 500, offset).to(dtype)
    # float32 spaces numbers near 100 by 8e-6; the vectors' own spread is 1.
    expected, is_clear = clear_indices(layer, z, 1e-12 if is_double else 1e-3 if offset else 1e-5)
    with torch.autocast("cpu", dtype if dtype in HALVES else torch.bfloat16):
        indices = layer.encode(z)
    assert torch.equal(indices[is_clear], expected[is_clear])
    if not offset:
        assert is_clear.double().mean() > 0.95


@every_case
def test_a_float64_layer_computes_in_float64_for_float32_vectors(make: Factory) -> None:
    torch.manual_seed(0)
    layer = make(channel_dim=-1).double()
    for step in range(4):
        out = layer(data(step))
        assert out.quantized.dtype == torch.float32
        assert out.loss.dtype == torch.float64
    expected, is_clear = clear_indices(layer, data(50, 500), 1e-12)
    assert torch.equal(layer.encode(data(50, 500))[is_clear], expected[is_clear])
