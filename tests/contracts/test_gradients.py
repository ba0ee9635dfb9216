"""Every cell of the gradient contract against its closed form, in float64."""

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import straightvq as svq
from tests.contracts import estimator_gradients as estimators
from tests.contracts.gradient_page import page
from tests.contracts.gradients import (
    LOSSES,
    MAPS,
    NETWORKS,
    OWN_UPDATES,
    SHORTEST,
    SYNC,
    UPDATES,
    WEIGHTS,
    WRITERS,
    Array,
    Cell,
    Joint,
    Map,
    Rule,
    State,
    cells,
    effective,
    expected,
)

K, D, N = 6, 3, 11
USED = [1, 2, 4]
# Of the raw rows before a normalisation; of those in use one is short and one zero.
LENGTHS = [1.4, 0.6, SHORTEST / 10, 0.8, 0.0, 1.1]
MAKE = {"commitment": svq.CommitmentLoss, "codebook": svq.CodebookLoss, "joint": Joint}
LEGAL = [cell for cell in cells() if cell.refusal is None]
REFUSED = [cell for cell in cells() if cell.refusal is not None]
FROZEN = [which for which in MAPS if which.freezes_raw]
WITHOUT_INVERSE = [which for which in MAPS if not which.has_inverse]


def build(cell: Cell) -> svq.VectorQuantizer:
    losses: list[svq.Loss] = [MAKE[loss](WEIGHTS[loss]) for loss in LOSSES[cell.losses]]
    codebook = svq.Codebook(K, parametrization=cell.map.make(), update=cell.rule.update())
    return svq.VectorQuantizer(D, codebook, estimator=svq.StraightThrough(cell.sync), losses=losses)


