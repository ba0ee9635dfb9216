"""The contracts of quantizers without a codebook: ranks, graphs, exports, waiting, memory, values at the edge."""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq
from tests.contracts.cases import DIM, FREE
from tests.contracts.test_host import no_waiting
from tests.ranks import pretend_ranks, run_on_ranks
from tests.versions import exported, one_graph

Make = Callable[..., svq.Quantizer]
every_name = pytest.mark.parametrize("name", list(FREE))
ROWS, STEPS = 96, 4
# Shares of four ranks, or of two pairs of them; nobody has any in the last step.
SHARES = ((24, 24, 24, 24), (60, 0, 31, 5), (0, 0, 96, 0), (0, 0, 0, 0))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(name: str, seed: int = 0) -> svq.Quantizer:
    torch.manual_seed(seed)
    return FREE[name](channel_dim=-1)


def data(seed: int, n: int = 80) -> Tensor:
    return 2 * torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


# --- ranks ------------------------------------------------------------------------------------------------------------


def batch(step: int) -> tuple[Tensor, Tensor]:
    return data(step, ROWS).double(), torch.rand(ROWS, generator=torch.Generator().manual_seed(step)) > 0.2


def rows_of(step: int, rank: int, ranks: int) -> slice:
    each, shares = 4 // ranks, SHARES[step % 4]
    return slice(sum(shares[: each * rank]), sum(shares[: each * (rank + 1)]))


def forwards(layer: svq.Quantizer, rows: Callable[[int], slice]) -> list[dict[str, Any]]:
    layer, steps = layer.double(), []
    for step in range(STEPS):
        z, mask = batch(step)
        z = z[rows(step)].requires_grad_()
        out = layer(z, mask[rows(step)])
        entropy = out.terms.get("entropy", torch.zeros(()).double())
        (gradient,) = torch.autograd.grad(entropy + 0 * out.loss, z)
        steps.append(
            {"out": out.quantized.detach(), "indices": out.indices, "entropy": entropy.detach(), "z": gradient}
        )
    return steps


def on_rank(rank: int, join: Callable[[], None], ranks: int) -> dict[str, Any]:
    layers = {name: made(name, seed=rank) for name in FREE}  # clocks differ on purpose
    for name, layer in layers.items():  # what trains is a wrapper's to make equal
        layer.load_state_dict({k: v for k, v in made(name).state_dict().items() if "clock" not in k}, strict=False)
    join()
    return {name: forwards(layer, lambda step: rows_of(step, rank, ranks)) for name, layer in layers.items()}


def on_two_ranks(rank: int, join: Callable[[], None]) -> dict[str, Any]:
    return on_rank(rank, join, 2)


def on_four_ranks(rank: int, join: Callable[[], None]) -> dict[str, Any]:
    return on_rank(rank, join, 4)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_on_ranks({2: on_two_ranks, 4: on_four_ranks}[request.param], request.param)


