"""Networks that change the codes, against twins written out by hand in float64."""

import math

import pytest
import torch
from torch import Tensor

import straightvq as svq

F64 = torch.float64
MAKE = {
    "mlp": lambda: svq.MLP(5),
    "mlp-deep": lambda: svq.MLP(4, depth=3),
    "bridge": lambda: svq.Bridge(patch=2, width=4, depth=2, heads=2),
    "bridge-rest": lambda: svq.Bridge(patch=3, width=6, depth=1, heads=3),
    "bridge-one-token": lambda: svq.Bridge(patch=16, width=4, depth=1, heads=1),
}
every = pytest.mark.parametrize("name", list(MAKE))
SIZE, DIM = 8, 3


def bound(name: str, spread: float = 0.5) -> svq.Parametrization:
    """In float64, with every parameter moved away from its start."""
    torch.manual_seed(0)
    part = MAKE[name]()
    part.bind(SIZE, DIM)
    for parameter in part.parameters():
        parameter.data += spread * torch.randn(parameter.shape)
    return part.double()


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return unit * p[name + ".weight"] + p[name + ".bias"]


def dense(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return torch.einsum("ni,oi->no", x, p[name + ".weight"]) + p[name + ".bias"]


def mlp_twin(part: svq.MLP, raw: Tensor, p: dict[str, Tensor]) -> Tensor:
    x = raw
    for number in range(part.depth):
        x = gelu(dense(x, p, f"network.{2 * number}"))
    return raw + dense(x, p, f"network.{2 * part.depth}")


def bridge_twin(part: svq.Bridge, raw: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Patch by patch, head by head."""
    count = -(-len(raw) // part.patch)
    rows = torch.cat([raw, raw.new_zeros(count * part.patch - len(raw), DIM)])
    x = dense(torch.stack([rows[i * part.patch : (i + 1) * part.patch].flatten() for i in range(count)]), p, "compress")
    each = part.width // part.heads
    for number in range(part.depth):
        block = f"blocks.{number}."
        mixed = dense(norm(x, p, block + "norm_attention"), p, block + "to_heads")
        heads = []
        for head in range(part.heads):
            query, key, value = (
                mixed[:, i * part.width + head * each : i * part.width + (head + 1) * each] for i in range(3)
            )
            weights = torch.exp(query @ key.T / math.sqrt(each))
            heads.append((weights / weights.sum(1, keepdim=True)) @ value)
        x = x + dense(torch.cat(heads, 1), p, block + "from_heads")
        hidden = gelu(dense(norm(x, p, block + "norm_network"), p, block + "network.0"))
        x = x + dense(hidden, p, block + "network.2")
    change = dense(norm(x, p, "recover.0"), p, "recover.1")
    return raw + change.reshape(-1, DIM)[: len(raw)]


@every
def test_values_and_gradients_are_those_of_the_twin(name: str) -> None:
    part = bound(name)
    twin = mlp_twin if isinstance(part, svq.MLP) else bridge_twin
    raw, u = torch.randn(SIZE, DIM, dtype=F64, requires_grad=True), torch.randn(SIZE, DIM, dtype=F64)
    names, own = zip(*part.named_parameters(), strict=True)
    codes, wanted = part(raw), twin(part, raw, dict(part.named_parameters()))
    torch.testing.assert_close(codes, wanted, rtol=1e-11, atol=1e-11)
    assert (codes - raw).abs().max() > 0.1
    found = torch.autograd.grad(codes, [raw, *own], u)
    expected = torch.autograd.grad(wanted, [raw, *own], u)
    for label, gradient, other in zip(("raw", *names), found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9, msg=lambda m, n=label: f"{n}: {m}")


@pytest.mark.parametrize("in_chain", [False, True])
@every
def test_codes_start_as_the_init_has_them(name: str, in_chain: bool) -> None:
    part = svq.Chain([MAKE[name](), svq.Direct()]) if in_chain else MAKE[name]()
    layer = svq.VectorQuantizer(DIM, svq.Codebook(SIZE, parametrization=part, init=svq.UniformInit()))
    assert torch.equal(layer.codes(), layer.codebook.raw)
    assert 0.1 / SIZE < layer.codes().abs().max() <= 1 / SIZE


def test_a_bridge_lets_every_code_depend_on_every_other() -> None:
    part = bound("bridge")
    raw = torch.randn(SIZE, DIM, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(part, raw)
    assert (jacobian.abs().amax((1, 3)) > 1e-8).all()


def test_an_mlp_maps_each_code_by_itself() -> None:
    part = bound("mlp")
    raw = torch.randn(SIZE, DIM, dtype=F64)
    reached = torch.autograd.functional.jacobian(part, raw).abs().amax((1, 3)) > 0
    assert torch.equal(reached, torch.eye(SIZE, dtype=torch.bool))


@every
def test_all_codes_move_though_few_are_used(name: str) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(DIM, svq.Codebook(SIZE, parametrization=MAKE[name]()))
    before, z = layer.codes(), layer.codes()[:1] + 0.1 * torch.randn(20, DIM)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    for _ in range(2):
        out = layer(z)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert len(out.indices.unique()) < SIZE
    assert (layer.codes() != before).any(1).all()


REFUSED = {
    "SampleInit": {"init": svq.SampleInit},
    "DeadCodeReset": {"reset": svq.DeadCodeReset},
    "AnchoredReset": {"reset": svq.AnchoredReset},
    "EMAUpdate": {"update": svq.EMAUpdate},
    "AlternatedUpdate": {"update": svq.AlternatedUpdate},
}


@pytest.mark.parametrize("writer", list(REFUSED))
@pytest.mark.parametrize("name", ["mlp", "bridge"])
def test_what_would_write_codes_is_refused_by_name(name: str, writer: str) -> None:
    part = MAKE[name]()
    slots = {slot: make() for slot, make in REFUSED[writer].items()}
    with pytest.raises(ValueError, match=rf"{writer} would write codes, and {type(part).__name__} has no inverse.*Use"):
        svq.Codebook(SIZE, parametrization=part, **slots)


@pytest.mark.parametrize("sync", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
def test_a_forward_maps_the_table_once(training: bool, sync: float) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(
        DIM, svq.Codebook(SIZE, parametrization=MAKE["bridge"]()), estimator=svq.StraightThrough(sync)
    ).train(training)
    layer(torch.randn(30, DIM))
    calls: list[int] = []
    layer.codebook.parametrization.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.randn(30, DIM))
    assert len(calls) == 1
    calls.clear()
    indices = layer.encode(torch.randn(30, DIM))
    assert len(calls) == 1
    layer.decode(indices)
    assert len(calls) == 2
    layer.codebook.fold()
    calls.clear()
    layer.decode(layer.encode(torch.randn(30, DIM)))
    assert not calls, "a folded codebook has no map"
