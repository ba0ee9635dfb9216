"""Law 9: training and evaluation compile without a graph break and agree with eager; encode and decode export."""

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import straightvq as svq
from tests.contracts.cases import CASES, DIM, PRESETS, SIZE, Factory

every_case = pytest.mark.parametrize("make", list(CASES.values()), ids=list(CASES))
every_preset = pytest.mark.parametrize("make", list(PRESETS.values()), ids=list(PRESETS))
every_other_case = pytest.mark.parametrize(
    "make", [v for k, v in CASES.items() if k not in PRESETS], ids=[k for k in CASES if k not in PRESETS]
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def data(seed: int, n: int = 80) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def made(make: Factory) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    return make(channel_dim=-1)


def assert_close_states(first: nn.Module, second: nn.Module) -> None:
    mine, other = first.state_dict(), second.state_dict()
    assert list(mine) == list(other)
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def train_both(
    make: Factory,
    mask: Tensor | None = None,
    *,
    backend: str = "aot_eager",
    sizes: tuple[int, ...] = 7 * (80,),
    is_started: bool = False,
) -> int:
    """Steps of an eager layer and of its compiled twin, which must agree; returns the number of graphs."""
    eager = made(make)
    if is_started:
        eager(data(99))
    twin = copy.deepcopy(eager)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(twin, fullgraph=True, backend=counter)
    optimizers = [torch.optim.SGD([*layer.parameters(), nn.Parameter(torch.zeros(1))], 0.05) for layer in (eager, twin)]
    for number, size in enumerate(sizes):
        z = [data(number, size).requires_grad_() for _ in range(2)]
        outs = eager(z[0], mask), compiled(z[1], mask)
        for out, optimizer in zip(outs, optimizers, strict=True):
            optimizer.zero_grad()
            (out.quantized.square().mean() + out.loss).backward()
            optimizer.step()
        assert torch.equal(outs[0].indices, outs[1].indices), number
        torch.testing.assert_close(outs[0].quantized, outs[1].quantized, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(outs[0].loss, outs[1].loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(z[0].grad, z[1].grad, rtol=1e-5, atol=1e-5)
        for mine, other in zip(eager.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)
        assert_close_states(eager, twin)
    return counter.frame_count


@every_preset
def test_compiled_training_equals_eager_in_two_graphs(make: Factory) -> None:
    assert train_both(make) == 2, "one with the init and one without"


@pytest.mark.slow
@every_other_case
def test_compiled_training_of_other_compositions_equals_eager_in_two_graphs(make: Factory) -> None:
    assert train_both(make) == 2


@every_other_case
def test_compiled_training_after_the_init_equals_eager_in_one_graph(make: Factory) -> None:
    assert train_both(make, is_started=True) == 1


@pytest.mark.slow
@every_preset
def test_compiled_training_with_a_mask_equals_eager(make: Factory) -> None:
    assert train_both(make, torch.arange(80) % 4 != 0) == 2


def test_batches_of_other_sizes_cost_one_graph_more() -> None:
    assert train_both(CASES["ema"], sizes=(80, 64, 96, 33, 80), is_started=True) == 2


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize("name", ["ema", "straight", "vq_ste_pp"])
def test_training_compiled_to_machine_code_equals_eager(name: str) -> None:
    assert train_both(CASES[name], backend="inductor") == 2


@every_case
def test_compiled_evaluation_equals_eager(make: Factory) -> None:
    layer = made(make)
    layer(data(0))
    layer.eval()
    before = copy.deepcopy(layer)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def evaluate(z: Tensor) -> tuple[svq.QuantizerOutput, Tensor, Tensor]:
        indices = layer.encode(z)
        return layer(z), indices, layer.decode(indices)

    with torch.no_grad():
        (out, indices, decoded), plain = evaluate(data(1)), before(data(1))
    assert torch.equal(out.indices, plain.indices)
    assert torch.equal(indices, plain.indices)
    torch.testing.assert_close(out.quantized, plain.quantized, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(decoded, plain.quantized, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.loss, plain.loss)
    assert_close_states(layer, before)


@pytest.mark.slow
def test_small_batches_initialise_over_several_compiled_steps() -> None:
    assert train_both(CASES["straight"], sizes=6 * (20,)) == 2


class Encode(nn.Module):
    def __init__(self, layer: svq.VectorQuantizer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor) -> Tensor:
        return self.layer.encode(z)


class Decode(Encode):
    def forward(self, z: Tensor) -> Tensor:
        return self.layer.decode(z)


@every_preset
def test_encode_and_decode_export(make: Factory) -> None:
    layer = made(make)
    layer(data(0))
    layer.eval()
    batch = torch.export.Dim("batch", min=2, max=4096)
    encode = torch.export.export(Encode(layer), (data(1),), dynamic_shapes=({0: batch},)).module()
    decode = torch.export.export(Decode(layer), (torch.arange(80) % SIZE,), dynamic_shapes=({0: batch},)).module()
    z = data(2, 33)
    indices = layer.encode(z)
    assert torch.equal(encode(z), indices)
    torch.testing.assert_close(decode(indices), layer.decode(indices), rtol=1e-6, atol=1e-6)


def test_compiled_forward_takes_images() -> None:
    torch.manual_seed(0)
    layer = svq.presets.straight(DIM, SIZE, channel_dim=1)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    z = data(0, 2 * 5 * 7).view(2, 5, 7, DIM).movedim(-1, 1)
    assert torch.equal(compiled(z).indices, layer(z).indices)