@every_name
def test_uneven_and_empty_ranks_do_what_one_process_does(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = forwards(made(name), lambda step: slice(sum(SHARES[step % 4])))
    for step, single in enumerate(alone):
        parts = [rank[name][step] for rank in ranks]
        assert torch.equal(torch.cat([part["indices"] for part in parts]), single["indices"])
        torch.testing.assert_close(torch.cat([part["out"] for part in parts]), single["out"])
        for part in parts:
            torch.testing.assert_close(part["entropy"], single["entropy"])
        # A wrapper averages the ranks' gradients.
        together = torch.cat([part["z"] for part in parts]) / len(parts)
        torch.testing.assert_close(together, single["z"])


def test_without_entropy_and_noise_ranks_tell_each_other_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pretend_ranks(monkeypatch)
    for name in ("fsq", "best_rq", "finite+symmetric+clamp"):
        made(name)(data(0))
    assert sent == []
    made("lfq")(data(0))
    assert sent == ["all_reduce"]
    made("lfq").eval()(data(0))
    assert sent == ["all_reduce"]


# --- graphs -----------------------------------------------------------------------------------------------------------


@one_graph
@every_name
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_compiled_training_equals_eager_in_one_graph(name: str, masked: bool) -> None:
    eager = made(name)
    twin = copy.deepcopy(eager)
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    mask = torch.arange(80) % 4 != 0 if masked else None
    for number in range(3):
        z = [data(number).requires_grad_() for _ in range(2)]
        outs = eager(z[0], mask), compiled(z[1], mask)
        for out in outs:
            (out.quantized.square().mean() + out.loss).backward()
        assert torch.equal(outs[0].indices, outs[1].indices)
        torch.testing.assert_close(outs[0].quantized, outs[1].quantized)
        torch.testing.assert_close(outs[0].loss, outs[1].loss)
        torch.testing.assert_close(z[0].grad, z[1].grad)
    for mine, other in zip(eager.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other)
    assert graphs == 1


class Encode(nn.Module):
    def __init__(self, layer: svq.Quantizer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor) -> Tensor:
        return self.layer.encode(z)


class Decode(Encode):
    def forward(self, indices: Tensor) -> Tensor:
        return self.layer.decode(indices)


@exported
@every_name
def test_saved_encode_and_decode_do_what_the_layer_does(name: str) -> None:
    layer = made(name).eval()
    indices = layer.encode(data(0))
    rows = torch.export.Dim("rows", min=2, max=4096)
    for module, given, other in (
        (Encode(layer), data(0), data(1, 33)),
        (Decode(layer), indices, layer.encode(data(1, 33))),
    ):
        file = io.BytesIO()
        torch.export.save(torch.export.export(module, (given,), dynamic_shapes=({0: rows},)), file)
        file.seek(0)
        program = torch.export.load(file).module()
        for x in (given, other):
            torch.testing.assert_close(program(x), module(x))


# --- waiting, memory, the meta device ---------------------------------------------------------------------------------


@every_name
@pytest.mark.parametrize("count", [1, 2])
def test_nothing_waits_for_the_device(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # the meta device has none
    layer = made(name).to("meta")
    if count > 1:
        pretend_ranks(monkeypatch, count)
    for mask in (None, torch.ones(80, dtype=torch.bool, device="meta")):
        z = torch.randn(80, DIM, device="meta", requires_grad=True)
        with no_waiting():
            out = layer.train()(z, mask)
            (out.quantized.square().mean() + out.loss).backward()
            layer.eval()
            layer.decode(layer.encode(z))


@every_name
def test_layer_built_on_the_meta_device_starts_like_any_other(name: str) -> None:
    with torch.device("meta"):
        layer = FREE[name](channel_dim=-1)
    layer = layer.to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(77)  # memory holds anything
    torch.manual_seed(0)
    for module in layer.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    usual = made(name)
    for key, value in layer.state_dict().items():
        if "transform" not in key and "seed" not in key:
            assert torch.equal(value, usual.state_dict()[key]), key
    usual.load_state_dict(layer.state_dict())
    assert torch.equal(layer(data(1)).quantized, usual(data(1)).quantized)


# --- values at the edge -----------------------------------------------------------------------------------------------


@every_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_largest_values_that_are_taken_overflow_nowhere(name: str, dtype: torch.dtype) -> None:
    layer = made(name)
    size = 2e4 if dtype == torch.float16 else 2.5e14
    for scale in (1.0, size, 1e-30, 0.0):
        z = (data(1) / 8).clamp(-1, 1).mul(scale).to(dtype).requires_grad_()
        out = layer(z)
        assert out.loss.isfinite()
        assert out.quantized.isfinite().all()
        (out.loss + out.quantized.float().sum()).backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()


@every_name
def test_decode_refuses_what_is_no_index(name: str) -> None:
    layer = made(name).eval()
    shape = (1, layer.num_quantizers) if layer.is_composite else (1,)
    layer.decode(torch.full(shape, layer.codebook_size - 1))
    for wrong in (layer.codebook_size, -2):
        with pytest.raises(ValueError, match=r"`indices` must be in \[0, "):
            layer.decode(torch.full(shape, wrong))


def test_all_masked_rows_decode_to_zeros() -> None:
    for name in FREE:
        layer = made(name)
        shape = (3, layer.num_quantizers) if layer.is_composite else (3,)
        assert not layer.decode(torch.full(shape, -1)).any()
