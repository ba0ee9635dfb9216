"""The linear map of the codes, by hand and against its formula."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import straightvq as svq

F64 = torch.float64


def bound(part: svq.Parametrization, size: int, dim: int) -> svq.Parametrization:
    part.bind(size, dim)
    return part.double()


def layer_of(
    part: svq.Parametrization, dim: int = 6, size: int = 16, sync: float = 0.0, **slots: Any
) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    codebook = svq.Codebook(size, parametrization=part, **slots)
    return svq.VectorQuantizer(dim, codebook, estimator=svq.StraightThrough(sync))


def trained(layer: svq.VectorQuantizer, steps: int = 5) -> svq.VectorQuantizer:
    optimizer = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=0.1)
    for number in range(steps):
        z = torch.randn(64, layer.dim, generator=torch.Generator().manual_seed(number), dtype=layer.codes().dtype)
        out = layer(z)
        optimizer.zero_grad()
        (out.quantized.square().mean() + out.loss).backward()
        optimizer.step()
    return layer


def test_values_gradients_and_inverse_by_hand() -> None:
    part = bound(svq.Linear(freeze_basis=False, bias=True), 2, 2)
    part.weight.data = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=F64)
    part.shift.data = torch.tensor([10.0, 20.0], dtype=F64)
    raw = torch.tensor([[1.0, 1.0], [2.0, 0.0]], dtype=F64, requires_grad=True)
    # W (1, 1) = (3, 3) and W (2, 0) = (2, 0), plus (10, 20).
    codes = part(raw)
    assert codes.tolist() == [[13.0, 23.0], [12.0, 20.0]]
    assert part.inverse(codes).tolist() == raw.tolist()
    # u = (1, 0) at the first code and (0, 2) at the second.
    (codes * torch.tensor([[1.0, 0.0], [0.0, 2.0]])).sum().backward()
    assert raw.grad.tolist() == [[1.0, 2.0], [0.0, 6.0]]  # u W
    assert part.weight.grad.tolist() == [[1.0, 1.0], [4.0, 0.0]]  # u^T raw
    assert part.shift.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_codes_start_as_the_init_has_them(freeze: bool, bias: bool) -> None:
    layer, plain = (layer_of(part, init=svq.UniformInit()) for part in (svq.Linear(freeze, bias), svq.Direct()))
    assert torch.equal(layer.codes(), plain.codes())
    layer, plain = (layer_of(part, init=svq.KMeansInit()) for part in (svq.Linear(freeze, bias), svq.Direct()))
    for each in (layer, plain):
        each.clock.seed.fill_(3)
        each(torch.randn(80, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(layer.codes(), plain.codes())


@pytest.mark.parametrize("sync", [0.0, 0.3])
def test_a_frozen_basis_stays_and_every_code_moves_with_the_map(sync: float) -> None:
    layer = layer_of(svq.Linear(), sync=sync)
    basis, codes = layer.codebook.raw.clone(), layer.codes()
    trained(layer, 1)
    assert layer.codebook.raw.grad is None
    assert layer.codebook.parametrization.weight.grad is not None
    trained(layer, 3)
    assert torch.equal(layer.codebook.raw, basis)
    assert not any(parameter is layer.codebook.raw for parameter in layer.parameters())
    assert (layer.codes() != codes).any(1).all()
    z = torch.randn(50, 6)
    out = layer.eval()(z)
    assert torch.equal(layer.decode(out.indices), out.quantized), "decoding goes through the map"


def test_a_trained_basis_moves() -> None:
    layer = layer_of(svq.Linear(freeze_basis=False))
    basis = layer.codebook.raw.clone()
    trained(layer)
    assert not torch.equal(layer.codebook.raw, basis)


def test_an_init_from_data_writes_a_frozen_basis_until_it_has_ended() -> None:
    layer = layer_of(svq.Linear(), init=svq.SampleInit())
    z = torch.randn(24, 6)
    layer(z[:10])
    layer.codebook.parametrization.weight.data += 0.1 * torch.randn(6, 6)
    layer(z[10:])
    assert layer.codebook.is_ready
    assert (torch.cdist(layer.codes(), z).min(1).values[10:] < 1e-4).all(), "the last rows took vectors of their own"
    basis = layer.codebook.raw.clone()
    trained(layer)
    assert torch.equal(layer.codebook.raw, basis)


def test_written_codes_land_where_they_should_whatever_the_map() -> None:
    layer = layer_of(
        svq.Linear(freeze_basis=False, bias=True), init=svq.KMeansInit(), update=svq.AlternatedUpdate(fraction=1.0)
    )
    trained(layer)
    part = layer.codebook.parametrization
    assert (part.weight - torch.eye(6)).abs().max() > 0.01
    z = torch.randn(64, 6)
    indices = svq.functional.nearest_code(z, layer.codes())
    layer(z)
    counts, sums = svq.functional.code_sums(z, indices, 16)
    torch.testing.assert_close(layer.codes()[counts > 0], (sums / counts[:, None])[counts > 0], rtol=1e-4, atol=1e-4)


WEIGHTS = {
    "singular": torch.tensor([[1.0, 2.0], [2.0, 4.0]]),
    "zero": torch.zeros(2, 2),
    "large": 2000 * torch.eye(2),
    "small": torch.eye(2) / 2000,
    "ill-conditioned": torch.tensor([[100.0, 0.0], [0.0, 0.05]]),
    "not a number": torch.full((2, 2), float("nan")),
}


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_before_a_write_a_map_that_cannot_be_inverted_starts_over_with_the_same_codes(name: str) -> None:
    layer = layer_of(svq.Linear(freeze_basis=False, bias=True), 2, 4).double()
    part, book = layer.codebook.parametrization, layer.codebook
    part.weight.data.copy_(WEIGHTS[name])
    part.shift.data.fill_(0.5)
    before, new = layer.codes(), torch.randn(4, 2, dtype=F64)
    book.write(new, torch.tensor([False] * 4))
    assert torch.equal(layer.codes(), before) or name == "not a number", "nothing is written, nothing starts over"
    assert not torch.equal(part.weight, torch.eye(2, dtype=F64))
    book.write(new, torch.tensor([True, False, False, True]))
    assert torch.equal(part.weight, torch.eye(2, dtype=F64))
    assert torch.equal(part.shift, torch.zeros(2, dtype=F64))
    torch.testing.assert_close(layer.codes()[[0, 3]], new[[0, 3]], rtol=1e-12, atol=1e-12)
    if name != "not a number":
        assert torch.equal(layer.codes()[1:3], before[1:3])


def test_a_map_that_can_be_inverted_stays() -> None:
    layer = layer_of(svq.Linear(freeze_basis=False, bias=True), 2, 4).double()
    part = layer.codebook.parametrization
    weight = torch.tensor([[2.0, 0.5], [-3.0, 0.3]], dtype=F64)
    part.weight.data.copy_(weight)
    new = torch.randn(4, 2, dtype=F64)
    layer.set_codes(new)
    assert torch.equal(part.weight, weight)
    torch.testing.assert_close(layer.codes(), new, rtol=1e-12, atol=1e-12)
    part.shift.data.fill_(1e6)
    layer.set_codes(new)
    assert torch.equal(part.shift, torch.zeros(2, dtype=F64)), "it would take the codes' digits away"


def test_every_written_row_is_new_to_an_optimizer_when_the_map_starts_over() -> None:
    layer = layer_of(svq.Linear(freeze_basis=False), 2, 4)
    layer.codebook.parametrization.weight.data.copy_(WEIGHTS["small"])
    layer.codebook.rewritten.zero_()
    layer.codebook.write(torch.randn(4, 2), torch.tensor([True, False, False, False]))
    assert layer.codebook.rewritten.all()


def test_in_a_chain_codes_are_normalised_after_the_map() -> None:
    layer = layer_of(svq.Chain([svq.Linear(), svq.UnitNormCodes()]), init=svq.KMeansInit())
    trained(layer)
    part = layer.codebook.parametrization
    assert part.freezes_raw
    assert isinstance(part.parts[0], svq.Linear)
    wanted = layer.codebook.raw @ part.parts[0].weight.detach().T
    torch.testing.assert_close(layer.codes(), wanted / wanted.norm(dim=1, keepdim=True))


def test_map_is_in_the_codebooks_group_without_decay() -> None:
    layer = layer_of(svq.Linear(bias=True))
    net = torch.nn.Sequential(torch.nn.Linear(6, 6), layer)
    network, codebook = svq.parameter_groups(net, 1e-3, 0.1, codebook_lr=1e-4)
    part = layer.codebook.parametrization
    assert {id(p) for p in codebook["params"]} == {id(part.weight), id(part.shift)}
    assert (codebook["lr"], codebook["weight_decay"]) == (1e-4, 0.0)
    assert len(network["params"]) == 2


def test_a_bound_layer_keeps_its_kind_of_map() -> None:
    part = layer_of(svq.Linear()).codebook.parametrization
    for name in ("freeze_basis", "bias"):
        with pytest.raises(ValueError, match=f"`{name}` must stay"):
            setattr(part, name, not getattr(part, name))


@pytest.mark.parametrize("part", [svq.Linear, lambda: svq.Linear(False, True), lambda: svq.Bridge(3, 8, 1, 2)])
def test_a_folded_codebook_is_a_plain_one_with_the_same_codes(
    part: Callable[[], svq.Parametrization],
) -> None:
    layer = trained(layer_of(part()))
    folded = copy.deepcopy(layer)
    folded.codebook.fold()
    z: Tensor = torch.randn(200, 6)
    assert torch.equal(folded.codes(), layer.codes())
    assert torch.equal(folded.encode(z), layer.encode(z))
    assert torch.equal(folded.decode(folded.encode(z)), layer.decode(layer.encode(z)))
    assert isinstance(folded.codebook.parametrization, svq.Direct)
    plain = svq.VectorQuantizer(6, svq.Codebook(16))
    plain.load_state_dict(folded.state_dict())
    assert torch.equal(plain.codes(), layer.codes())
    before = folded.codes()
    trained(folded, 1)
    assert not torch.equal(folded.codes(), before), "it trains as a plain codebook does"


def test_a_frozen_codebook_stays_frozen_when_folded() -> None:
    layer = layer_of(svq.Linear())
    layer.codebook.freeze()
    layer.codebook.fold()
    codes = layer.codes()
    assert not layer.codebook.raw.requires_grad
    layer(torch.randn(50, 6))
    assert torch.equal(layer.codes(), codes)


def test_a_codebook_without_vectors_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="no vectors before a quantizer owns it"):
        svq.Codebook(16, parametrization=svq.Linear()).fold()
