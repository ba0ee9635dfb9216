import itertools
import math

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

import straightvq as svq

# Up to 4,096 codes, even and odd, level 2 among them.
GRIDS = [[3], [2], [4, 4], [2, 3, 5], [8, 5, 5, 5], [8, 6, 5], [2] * 12, [7, 5, 5, 5, 4]]


def paper(z: np.ndarray, levels: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Appendix A.1 in float64: the bounded vector in steps, the code and the index."""
    count = np.asarray(levels)
    half_l = (count - 1) * (1 - 1e-3) / 2
    offset = np.where(count % 2 == 1, 0.0, 0.5)
    bounded = np.tanh(z + np.tan(offset / half_l)) * half_l - offset
    half_width = count // 2
    basis = np.concatenate([[1], np.cumprod(count[:-1])])
    return bounded, np.round(bounded) / half_width, ((np.round(bounded) + half_width) * basis).sum(-1).astype(int)


def symmetric(z: np.ndarray, levels: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eq. of arXiv 2411.19842, section 3.2: 2 / (L - 1) * floor((L - 1) (tanh z + 1) / 2 + 1/2) - 1."""
    count = np.asarray(levels)
    steps = (count - 1) * (np.tanh(z) + 1) / 2
    basis = np.concatenate([[1], np.cumprod(count[:-1])])
    digit = np.floor(steps + 0.5)
    return steps, 2 / (count - 1) * digit - 1, (digit * basis).sum(-1).astype(int)


def atanh(z: np.ndarray, levels: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The paper's with a bound that reaches a little beyond the grid, shifted so that zeros stay zeros."""
    count = np.asarray(levels)
    half_l = (count - 1) * (1 + 1e-3) / 2
    offset = np.where(count % 2 == 1, 0.0, 0.5)
    bounded = np.tanh(z + np.arctanh(offset / half_l)) * half_l - offset
    half_width = count // 2
    basis = np.concatenate([[1], np.cumprod(count[:-1])])
    return bounded, np.round(bounded) / half_width, ((np.round(bounded) + half_width) * basis).sum(-1).astype(int)


FORMS = {"paper": paper, "symmetric": symmetric, "atanh": atanh}


def off_borders(steps: np.ndarray) -> np.ndarray:
    return (np.abs(steps - np.floor(steps) - 0.5) > 1e-5).all(-1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", GRIDS, ids=str)
def test_every_code_has_the_index_of_the_formula_and_comes_back(levels: list[int], form: str) -> None:
    layer = svq.FiniteScalarQuantizer(len(levels), levels, form=form).eval()
    indices = torch.arange(math.prod(levels))
    codes = layer.decode(indices)
    digits = np.array([list(reversed(d)) for d in itertools.product(*(range(count) for count in reversed(levels)))])
    half = np.asarray(levels) // 2 if form != "symmetric" else (np.asarray(levels) - 1) / 2
    np.testing.assert_allclose(codes.numpy(), (digits - half) / half, atol=1e-6)
    assert torch.equal(layer.assign(codes), indices)
    assert codes.abs().max() <= 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [*GRIDS, [16] * 10, [3] * 30, [998, 999]], ids=str)
def test_values_are_those_of_the_papers_formula(levels: list[int], form: str) -> None:
    layer = svq.FiniteScalarQuantizer(len(levels), levels, form=form)
    z = 2 * torch.randn(5000, len(levels), generator=torch.Generator().manual_seed(0))
    steps, code, index = FORMS[form](z.double().numpy(), levels)
    clear = off_borders(steps)
    out = layer(z)
    assert clear.mean() > 0.9
    np.testing.assert_allclose(out.quantized.numpy()[clear], code[clear], atol=1e-6)
    np.testing.assert_array_equal(out.indices.numpy()[clear], index[clear])
    assert torch.equal(layer.encode(z), out.indices)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradient_is_that_of_the_bound(form: str, scale: float) -> None:
    levels = [8, 5, 2]
    layer = svq.FiniteScalarQuantizer(3, levels, form=form, scale=scale).double()
    z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64)
    (weight * layer(z).quantized).sum().backward()
    x = z.detach() / scale
    if form != "symmetric":
        count = torch.tensor(levels).double()
        reach = (count - 1) * (0.999 if form == "paper" else 1.001) / 2
        ratio = torch.where(count % 2 == 1, 0.0, 0.5) / reach
        shift = ratio.tan() if form == "paper" else ratio.atanh()
        slope = (1 - (x + shift).tanh() ** 2) * reach / (count // 2)
    else:
        slope = 1 - x.tanh() ** 2
    torch.testing.assert_close(z.grad, weight * slope)


def test_three_levels_by_hand() -> None:
    # tanh(0) = 0; the bound is .999, which rounds to 1: the gradient at 0 is (3 - 1) / 2 * .999.
    layer = svq.FiniteScalarQuantizer(1, [3])
    z = torch.tensor([[0.0], [10.0], [-10.0]], requires_grad=True)
    out = layer(z)
    out.quantized.sum().backward()
    assert out.quantized[:, 0].tolist() == [0.0, 1.0, -1.0]
    assert out.indices.tolist() == [1, 2, 0]
    assert z.grad is not None
    assert z.grad[:, 0].tolist() == pytest.approx([0.999, 0.0, 0.0], abs=1e-6)


def test_zeros_are_bounded_to_zero_in_the_form_with_atanh_only() -> None:
    zero = torch.zeros(1, 3)
    bounded = {form: svq.FiniteScalarQuantizer(3, [8, 5, 4], form=form).bound(zero)[0] for form in ("paper", "atanh")}
    torch.testing.assert_close(bounded["atanh"], torch.zeros(3))
    assert bounded["paper"][2].item() == pytest.approx(-2.1424e-4, rel=1e-3)  # of 4 levels


def test_even_grids_by_hand() -> None:
    z = torch.tensor([[-9.0], [-0.7], [0.0], [0.7], [9.0]])
    got = {form: svq.FiniteScalarQuantizer(1, [4], form=form)(z).quantized[:, 0].tolist() for form in FORMS}
    assert got["paper"] == [-1.0, -0.5, 0.0, 0.5, 0.5]
    assert got["symmetric"] == pytest.approx([-1.0, -1 / 3, 1 / 3, 1 / 3, 1.0])


@pytest.mark.parametrize("form", FORMS)
def test_scale_gives_the_same_layer_in_other_units(form: str) -> None:
    z = torch.randn(200, 2)
    one = svq.FiniteScalarQuantizer(2, [4, 5], form=form)(z)
    other = svq.FiniteScalarQuantizer(2, [4, 5], form=form, scale=0.125)(z / 8)
    assert torch.equal(one.indices, other.indices)
    torch.testing.assert_close(other.quantized, one.quantized / 8)


@pytest.mark.parametrize("form", FORMS)
def test_clamp_takes_the_nearest_level_and_bends_nothing(form: str) -> None:
    layer = svq.FiniteScalarQuantizer(2, [4, 5], form=form, clamp=True, scale=0.5)
    codes = layer.decode(torch.arange(20))
    z = (2 * torch.rand(500, 2) - 1).requires_grad_()
    out = layer(z)
    nearest = torch.cdist(z.detach(), codes, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close((out.quantized - z).norm(dim=1), nearest.amin(1))
    out.quantized.sum().backward()
    inside = (z >= codes.amin(0)) & (z <= codes.amax(0))
    assert torch.equal(z.grad, inside.float())


def test_a_residual_stack_with_ever_finer_grids_halves_what_is_left() -> None:
    # A bounded level, then clamped ones, each with the half-width of a step of the one before.
    levels = [svq.FiniteScalarQuantizer(2, [5, 5])]
    levels += [svq.FiniteScalarQuantizer(2, [5, 5], clamp=True, scale=0.25**number) for number in (1, 2)]
    rest = levels[0].bound(torch.randn(300, 2))
    left = []
    for level in levels:
        step = level.eval().step(rest, None)
        rest = (rest if level.clamp else step.z) - step.code
        left.append(rest.abs().max().item())
    assert left[0] <= 0.25 + 1e-6
    assert left[1] <= 0.0625 + 1e-6
    assert left[2] <= 0.015625 + 1e-6


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_takes_the_place_of_rounding_for_its_share_of_the_vectors() -> None:
    torch.manual_seed(0)
    layer = svq.FiniteScalarQuantizer(3, [5, 4, 2], noise=0.3)
    z = torch.randn(20_000, 3)
    bounded = layer.bound(z)
    out = layer(z)
    on_grid = (out.quantized == layer.decode(out.indices)).all(1)
    assert (~on_grid).float().mean().item() == pytest.approx(0.3, abs=0.02)
    drawn = (out.quantized - bounded)[~on_grid] * torch.tensor([2.0, 2.0, 1.0])  # in steps
    assert drawn.abs().max() <= 0.5 + 1e-6
    assert drawn.mean(0).abs().max() < 0.02
    assert (drawn.var(0) - 1 / 12).abs().max() < 0.005  # of a uniform number
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.05
    assert torch.equal(out.indices, layer.encode(z))


def test_noise_passes_the_same_gradient_and_is_over_in_evaluation() -> None:
    layer, plain = svq.FiniteScalarQuantizer(3, [5, 4, 3], noise=1.0), svq.FiniteScalarQuantizer(3, [5, 4, 3])
    z = [torch.linspace(-2, 2, 21).view(7, 3).requires_grad_() for _ in range(2)]
    for each, one in zip((layer, plain), z, strict=True):
        each(one).quantized.square().mean().detach()
        each(one).quantized.sum().backward()
    assert torch.equal(z[0].grad, z[1].grad)
    assert torch.equal(layer.eval()(z[0]).quantized, plain(z[1]).quantized)


def test_noise_depends_on_seed_step_and_row_only() -> None:
    def run(layer: svq.FiniteScalarQuantizer, count: int) -> list[Tensor]:
        return [layer(torch.full((6, 2), 0.1 * number)).quantized for number in range(count)]

    torch.manual_seed(3)
    layer = svq.FiniteScalarQuantizer(2, [5, 5], noise=0.5)
    torch.manual_seed(3)
    twin = svq.FiniteScalarQuantizer(2, [5, 5], noise=0.5)
    torch.manual_seed(99)
    first, second = run(layer, 3), run(twin, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(layer(torch.zeros(6, 2)).quantized, layer(torch.zeros(6, 2)).quantized)
    # Masked vectors draw nothing: the valid ones get what they get alone.
    layer.load_state_dict(twin.state_dict())
    z, mask = torch.randn(9, 2), torch.arange(9) % 3 != 1
    assert torch.equal(layer(z, mask).quantized[mask], twin(z[mask]).quantized)


def test_noise_may_be_annealed_but_not_begun() -> None:
    layer = svq.FiniteScalarQuantizer(2, [5, 5], noise=0.5)
    layer.noise = 0.0
    out = layer(torch.randn(50, 2))
    assert torch.equal(out.quantized, layer.decode(out.indices))
    layer = svq.FiniteScalarQuantizer(2, [5, 5])
    with pytest.raises(ValueError, match="`noise` must stay 0"):
        layer.noise = 0.5
    assert list(layer.state_dict()) == ["levels", "basis", "settings"]


def test_noise_is_refused_under_activation_checkpointing() -> None:
    layer = svq.FiniteScalarQuantizer(2, [5, 5], noise=0.5)
    z = torch.randn(4, 2, requires_grad=True)
    out = torch.utils.checkpoint.checkpoint(lambda x: layer(x).quantized, z, use_reentrant=False)
    with pytest.raises(RuntimeError, match="inside a backward pass"):
        out.sum().backward()


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_state_of_other_levels_is_refused() -> None:
    layer = svq.FiniteScalarQuantizer(2, [5, 4])
    with pytest.raises(ValueError, match=r"a layer with the levels \[5, 4\]. Got \[4, 5\]"):
        layer.load_state_dict(svq.FiniteScalarQuantizer(2, [4, 5]).state_dict())


def test_sixty_two_bits_are_told_apart_and_one_more_is_refused() -> None:
    layer = svq.FiniteScalarQuantizer(31, [4] * 31, form="symmetric").eval()
    indices = torch.tensor([0, 1, (1 << 62) - 1, 1 << 61, 0x2AAAAAAAAAAAAAAA])
    assert torch.equal(layer.assign(layer.decode(indices)), indices)
    with pytest.raises(ValueError, match=r"`levels` must give at most 2\^62 codes"):
        svq.FiniteScalarQuantizer(32, [4] * 31 + [2])


@pytest.mark.parametrize("form", ["paper", "symmetric"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("levels", [1 << 22, (1 << 22) - 1])
def test_four_million_levels_are_told_apart_and_more_are_refused(levels: int, scale: float, form: str) -> None:
    layer = svq.FiniteScalarQuantizer(1, [levels], form=form, scale=scale)
    indices = torch.cat([torch.arange(1000), levels // 2 - torch.arange(1000), levels - 1 - torch.arange(1000)])
    assert torch.equal(layer.assign(layer.decode(indices)), indices)
    with pytest.raises(ValueError, match="at most 4,194,304 in each channel"):
        svq.FiniteScalarQuantizer(2, [(1 << 22) + 1, 3])


def test_the_grid_stays_that_of_the_construction() -> None:
    layer = svq.FiniteScalarQuantizer(2, [5, 4])
    for name, value in {"form": "symmetric", "scale": 2.0, "clamp": True}.items():
        with pytest.raises(ValueError, match=f"`{name}` must stay .* make a new layer"):
            setattr(layer, name, value)
    with pytest.raises(ValueError, match="one of 'paper', 'symmetric'"):
        layer.form = "even"
    assert layer.form == "paper"
    assert layer.scale == 1
    assert layer.clamp is False


def test_levels_that_do_not_fit_the_width_are_refused_with_a_way_out() -> None:
    transform = svq.Projection(4)
    with pytest.raises(ValueError, match=r"each of the 4 channels .* Got 3; use transform=Projection\(3\)"):
        svq.FiniteScalarQuantizer(8, [5, 5, 5], transform=transform)
    svq.FiniteScalarQuantizer(8, [5, 5, 5, 5], transform=transform)  # free again
    with pytest.raises(ValueError, match="Got 3; use a layer with dim=3"):
        svq.FiniteScalarQuantizer(2, [5, 5, 5])


# --- what the tests of vector-quantize-pytorch state ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel_dim", "shape"), [(-1, (1, 1024, 4)), (1, (1, 4, 32, 32)), (1, (1, 16, 1024)), (1, (1, 16, 32, 32))]
)
def test_decoded_indices_are_the_output_for_sequences_and_images(channel_dim: int, shape: tuple[int, ...]) -> None:
    layer = svq.presets.fsq(shape[channel_dim], [8, 5, 5, 5], channel_dim=channel_dim)
    out = layer(torch.randn(shape))
    assert out.quantized.shape == shape
    assert torch.equal(out.quantized, layer.decode(out.indices))
