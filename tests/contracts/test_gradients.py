"""Every cell of the gradient contract against its closed form, in float64."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import straightvq as svq
from tests.contracts.gradients import (
    SYNC,
    UPDATES,
    WEIGHT_CODEBOOK,
    WEIGHT_COMMITMENT,
    Array,
    Cell,
    State,
    cells,
    effective,
    expected,
    page,
)

K, D, N = 6, 3, 11
LEGAL = [cell for cell in cells() if cell.refusal is None]
REFUSED = [cell for cell in cells() if cell.refusal is not None]


def build(cell: Cell) -> svq.VectorQuantizer:
    losses: list[svq.Loss] = []
    if cell.losses in ("commitment", "both"):
        losses.append(svq.CommitmentLoss(WEIGHT_COMMITMENT))
    if cell.losses in ("codebook", "both"):
        losses.append(svq.CodebookLoss(WEIGHT_CODEBOOK))
    codebook = svq.Codebook(K, parametrization=cell.map.make(), update=UPDATES[cell.update]())
    return svq.VectorQuantizer(D, codebook, estimator=svq.StraightThrough(cell.sync), losses=losses)


def affine_of(layer: svq.VectorQuantizer) -> svq.Affine | None:
    return next((m for m in layer.modules() if isinstance(m, svq.Affine)), None)


def prepared(cell: Cell) -> svq.VectorQuantizer:
    """A layer in float64 with a map that is not the identity."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if cell.is_idle else "error")
        layer = build(cell).double()
    affine = affine_of(layer)
    with torch.no_grad():
        if affine is not None:
            affine.scale.copy_(0.2 * torch.randn(affine.scale.shape))
            affine.shift.copy_(0.3 * torch.randn(affine.shift.shape))
        layer.set_codes(torch.randn(K, D, dtype=torch.float64))
        if cell.map.part in ("UnitNormCodes", "Chain"):
            # Raw rows of different lengths: the factor 1 / ||c|| must show.
            layer.codebook.raw.mul_(torch.rand(K, 1, dtype=torch.float64) + 0.5)
    return layer


def state_of(layer: svq.VectorQuantizer, z: Tensor, g: Tensor, indices: Tensor) -> State:
    def array(x: Tensor) -> Array:
        return x.detach().double().numpy().copy()

    raw, part, affine = layer.codebook.raw, layer.codebook.parametrization, affine_of(layer)
    scale, shift = torch.zeros(1, D), torch.zeros(1, D)
    mean_z = mean_c = torch.zeros(D)
    if isinstance(part, svq.RunningAffine):
        scale = (part.var_z / part.var_c) ** 0.5
        mean_z, mean_c = part.mean_z[0], part.mean_c[0]
    elif affine is not None:
        scale, shift = affine.scale, affine.shift
    return State(
        array(z), array(g), indices.numpy(), array(raw), array(scale), array(shift), array(mean_z), array(mean_c)
    )


def gradients(layer: svq.VectorQuantizer, z: Tensor) -> dict[str, Tensor | None]:
    affine = affine_of(layer)
    return {
        "encoder": z.grad,
        "raw": layer.codebook.raw.grad,
        "scale": None if affine is None else affine.scale.grad,
        "shift": None if affine is None else affine.shift.grad,
    }


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("cell", LEGAL, ids=str)
def test_gradient_equals_its_closed_form(cell: Cell, masked: bool) -> None:
    torch.manual_seed(0)
    layer = prepared(cell)
    home = torch.tensor([1, 2, 4])[torch.arange(N) % 3]  # the other codes stay unused
    z = (layer.codes()[home] + 0.1 * torch.randn(N, D, dtype=torch.float64)).requires_grad_()
    g = torch.randn(N, D, dtype=torch.float64)
    mask = torch.arange(N) % 4 != 1 if masked else None
    out = layer(z, mask)
    assert all(p.grad is None for p in layer.parameters()), "a forward must leave no gradient behind"
    state = state_of(layer, z, g, out.indices)
    used = out.indices[out.indices >= 0].unique()
    assert 1 < len(used) < K, "some codes must be unused for this test to say anything"
    assert (out.indices == used[0]).sum() > 1
    assert abs(out.quantized[out.indices >= 0].detach().numpy() - effective(cell.map, state)[
        out.indices[out.indices >= 0].numpy()]).max() < 1e-12  # fmt: skip
    ((g * out.quantized).sum() + out.loss).backward()
    got, want = gradients(layer, z), expected(cell, state)
    for target, value in want.items():
        gradient = got[target]
        if value is None:
            assert gradient is None, target
        else:
            assert gradient is not None, target
            assert abs(gradient.numpy() - value).max() < 1e-10, target


@pytest.mark.parametrize("cell", REFUSED, ids=str)
def test_contradictory_parts_are_refused_by_name(cell: Cell) -> None:
    assert cell.refusal is not None
    with pytest.raises(ValueError, match=cell.refusal[0]) as error:
        build(cell)
    assert cell.refusal[1] in str(error.value)


@pytest.mark.parametrize("cell", [cell for cell in LEGAL if cell.is_idle], ids=str)
def test_codebook_that_nothing_moves_is_warned_of(cell: Cell) -> None:
    with pytest.warns(UserWarning, match="will not move: GradientUpdate"):
        build(cell)


def test_synchronised_gradient_never_scales_the_encoders() -> None:
    torch.manual_seed(0)
    found = []
    for sync in (0.0, SYNC):
        layer = svq.VectorQuantizer(D, svq.Codebook(K), estimator=svq.StraightThrough(sync))
        z = torch.ones(2, D, requires_grad=True)
        layer(z).quantized.backward(torch.full((2, D), 3.0))
        found.append(z.grad)
    assert all(torch.equal(grad, torch.full((2, D), 3.0)) for grad in found if grad is not None)


def test_table_covers_every_parametrization_and_update() -> None:
    names = " ".join(str(cell) for cell in cells())
    for name in svq.__all__:
        item = getattr(svq, name)
        concrete = isinstance(item, type) and not getattr(item, "__abstractmethods__", None)
        if concrete and issubclass(item, (svq.Parametrization, svq.Update)):
            assert name in names, f"{name} has no row in the gradient contract"


def test_committed_page_is_what_the_script_makes() -> None:
    committed = Path(__file__).parents[2] / "docs" / "gradients.md"
    assert committed.read_text(encoding="utf-8") == page(), "run `python docs/gradient_table.py`"
