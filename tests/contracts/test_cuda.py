"""On a CUDA device every quantizer gives what it gives on the CPU: values, gradients and state."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq
from tests.contracts import cases, test_families

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CASES: dict[str, Callable[[], svq.Quantizer]] = cases.CASES | cases.FREE | test_families.CASES
every_case = pytest.mark.parametrize("make", list(CASES.values()), ids=list(CASES))


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def data(seed: int, width: int, n: int = 80) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def step(layer: svq.Quantizer, z: Tensor) -> tuple[svq.QuantizerOutput, list[Tensor]]:
    """The output, and the gradients at ``z`` and at the parameters that get one."""
    z = z.requires_grad_()
    layer.zero_grad()
    out = layer(z)
    (out.quantized.square().sum() + out.loss).backward()
    return out, [each.grad for each in (z, *layer.parameters()) if each.grad is not None]


def assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-4, msg=lambda m: f"{what}: {m}")


@every_case
def test_training_steps_agree_with_the_cpu(make: Callable[[], svq.Quantizer]) -> None:
    torch.manual_seed(0)
    host = make()
    for number in range(6):
        device = copy.deepcopy(host).to("cuda")  # errors of rounding do not add up over the steps
        z = data(number, host.dim)
        expected, expected_grads = step(host, z.clone())
        got, grads = step(device, z.to("cuda"))
        assert got.quantized.is_cuda
        assert torch.equal(got.indices.cpu(), expected.indices)
        assert_close(got.quantized, expected.quantized, f"step {number}")
        assert_close(got.loss, expected.loss, f"step {number}")
        assert len(grads) == len(expected_grads)
        for mine, other in zip(grads, expected_grads, strict=True):
            assert_close(mine, other, f"step {number}")
        state = host.state_dict()
        assert state.keys() == device.state_dict().keys()
        for name, value in device.state_dict().items():
            assert value.is_cuda, name
            assert_close(value, state[name], f"step {number}, {name}")


@every_case
def test_codes_and_indices_go_round_on_the_device(make: Callable[[], svq.Quantizer]) -> None:
    torch.manual_seed(0)
    layer = make()
    layer(data(0, layer.dim))
    device = copy.deepcopy(layer).to("cuda").eval()
    z = data(1, layer.dim)
    mask = torch.arange(len(z)) % 3 > 0
    expected = layer.eval()(z, mask=mask)
    got = device(z.to("cuda"), mask=mask.to("cuda"))
    indices = device.encode(z.to("cuda"), mask=mask.to("cuda"))
    assert torch.equal(got.indices.cpu(), expected.indices)
    assert torch.equal(indices, got.indices)
    assert torch.equal(device.decode(indices), got.quantized)
    assert_close(got.quantized, expected.quantized, "evaluation")


@every_case
def test_training_under_autocast_on_the_device(make: Callable[[], svq.Quantizer]) -> None:
    torch.manual_seed(0)
    layer = make().to("cuda")
    encoder = nn.Linear(layer.dim, layer.dim).to("cuda")
    for number in range(3):
        z = data(number, layer.dim).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(encoder(z))
            loss = (out.quantized.float() - z).square().mean() + out.loss
        loss.backward()
        assert out.quantized.dtype == torch.bfloat16
        assert all(value.isfinite().all() for value in layer.state_dict().values())
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.isfinite().all()


@every_case
def test_deterministic_algorithms_repeat_a_run_bit_for_bit(make: Callable[[], svq.Quantizer]) -> None:
    def run() -> dict[str, Tensor]:
        torch.manual_seed(0)
        layer = make().to("cuda")
        for number in range(4):
            step(layer, data(number, layer.dim).to("cuda"))
        return layer.state_dict()

    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["straight", "ema", "vq_ste_pp", "straight_residual", "fsq"])
def test_compiled_steps_agree_with_eager_ones(name: str) -> None:
    def make() -> svq.Quantizer:
        torch.manual_seed(0)
        size = [5, 5, 3] if name == "fsq" else 32
        return getattr(svq.presets, name)(16, size).to("cuda")

    torch._dynamo.reset()
    eager, twin = make(), make()
    compiled = torch.compile(twin, fullgraph=True)
    for number in range(4):
        z = data(number, 16, 256).to("cuda")
        expected, expected_grads = step(eager, z.clone())
        twin.zero_grad()
        inside = z.clone().requires_grad_()
        got = compiled(inside)
        (got.quantized.square().sum() + got.loss).backward()
        assert (got.indices == expected.indices).float().mean() > 0.98
        assert_close(got.loss, expected.loss.cpu(), f"step {number}")
        assert inside.grad is not None
        assert_close(inside.grad.norm(), expected_grads[0].norm().cpu(), f"step {number}")


@pytest.mark.parametrize("size", [1024, 65536])
def test_the_layer_holds_no_matrix_of_vectors_by_codes(size: int) -> None:
    layer = svq.presets.ema(32, size).to("cuda")
    layer.set_codes(torch.randn(size, 32, device="cuda"))
    z = torch.randn(65536, 32, device="cuda", requires_grad=True)
    layer(z)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = layer(z)
    (out.quantized.sum() + out.loss).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1 << 30, f"{peak / 2**20:.0f} MB"