def prepared(cell: Cell) -> svq.VectorQuantizer:
    """A layer in float64 with a map that is not the identity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if cell.is_idle else "error")
        layer = build(cell).double()
    raw, part = layer.codebook.raw, layer.codebook.parametrization
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        codes = torch.randn(K, D, dtype=torch.float64)
        if cell.map.has_inverse:
            layer.set_codes(codes)
        else:
            raw.copy_(codes)
        if "UnitNormCodes" in cell.map.name:
            raw.copy_(with_lengths(part, raw))
    return layer


def with_lengths(part: svq.Parametrization, raw: Tensor) -> Tensor:
    """A raw table whose rows have ``LENGTHS`` where the last part normalises them."""
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)[:, None]
    first = part.parts[0] if isinstance(part, svq.Chain) else None
    if isinstance(first, svq.Affine):
        return first.inverse(lengths.clamp(min=SHORTEST / 10) * part(raw))  # through a shift no row is zero to the bit
    rows = raw if first is None else first(raw)
    return lengths * raw / rows.norm(dim=1, keepdim=True)


def state_of(layer: svq.VectorQuantizer, z: Tensor, g: Tensor, indices: Tensor) -> State:
    def array(x: Tensor) -> Array:
        return x.detach().double().numpy().copy()

    part, own = layer.codebook.parametrization, own_parameters(layer)
    scale, shift, matrix = torch.zeros(1, D), torch.zeros(1, D), torch.eye(D)
    mean_z = mean_c = torch.zeros(D)
    if isinstance(part, svq.RunningAffine):
        scale = (part.var_z / part.var_c) ** 0.5
        mean_z, mean_c = part.mean_z[0], part.mean_c[0]
    scale, shift, matrix = own.get("scale", scale), own.get("shift", shift), own.get("map", own.get("weight", matrix))
    floats = (layer.codebook.raw, scale, shift, mean_z, mean_c, matrix)
    return State(array(z), array(g), indices.numpy(), *map(array, floats))


def own_parameters(layer: svq.VectorQuantizer) -> dict[str, Tensor]:
    return {name.rpartition(".")[2]: p for name, p in layer.codebook.parametrization.named_parameters()}


def assert_gradients(layer: svq.VectorQuantizer, cell: Cell, z: Tensor, mask: Tensor | None = None) -> None:
    """One step with a random task gradient gives what the cell says."""
    g = torch.randn(N, D, dtype=torch.float64)
    out = layer(z, mask)
    assert all(p.grad is None for p in layer.parameters()), "a forward must leave no gradient behind"
    state = state_of(layer, z, g, out.indices)
    valid = out.indices >= 0
    assert out.indices[valid].unique().tolist() == USED, "others must be unused for this to say anything"
    rows = effective(cell.map, state)[out.indices[valid].numpy()]
    assert abs(out.quantized[valid].detach().numpy() - rows).max() < 1e-12
    ((g * out.quantized).sum() + out.loss).backward()
    targets = {"encoder": z, "raw": layer.codebook.raw, **own_parameters(layer)}
    wanted = expected(cell, state)
    assert all(target in targets for target, value in wanted.items() if value is not None)
    for target, tensor in targets.items():
        value = wanted[target]
        if value is None and not isinstance(tensor, torch.nn.Parameter):
            assert tensor.grad is None, target
        else:
            assert tensor.grad is not None, f"{target}: a data-parallel wrapper waits for it"
            assert abs(tensor.grad.numpy() - (0 if value is None else value)).max() < 1e-10, target


def near_used(layer: svq.VectorQuantizer) -> Tensor:
    """Vectors (N, D) near three of the codes; the others stay unused."""
    home = torch.tensor(USED)[torch.arange(N) % 3]
    return (layer.codes()[home] + 0.05 * torch.randn(N, D, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("cell", LEGAL, ids=str)
def test_gradient_equals_its_closed_form(cell: Cell, masked: bool) -> None:
    torch.manual_seed(0)
    layer = prepared(cell)
    assert_gradients(layer, cell, near_used(layer), torch.arange(N) % 4 != 1 if masked else None)


def switched_off() -> Iterator[Any]:
    """Cells in full, and what is left of them when sync, losses or both are set to 0."""
    for cell in LEGAL:
        if cell.losses != "all" or not cell.sync:
            continue
        for change in ({"sync": 0.0}, {"losses": "none"}, {"sync": 0.0, "losses": "none"}):
            left = replace(cell, **change)
            yield pytest.param(cell, left, id=f"{cell}-without-{'-'.join(change)}")


@pytest.mark.parametrize(("cell", "left"), list(switched_off()))
def test_what_is_switched_off_later_leaves_the_rest_and_every_parameter_connected(cell: Cell, left: Cell) -> None:
    torch.manual_seed(0)
    layer = prepared(cell)
    assert isinstance(layer.estimator, svq.StraightThrough)
    layer.estimator.sync = left.sync
    for loss in layer._losses():
        loss.coefficient = WEIGHTS[loss.name] if loss.name in LOSSES[left.losses] else 0.0
    assert_gradients(layer, left, near_used(layer))


@pytest.mark.parametrize("cell", REFUSED, ids=str)
def test_contradictory_parts_are_refused_by_name(cell: Cell) -> None:
    assert cell.refusal is not None
    with pytest.raises(ValueError, match=cell.refusal.says) as error:
        build(cell)
    assert cell.refusal.first in str(error.value)
    assert cell.refusal.second in str(error.value)


@pytest.mark.parametrize("cell", [cell for cell in LEGAL if cell.is_idle], ids=str)
def test_codebook_that_nothing_moves_is_warned_of(cell: Cell) -> None:
    with pytest.warns(UserWarning, match=f"will not move: {cell.rule.update.__name__}"):
        build(cell)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("which", WITHOUT_INVERSE, ids=lambda which: which.name)
def test_what_writes_codes_is_refused_without_an_inverse(which: Map, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} would write codes, and {which.part} has no inverse"):
        svq.Codebook(K, parametrization=which.make(), **WRITERS[name]())


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith("Init")])
@pytest.mark.parametrize("which", FROZEN, ids=lambda which: which.name)
def test_what_moves_a_frozen_table_is_refused(which: Map, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} would move the raw table, and {which.part} keeps it.*Use"):
        svq.Codebook(K, parametrization=which.make(), **WRITERS[name]())


@pytest.mark.parametrize("which", WITHOUT_INVERSE, ids=lambda which: which.name)
def test_codes_cannot_be_set_without_an_inverse(which: Map) -> None:
    layer = svq.VectorQuantizer(D, svq.Codebook(K, parametrization=which.make()))
    with pytest.raises(ValueError, match=f"{which.part} has none"):
        layer.set_codes(torch.zeros(K, D))


@pytest.mark.parametrize("rule", UPDATES, ids=str)
def test_updates_say_what_the_contract_says(rule: Rule) -> None:
    update = rule.update
    assert (update.loss, update.task, update.writes) == (rule.loss, rule.task, rule.writes)


def test_normalisation_divides_by_no_less_than_a_hundredth() -> None:
    # Rows along x of lengths 2, 1/100 and 1/1000, u = (5, 3): only the 3 passes, divided by 2, 1/100 and 1/100.
    part = svq.UnitNormCodes()
    raw = torch.tensor([[2.0, 0.0], [0.01, 0.0], [0.001, 0.0]], dtype=torch.float64, requires_grad=True)
    (part(raw) * torch.tensor([5.0, 3.0])).sum().backward()
    wanted = torch.tensor([[0.0, 1.5], [0.0, 300.0], [0.0, 300.0]], dtype=torch.float64)
    torch.testing.assert_close(raw.grad, wanted, rtol=1e-12, atol=1e-9)


def test_synchronised_gradient_never_scales_the_encoders() -> None:
    torch.manual_seed(0)
    found = []
    for sync in (0.0, SYNC):
        layer = svq.VectorQuantizer(D, svq.Codebook(K), estimator=svq.StraightThrough(sync))
        z = torch.ones(2, D, requires_grad=True)
        layer(z).quantized.backward(torch.full((2, D), 3.0))
        found.append(z.grad)
    assert all(torch.equal(grad, torch.full((2, D), 3.0)) for grad in found if grad is not None)


# --- estimators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("row", estimators.ROWS, ids=lambda row: row.name)
def test_estimator_sends_what_its_closed_form_says(row: estimators.Row, masked: bool) -> None:
    torch.manual_seed(0)
    # A loss that may train codes, so that the table is a parameter; its own gradient takes no part.
    parts: dict[str, Any] = {"assigner": row.assigner(), "estimator": row.make(), "losses": [svq.EntropyLoss()]}
    layer = svq.VectorQuantizer(D, svq.Codebook(K), **parts).double().eval()
    z, g = (torch.randn(N, D, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(N) % 4 != 1 if masked else torch.ones(N, dtype=torch.bool)
    x = z.clone().requires_grad_()
    out = layer(x, mask)
    assert torch.equal(out.quantized[mask], layer.codes()[out.indices[mask]])
    out.quantized.backward(g)
    given = (z[mask], layer.codes(), out.indices[mask], g[mask])
    to_z, to_codes = row.form(*(each.numpy() for each in given))
    assert x.grad is not None
    assert abs(x.grad[mask].numpy() - to_z).max() < 1e-10
    assert not x.grad[~mask].any()
    raw = layer.codebook.raw
    if row.make().trains_codes:
        assert raw.grad is not None
        assert abs(raw.grad.numpy() - to_codes).max() < 1e-10
    else:
        assert not to_codes.any()
        assert raw.grad is None
    assert (row.chosen != "–") == to_codes.any()
    assert (row.others != "–") == bool((to_codes != 0).any(1).all())


@pytest.mark.parametrize("row", [row for row in estimators.ROWS if row.chosen != "–"], ids=lambda row: row.name)
def test_estimator_that_trains_codes_is_refused_where_they_take_no_gradient(row: estimators.Row) -> None:
    with pytest.raises(ValueError, match=f"{row.name} sends a gradient to the codes, and EMAUpdate takes none. Use"):
        svq.VectorQuantizer(
            D, svq.Codebook(K, update=svq.EMAUpdate()), assigner=row.assigner(), estimator=row.make(), losses=[]
        )


# --- coverage ---------------------------------------------------------------------------------------------------------


def concrete(base: type[Any]) -> list[type[Any]]:
    found = [getattr(svq, name) for name in svq.__all__]
    return [each for each in found if isinstance(each, type) and issubclass(each, base) and not is_abstract(each)]


def is_abstract(kind: type[Any]) -> bool:
    return bool(getattr(kind, "__abstractmethods__", None))


def test_table_covers_every_parametrization_update_and_writer() -> None:
    names = " ".join(str(cell) for cell in cells())
    for part in [*concrete(svq.Parametrization), *concrete(svq.Update)]:
        name = part.__name__
        assert name in names or name in NETWORKS, f"{name} has no row in the gradient contract"
    writers = [part for part in [*concrete(svq.Init), *concrete(svq.Update)] if getattr(part, "needs_data", True)]
    writers = [part for part in writers if getattr(part, "writes", True)] + concrete(svq.Reset)
    assert {part.__name__ for part in writers} == set(WRITERS)


def test_table_covers_every_estimator_of_a_table_of_codes() -> None:
    wanted = {part.__name__ for part in concrete(svq.Estimator) if not part.needs_signs}
    assert {row.name for row in estimators.ROWS} == wanted


def test_table_covers_every_route() -> None:
    sides = list(itertools.product((False, True), repeat=2))
    assert {(tuple(rule.loss), tuple(rule.task)) for rule in OWN_UPDATES} == set(itertools.product(sides, sides))


def test_committed_page_is_what_the_script_makes() -> None:
    committed = Path(__file__).parents[2] / "docs" / "gradients.md"
    assert committed.read_text(encoding="utf-8") == page(), "run `python docs/gradient_table.py`"
