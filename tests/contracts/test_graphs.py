"""Law 9: training and evaluation compile without a graph break and agree with eager. Exports: test_export.py."""

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import straightvq as svq
from tests.contracts.cases import CASES, DIM, PRESETS, SIZE, Factory, every
from tests.versions import one_graph

every_case = every("make", CASES)
every_preset = every("make", PRESETS)
every_other_case = every("make", {name: make for name, make in CASES.items() if name not in PRESETS})


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
    accumulate: bool = False,
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
        for optimizer in optimizers:
            if not accumulate:
                optimizer.zero_grad()
        outs = eager(z[0], mask), compiled(z[1], mask)
        for out, optimizer in zip(outs, optimizers, strict=True):
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


@one_graph
@every_preset
def test_compiled_training_equals_eager_in_two_graphs(make: Factory) -> None:
    assert train_both(make) == 2, "one with the init and one without"


@one_graph
@pytest.mark.slow
@every_other_case
def test_compiled_training_of_other_compositions_equals_eager_in_two_graphs(make: Factory) -> None:
    assert train_both(make) == 2


@one_graph
@every_other_case
def test_compiled_training_after_the_init_equals_eager_in_one_graph(make: Factory) -> None:
    assert train_both(make, is_started=True) == 1


@one_graph
@pytest.mark.slow
@every_preset
def test_compiled_training_with_a_mask_equals_eager(make: Factory) -> None:
    assert train_both(make, torch.arange(80) % 4 != 0) == 2


@one_graph
def test_gradients_that_are_there_already_cost_one_graph_more() -> None:
    assert train_both(CASES["gradient+sample+reset"], is_started=True, accumulate=True) == 2


@one_graph
def test_batches_of_other_sizes_cost_one_graph_more() -> None:
    assert train_both(CASES["ema"], sizes=(80, 64, 96, 33, 80), is_started=True) == 2


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@one_graph
@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize("name", ["ema", "straight", "vq_ste_pp"])
def test_training_compiled_to_machine_code_equals_eager(name: str) -> None:
    assert train_both(CASES[name], backend="inductor") == 2


@one_graph
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


@one_graph
@pytest.mark.slow
def test_small_batches_initialise_over_several_compiled_steps() -> None:
    assert train_both(CASES["straight"], sizes=6 * (20,)) == 2


# --- built without memory -------------------------------------------------------------------------------------------


def without_memory(make: Factory) -> svq.VectorQuantizer:
    with torch.device("meta"):
        layer = make(channel_dim=-1)
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    return layer


@every_case
def test_layer_built_on_the_meta_device_starts_like_any_other(make: Factory) -> None:
    layer = without_memory(make).to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(77)  # memory holds anything
    torch.manual_seed(0)
    for module in layer.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    usual = made(make)
    assert list(layer.state_dict()) == list(usual.state_dict())
    part = usual.codebook.parametrization
    networks = set() if part.has_inverse else {f"parametrization.{name}" for name, _ in part.named_parameters()}
    for name, value in usual.codebook.state_dict().items():
        if name not in ("raw", "seed", *networks):  # random
            assert torch.equal(value, layer.codebook.state_dict()[name]), name
    assert layer.codes().std() > 0.01
    usual.load_state_dict(layer.state_dict())
    for number in range(6):
        assert torch.equal(layer(data(number)).quantized, usual(data(number)).quantized)
    assert_close_states(layer, usual)


def test_codebook_starts_over_with_the_numbers_of_its_making() -> None:
    codebook = made(CASES["ema+running+groups"]).codebook
    fresh = copy.deepcopy(codebook.state_dict())
    layer = made(CASES["ema+running+groups"])
    layer(data(0))
    layer.codebook.freeze()
    torch.manual_seed(0)
    layer.codebook.reset_parameters()
    assert not layer.codebook.is_still
    assert all(torch.equal(value, fresh[name]) for name, value in layer.codebook.state_dict().items())


@every_case
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_layer_built_on_the_meta_device_loads_a_state_and_goes_on(make: Factory, assign: bool) -> None:
    usual = made(make)
    usual(data(0))
    layer = without_memory(make)
    if not assign:
        layer.to_empty(device="cpu")
    layer.load_state_dict(copy.deepcopy(usual.state_dict()), assign=assign)
    for number in range(1, 5):
        assert torch.equal(layer(data(number)).quantized, usual(data(number)).quantized)
    assert_close_states(layer, usual)


# --- images ---------------------------------------------------------------------------------------------------------


@one_graph
def test_compiled_forward_takes_images() -> None:
    torch.manual_seed(0)
    layer = svq.presets.straight(DIM, SIZE, channel_dim=1)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    z = data(0, 2 * 5 * 7).view(2, 5, 7, DIM).movedim(-1, 1)
    assert torch.equal(compiled(z).indices, layer(z).indices)
