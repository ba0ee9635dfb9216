"""vqtorch's names. It is on no package index: states are built by hand, from its documented layout."""

from typing import Any

import pytest
import torch
from tests.unit.interop.same import assert_same_codes
from torch import Tensor

import straightvq as svq
from straightvq import interop


def state_of(rows: int = 16, dim: int = 4, groups: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {"vq.codebook.weight": torch.randn(rows, dim)}
    if groups is not None:
        state["vq.affine_transform.scale"] = 0.2 * torch.randn(groups, dim)
        state["vq.affine_transform.bias"] = 0.2 * torch.randn(groups, dim)
    return state


def effective(state: dict[str, Tensor], lr_scale: float) -> Tensor:
    """``(1 + lr_scale s) c + lr_scale b``, for contiguous blocks of codes."""
    table, scale = state["vq.codebook.weight"], state["vq.affine_transform.scale"]
    blocks = table.chunk(len(scale))
    pairs = zip(blocks, scale, state["vq.affine_transform.bias"], strict=True)
    return torch.cat([(1 + lr_scale * s) * block + lr_scale * b for block, s, b in pairs])


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(z, codes).argmin(1)


@pytest.mark.parametrize("groups", [1, 4])
def test_affine_codes_are_those_of_the_map(groups: int) -> None:
    state = state_of(groups=groups)
    found = interop.from_state_dict(state, lr_scale=5.0)
    codes = effective(state, 5.0)
    z = torch.randn(80, 4)
    assert found.layout == "vqtorch"
    assert_same_codes(found.quantizer, z, nearest(z, codes), codes[nearest(z, codes)])
    book = found.quantizer.codebooks()[0]
    assert torch.equal(book.raw, state["vq.codebook.weight"])
    back = interop.to_state_dict(found.quantizer, "vqtorch")
    assert back.keys() == {name.removeprefix("vq.") for name in state}
    for name, value in back.items():
        assert torch.equal(value, state[f"vq.{name}"])


def test_gradients_of_table_and_map_are_the_formulas() -> None:
    state = state_of(groups=1)
    lr_scale, z, weights = 5.0, torch.randn(80, 4), (0.05, 0.95)
    layer = interop.from_state_dict(state, lr_scale=lr_scale).quantizer
    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    codes = effective(leaves, lr_scale)
    code = codes[nearest(z, codes)]
    loss = weights[0] * (z - code.detach()).square().mean() + weights[1] * (code - z).square().mean()
    loss.backward()
    out = layer(z)
    out.loss.backward()
    torch.testing.assert_close(out.loss, loss)
    book = layer.codebooks()[0]
    torch.testing.assert_close(book.raw.grad, leaves["vq.codebook.weight"].grad)
    torch.testing.assert_close(book.parametrization.scale.grad, leaves["vq.affine_transform.scale"].grad)
    torch.testing.assert_close(book.parametrization.shift.grad, leaves["vq.affine_transform.bias"].grad)


def test_map_with_an_axis_for_the_codes_is_the_same_map() -> None:
    state = state_of(groups=4)
    plain = interop.from_state_dict(state, lr_scale=5.0).quantizer.codebooks()[0].codes()
    wide = {name: value[:, None] if "affine" in name else value for name, value in state.items()}
    assert torch.equal(interop.from_state_dict(wide, lr_scale=5.0).quantizer.codebooks()[0].codes(), plain)


def test_scale_of_a_trained_map_must_be_given() -> None:
    with pytest.raises(ValueError, match="`lr_scale` must be given"):
        interop.from_state_dict(state_of(groups=1))
    untrained = state_of(groups=1)
    untrained["vq.affine_transform.scale"].zero_()
    untrained["vq.affine_transform.bias"].zero_()
    interop.from_state_dict(untrained)


def test_normalised_codes_have_normalised_vectors() -> None:
    state = state_of()
    codes = state["vq.codebook.weight"] = torch.nn.functional.normalize(state["vq.codebook.weight"], dim=1)
    z = 5 * torch.randn(80, 4)
    indices = (torch.nn.functional.normalize(z, dim=1) @ codes.T).argmax(1)
    assert_same_codes(interop.from_state_dict(state).quantizer, z, indices, codes[indices])


@pytest.mark.parametrize("shared", [False, True])
def test_groups_have_blocks_of_rows_or_one_table(shared: bool) -> None:
    state = state_of(rows=32)
    settings: dict[str, Any] = {"num_quantizers": 2, "shared": shared}
    found = interop.from_state_dict(state, "vqtorch.group", **settings)
    table = state["vq.codebook.weight"]
    blocks = (table, table) if shared else table.chunk(2)
    z = torch.randn(80, 8)
    indices = [nearest(part, block) for part, block in zip(z.chunk(2, 1), blocks, strict=True)]
    decoded = torch.cat([block[i] for block, i in zip(blocks, indices, strict=True)], 1)
    assert_same_codes(found.quantizer, z, torch.stack(indices, 1), decoded)
    assert torch.equal(interop.to_state_dict(found.quantizer, "vqtorch.group")["codebook.weight"], table)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("groups", [None, 1])
def test_residual_levels_have_blocks_of_rows_or_one_table(shared: bool, groups: int | None) -> None:
    state = state_of(rows=48, groups=groups)
    settings: dict[str, Any] = {"num_quantizers": 3, "shared": shared}
    if groups:
        settings["lr_scale"] = 2.0
    found = interop.from_state_dict(state, "vqtorch.residual", **settings)
    table = effective(state, 2.0) if groups else state["vq.codebook.weight"]
    z = torch.randn(80, 4)
    rest, indices = z, []
    for block in (table,) * 3 if shared else table.chunk(3):
        indices.append(nearest(rest, block))
        rest = rest - block[indices[-1]]
    assert_same_codes(found.quantizer, z, torch.stack(indices, 1), z - rest)
    if groups is None:
        assert torch.equal(interop.to_state_dict(found.quantizer, "vqtorch.residual")["codebook.weight"], table)


def test_running_statistics_and_uneven_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="running statistics"):
        interop.from_state_dict(state_of() | {"vq.affine_transform.running_ze_mean": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match="`num_quantizers` must divide the 16 codes"):
        interop.from_state_dict(state_of(), "vqtorch.group", num_quantizers=3)
    with pytest.raises(ValueError, match="`num_quantizers` must be given"):
        interop.from_state_dict(state_of(), "vqtorch.group")


def test_what_the_layout_cannot_hold_is_refused_by_name() -> None:
    levels = [svq.VectorQuantizer(4, svq.Codebook(8, parametrization=svq.Affine())) for _ in range(2)]
    with pytest.raises(ValueError, match="one affine map for all levels"):
        interop.to_state_dict(svq.ResidualQuantizer(4, levels), "vqtorch.residual")
    with pytest.raises(ValueError, match="no entries for a projection"):
        interop.to_state_dict(svq.presets.vq_vae(8, 16, codebook_dim=4), "vqtorch")
