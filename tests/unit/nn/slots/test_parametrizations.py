import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.reference import naive
from torch import Tensor

import straightvq as svq
from straightvq.nn.batch import Batch
from straightvq.nn.draws import Clock, Draws
from straightvq.nn.ranks import Message
from straightvq.nn.slots.parametrizations import groups


def bound(part: svq.Parametrization, size: int, dim: int, dtype: torch.dtype = torch.float64) -> svq.Parametrization:
    part.bind(size, dim)
    return part.to(dtype)


def stirred(part: svq.Parametrization) -> svq.Parametrization:
    """Away from the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in (*part.named_parameters(), *part.named_buffers()):
            if name.endswith(("scale", "shift")) or "mean" in name:
                value.copy_(0.3 * torch.randn(value.shape))
            elif "var" in name:
                value.copy_(0.5 + torch.rand(value.shape))
    return part


def remember(part: svq.Parametrization, z: Tensor, indices: Tensor) -> None:
    message = Message(False)
    part.remember(z, indices, message)
    message.send(z.new_zeros(0))


EVERY = {
    "direct": lambda: svq.Direct(),
    "affine": lambda: svq.Affine(2.0),
    "affine-groups": lambda: svq.Affine(2.0, groups=4),
    "running": lambda: svq.RunningAffine(),
    "running-groups": lambda: svq.RunningAffine(groups=4),
    "unit": lambda: svq.UnitNormCodes(),
    "chain": lambda: svq.Chain([svq.Affine(), svq.UnitNormCodes()]),
    "chain-of-chains": lambda: svq.Chain([svq.Chain([svq.Direct(), svq.Affine(groups=2)]), svq.RunningAffine()]),
}
every = pytest.mark.parametrize("make", list(EVERY.values()), ids=list(EVERY))


def test_affine_by_hand() -> None:
    # lambda = 2, s = .5, b = .25, c = 1: code = (1 + 1) * 1 + .5 = 2.5; dc = 2, ds = 2 * 1, db = 2 for a unit gradient.
    affine = svq.Affine(lr_scale=2.0)
    affine.bind(1, 1)
    affine.scale.data.fill_(0.5)
    affine.shift.data.fill_(0.25)
    raw = torch.ones(1, 1, requires_grad=True)
    code = affine(raw)
    code.backward(torch.ones(1, 1))
    assert code.item() == 2.5
    assert raw.grad is not None
    assert raw.grad.item() == 2
    assert affine.scale.grad is not None
    assert affine.shift.grad is not None
    assert (affine.scale.grad.item(), affine.shift.grad.item()) == (2, 2)
    assert affine.inverse(torch.full((1, 1), 2.5)).item() == 1


def test_running_affine_by_hand() -> None:
    # z = {1, 3} has mean 2 and biased variance 1; codes {-1, 0, 1} have variance 2/3: scale sqrt(1.5).
    part = bound(svq.RunningAffine(shrink=1.0), 3, 1)
    raw = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    part.observe(Batch(torch.tensor([[1.0], [3.0]], dtype=torch.float64), None, False, Draws(Clock())), raw)
    codes = part(raw)
    assert codes.flatten().tolist() == pytest.approx([2 - 1.5**0.5, 2, 2 + 1.5**0.5])
    assert codes[:, 0].tolist() == pytest.approx([0.7753, 2, 3.2247], abs=1e-4)
    assert codes.mean().item() == pytest.approx(2)
    assert codes.var(unbiased=False).item() == pytest.approx(1)


def test_affine_one_sgd_step_moves_the_scale_by_the_square_of_its_multiplier() -> None:
    affine = svq.Affine(lr_scale=3.0)
    affine.bind(1, 1)
    raw = torch.ones(1, 1)
    before = affine(raw)
    affine(raw).sum().backward()
    torch.optim.SGD(affine.parameters(), 0.01).step()
    moved = (before - affine(raw)).item()
    assert moved == pytest.approx(0.01 * 9 * 2)  # scale and shift by 9 lr each


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_undoes_the_map(make: object, dtype: torch.dtype) -> None:
    part = stirred(bound(make(), 8, 3, dtype))
    torch.manual_seed(0)
    codes = part(torch.randn(8, 3, dtype=dtype)).detach()
    torch.testing.assert_close(part(part.inverse(codes)), codes, rtol=1e-5, atol=1e-5)
    assert part.inverse(codes).dtype == part(codes).dtype == dtype


@every
def test_adopted_codes_are_the_codes(make: object) -> None:
    part = stirred(bound(make(), 8, 3))
    torch.manual_seed(0)
    codes = torch.nn.functional.normalize(torch.randn(8, 3, dtype=torch.float64), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(part(part.adopt(codes)), codes)


@every
def test_map_is_differentiable_in_the_table(make: object) -> None:
    part = stirred(bound(make(), 8, 3))
    torch.manual_seed(0)
    raw = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(part, (raw,))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_affine_groups_are_contiguous_blocks(groups: int) -> None:
    affine = stirred(bound(svq.Affine(1.5, groups), 8, 3))
    assert isinstance(affine, svq.Affine)
    raw = torch.randn(8, 3, dtype=torch.float64)
    for k in range(8):
        g = k // (8 // groups)
        want = (1 + 1.5 * affine.scale[g]) * raw[k] + 1.5 * affine.shift[g]
        torch.testing.assert_close(affine(raw)[k], want)


def test_affine_starts_as_the_identity_and_is_learned() -> None:
    affine = svq.Affine(5.0, 2)
    assert affine.is_learned, "before it is bound as well"
    affine.bind(4, 3)
    raw = torch.randn(4, 3)
    assert torch.equal(affine(raw), raw)
    assert {name for name, _ in affine.named_parameters()} == {"scale", "shift"}


# s at lr_scale 1: an effective scale of exactly 0, close to it on both sides, too large, and a mirrored one.
SCALES = [-1.0, -1 + 1e-6, -1 - 1e-6, 5000.0, -6000.0, -2.0]


@pytest.mark.parametrize("s", SCALES)
@pytest.mark.parametrize("last", [None, svq.UnitNormCodes], ids=["alone", "before a norm"])
def test_what_is_written_through_any_scale_is_read_back(s: float, last: type[svq.Parametrization] | None) -> None:
    torch.manual_seed(0)
    affine = svq.Affine(groups=2)
    book = svq.Codebook(8, parametrization=affine if last is None else svq.Chain([affine, last()]))
    layer = svq.VectorQuantizer(3, book)
    with torch.no_grad():
        affine.scale[0, 1], affine.shift[0] = s, 0.5
    before = layer.codes()
    wanted = torch.nn.functional.normalize(torch.randn(8, 3), dim=1)
    rows = torch.arange(8) % 2 == 0
    book.write(wanted, rows)
    torch.testing.assert_close(layer.codes()[rows], wanted[rows], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.codes()[~rows], before[~rows], rtol=1e-5, atol=1e-6)
    assert (affine.scale[0, 1] == (s if s == -2 else 0)).all(), "a mirrored channel is as good as any"
    assert affine.shift[0].tolist() == [0.5, 0.5 if s == -2 else 0.0, 0.5], "only that channel starts over"


@pytest.mark.parametrize("s", SCALES)
def test_nothing_is_rebased_where_nothing_is_written(s: float) -> None:
    affine = bound(svq.Affine(), 8, 3)
    affine.scale.data.fill_(s)
    raw = torch.randn(8, 3, dtype=torch.float64)
    assert torch.equal(affine.rebase(raw, torch.zeros(8, dtype=torch.bool)), raw)
    assert (affine.scale == s).all()


@every
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("s", [0.3, *SCALES])
def test_set_codes_are_the_codes_whatever_the_map_was(
    make: Callable[[], svq.Parametrization], s: float, scale: float
) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(3, svq.Codebook(8, parametrization=make()))
    part = layer.codebook.parametrization
    stirred(part)
    for name, value in part.named_parameters():
        if name.endswith("scale"):
            value.data[:, 1] = s / getattr(part, "lr_scale", 1.0)
    codes = scale * torch.randn(8, 3)
    layer.set_codes(codes)
    if any(isinstance(module, svq.UnitNormCodes) for module in part.modules()):
        codes = torch.nn.functional.normalize(codes, dim=1, eps=0)
        scale = 1.0
    torch.testing.assert_close(layer.codes(), codes, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shrink", [1.0, 0.99])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_running_affine_equals_the_naive_moments(groups: int, shrink: float, offset: float) -> None:
    torch.manual_seed(0)
    part = bound(svq.RunningAffine(0.3, groups, shrink), 8, 3)
    twin = naive.RunningMoments(0.3, groups, shrink)
    raw = torch.randn(8, 3, dtype=torch.float64)
    for number in range(8):
        z = offset + (1 + number) * torch.randn(0 if number == 3 else 41, 3, dtype=torch.float64)
        indices = torch.randint(-1, 8, (len(z),))
        if number >= 5:
            indices = indices.clamp(max=1)  # only the first group gets vectors
        part.observe(Batch(z, None, False, Draws(Clock())), raw)
        twin.observe(z.numpy(), raw.numpy())
        torch.testing.assert_close(part(raw), torch.from_numpy(twin.codes(raw.numpy())), rtol=1e-9, atol=1e-9)
        if len(z):
            remember(part, z, indices)
            twin.remember(z.numpy(), indices.numpy(), 8)
        raw = raw + 0.1 * torch.randn(8, 3, dtype=torch.float64)


def test_running_affine_gives_the_codes_the_moments_of_the_embeddings() -> None:
    torch.manual_seed(0)
    part = bound(svq.RunningAffine(shrink=1.0), 64, 3)
    raw, z = torch.randn(64, 3, dtype=torch.float64), 7 + 3 * torch.randn(200, 3, dtype=torch.float64)
    part.observe(Batch(z, None, False, Draws(Clock())), raw)
    torch.testing.assert_close(part(raw).mean(0), z.mean(0))
    torch.testing.assert_close(part(raw).var(0, unbiased=False), z.var(0, unbiased=False))


def test_running_affine_groups_really_differ() -> None:
    part = bound(svq.RunningAffine(1.0, groups=2, shrink=1.0), 8, 1)
    raw = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
    z = torch.cat([torch.full((20, 1), -5.0), torch.full((20, 1), 5.0)]).double()
    z += torch.randn(40, 1, dtype=torch.float64)
    part.observe(Batch(z, None, False, Draws(Clock())), raw)
    remember(part, z, torch.tensor([0] * 20 + [7] * 20))
    part.observe(Batch(z, None, False, Draws(Clock())), raw)
    codes = part(raw)
    assert codes[:4].mean().item() == pytest.approx(z[:20].mean().item())
    assert codes[4:].mean().item() == pytest.approx(z[20:].mean().item())


@pytest.mark.parametrize("groups", [1, 2])
def test_running_affine_is_untouched_by_a_batch_without_vectors(groups: int) -> None:
    torch.manual_seed(0)
    part = bound(svq.RunningAffine(0.3, groups), 8, 3)
    raw, z = torch.randn(8, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    part.observe(Batch(z, None, False, Draws(Clock())), raw)
    remember(part, z, torch.arange(9) % 8)
    before = {k: v.clone() for k, v in part.state_dict().items()}
    for empty, valid in ((z[:0], None), (z, torch.zeros(9, dtype=torch.bool))):
        part.observe(Batch(empty, valid, False, Draws(Clock())), raw)
        remember(part, empty, torch.full((len(empty),), -1))
    for name, value in before.items():
        assert torch.equal(value, part.state_dict()[name]), name


@every
def test_a_rebased_table_has_the_same_codes(make: object) -> None:
    part = stirred(bound(make(), 8, 3))
    if "var_c" in dict(part.named_buffers()):
        part.get_buffer("var_c")[0, 1] = 1e-14  # scale 7e5
        part.get_buffer("var_c")[0, 2] = 1e14
    raw = torch.randn(8, 3, dtype=torch.float64)
    codes = part(raw)
    torch.testing.assert_close(part(part.rebase(raw, torch.ones(8, dtype=torch.bool))), codes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_only_groups_with_a_steep_channel_are_rebased_and_only_for_a_write(groups: int) -> None:
    part = stirred(bound(svq.RunningAffine(groups=groups), 8, 3))
    part.var_c[-1, 1] = 1e8
    raw = torch.randn(8, 3, dtype=torch.float64)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    assert torch.equal(part.rebase(raw, torch.zeros(8, dtype=torch.bool)), raw)
    assert all(torch.equal(before[name], value) for name, value in part.state_dict().items())
    rows = torch.arange(8) == 0
    based = part.rebase(raw, rows)
    own = 8 - 8 // groups  # the first code of the last group
    assert torch.equal(based[:own], raw[:own])
    torch.testing.assert_close(based[own:], part(based)[own:], rtol=1e-12, atol=1e-12)  # the identity
    assert torch.equal(part.var_c[-1], part.var_z[-1])
    assert torch.equal(part.rebase(based, rows), based)


@pytest.mark.parametrize("factor", [2.0**-27, 2.0**27])
@pytest.mark.parametrize("groups", [1, 4])
def test_data_and_codes_on_another_scale_give_the_same_map(groups: int, factor: float) -> None:
    """To the bit, because the factor is a power of two; also beside a constant channel."""
    found = []
    for scale in (1.0, factor):
        torch.manual_seed(0)
        parts = {"update": svq.AlternatedUpdate(fraction=0.3), "reset": svq.DeadCodeReset(3)}
        layer = svq.VectorQuantizer(4, svq.Codebook(16, parametrization=svq.RunningAffine(groups=groups), **parts))
        layer.set_codes(scale * torch.randn(16, 4))
        for step in range(12):
            layer(scale * (torch.randn(40, 4) * torch.tensor([1.0, 1.0, 0.1, 0.0]) + torch.tensor([0.0, step, 0, 2])))
        found.append(layer.codes())
    assert torch.equal(factor * found[0], found[1])


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_codes_of_unit_variance_get_the_moments_of_data_on_any_scale(scale: float, offset: float) -> None:
    torch.manual_seed(0)
    part = bound(svq.RunningAffine(shrink=1.0), 64, 3, torch.float32)
    raw, z = torch.randn(64, 3), scale * (offset + torch.randn(200, 3))
    part.observe(Batch(z, None, False, Draws(Clock())), raw)
    torch.testing.assert_close(part(raw).mean(0), z.mean(0), rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(part(raw).std(0, correction=0), z.std(0, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("empty", ["z", "raw"])
def test_no_spread_at_all_leaves_the_scale_alone(empty: str) -> None:
    part = bound(svq.RunningAffine(), 8, 3, torch.float32)
    raw, z = torch.randn(8, 3), torch.randn(20, 3)
    part.observe(Batch(0 * z if empty == "z" else z, None, False, Draws(Clock())), 0 * raw if empty == "raw" else raw)
    raw.requires_grad_()
    part(raw).sum().backward()
    assert raw.grad is not None
    assert torch.equal(raw.grad, torch.ones(8, 3))


def test_groups_remember_the_moments_of_many_vectors_far_from_the_origin() -> None:
    """Added up one after the other in float32, these means are off by more than the spread."""
    torch.manual_seed(0)
    part = bound(svq.RunningAffine(groups=2), 8, 2, torch.float32)
    z, indices = 1000 + torch.randn(1_000_000, 2), torch.arange(1_000_000) % 8
    part.observe(Batch(z, None, False, Draws(Clock())), torch.randn(8, 2))
    remember(part, z, indices)
    for group in range(2):
        own = z[indices // 4 == group].double()
        torch.testing.assert_close(part.last_mean[group].double(), own.mean(0), rtol=0, atol=1e-4)
        torch.testing.assert_close(part.last_var[group].double(), own.var(0, correction=0), rtol=1e-3, atol=0)


def test_a_channel_without_variance_can_be_written_again_and_again() -> None:
    """An embedding's channel may be constant, such as that of a dead ReLU, when codes are written beside it."""
    torch.manual_seed(0)
    codebook = svq.Codebook(32, parametrization=svq.RunningAffine(), init=svq.SampleInit())
    layer = svq.VectorQuantizer(3, codebook)
    for _ in range(60):
        layer(torch.randn(256, 3) * torch.tensor([1.0, 1.0, 0.0]))
        wanted = layer.codes()
        wanted[5] = torch.tensor([0.5, -2.0, 3.0])
        codebook.write(wanted, torch.arange(32) == 5)
        torch.testing.assert_close(layer.codes(), wanted, rtol=1e-4, atol=1e-4)
    assert codebook.raw.abs().max() < 1e5


CHAINS = {
    "affine before": lambda: svq.Chain([svq.Affine(), svq.RunningAffine()]),
    "running before": lambda: svq.Chain([svq.RunningAffine(), svq.RunningAffine(groups=2)]),
    "nested": lambda: svq.Chain([svq.Direct(), svq.Chain([svq.Affine(groups=2), svq.RunningAffine()])]),
}


@pytest.mark.parametrize("make", CHAINS.values(), ids=list(CHAINS))
def test_a_rebased_part_of_a_chain_leaves_the_codes(make: Callable[[], svq.Chain]) -> None:
    part = stirred(bound(make(), 8, 3))
    *_, steep = (m for m in part.modules() if isinstance(m, svq.RunningAffine))
    steep.var_c[0, 1] = 1e-10
    raw = torch.randn(8, 3, dtype=torch.float64)
    codes, rows = part(raw), torch.ones(8, dtype=torch.bool)
    based = part.rebase(raw, rows)
    assert steep.var_c[0, 1] == steep.var_z[0, 1]
    torch.testing.assert_close(part(based), codes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.rebase(based, rows), based, rtol=0, atol=0)


@pytest.mark.parametrize("make", CHAINS.values(), ids=list(CHAINS))
def test_training_through_a_chain_survives_a_channel_of_zeros(make: Callable[[], svq.Chain]) -> None:
    torch.manual_seed(0)
    slots = {"init": svq.KMeansInit(), "update": svq.AlternatedUpdate(), "reset": svq.DeadCodeReset(1)}
    layer = svq.VectorQuantizer(4, svq.Codebook(32, parametrization=make(), **slots))
    for _ in range(100):
        out = layer(torch.randn(64, 4) * torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert out.loss.isfinite()
    assert layer.codebook.raw.abs().max() < 1e5


def test_what_is_written_through_a_chain_of_degenerate_maps_is_read_back() -> None:
    """The first one is rebased first: what the second one moves goes back through its inverse."""
    torch.manual_seed(0)
    affine, running = svq.Affine(), svq.RunningAffine()
    book = svq.Codebook(8, parametrization=svq.Chain([affine, running]))
    layer = svq.VectorQuantizer(3, book)
    affine.scale.data[0, 1], affine.shift.data[0, 1] = -1.0, 1e-5
    running.var_c[0, 1] = 1e-10
    before, wanted, rows = layer.codes(), torch.randn(8, 3), torch.arange(8) < 4
    book.write(wanted, rows)
    torch.testing.assert_close(layer.codes(), torch.where(rows[:, None], wanted, before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [svq.UnitNormCodes(), svq.Affine()],
        lambda: [svq.Affine(), svq.UnitNormCodes(), svq.RunningAffine()],
        lambda: [svq.Chain([svq.Direct(), svq.UnitNormCodes()]), svq.Affine()],
    ],
    ids=["first", "middle", "nested"],
)
def test_chain_refuses_a_part_behind_a_normalisation(parts: Callable[[], list[svq.Parametrization]]) -> None:
    """Codes that are written could not be kept: their inverse need not be of unit length."""
    made = parts()
    names = ", ".join(type(part).__name__ for part in made)
    with pytest.raises(ValueError, match=rf"`Chain`: `parts` must have (UnitNormCodes|Chain) last.*Got \[{names}\]"):
        svq.Chain(made)


def test_running_statistics_of_a_layer_begin_with_the_first_batch() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(4, svq.Codebook(8, parametrization=svq.RunningAffine(shrink=1.0)))
    z = torch.randn(100, 4) + 1000
    layer(z)
    part = layer.codebook.parametrization
    torch.testing.assert_close(part.get_buffer("mean_z")[0], z.mean(0))
    torch.testing.assert_close(part.get_buffer("var_z")[0], z.var(0, correction=0), rtol=1e-3, atol=0)
    torch.testing.assert_close(layer.codes().mean(0), z.mean(0))


@pytest.mark.parametrize("spread", [0.2, 5.0])
def test_codes_with_another_spread_than_the_embeddings_do_not_drive_the_table_away(spread: float) -> None:
    """Writes that hold the codes' variance off the embeddings' move the scale on with every step."""
    torch.manual_seed(0)
    codebook = svq.Codebook(16, parametrization=svq.RunningAffine(), init=svq.SampleInit())
    layer = svq.VectorQuantizer(4, codebook)
    everything, codes = torch.ones(16, dtype=torch.bool), spread * torch.randn(16, 4)
    for _ in range(2000):
        layer(torch.randn(64, 4))
        codebook.write(codes, everything)
    assert 1e-4 < codebook.raw.abs().max() < 1e5
    torch.testing.assert_close(layer.codes(), codes, rtol=1e-4, atol=1e-4)


def test_rebasing_changes_the_numbers_and_not_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same codes in float64, whether the table is rebased at every write or never."""
    trained = []
    for largest in (1.0, math.inf):
        monkeypatch.setattr(groups, "LARGEST_SCALE", largest)
        torch.manual_seed(0)
        parts = {"update": svq.AlternatedUpdate(fraction=0.3), "reset": svq.DeadCodeReset(3)}
        codebook = svq.Codebook(32, parametrization=svq.RunningAffine(groups=2), init=svq.SampleInit(), **parts)
        layer = svq.VectorQuantizer(4, codebook).double()
        for step in range(40):
            layer((1 + 0.1 * step) * torch.randn(64, 4, dtype=torch.float64) + 0.2 * step)
        trained.append((layer.codes(), codebook.raw.clone()))
    (codes, raw), (same, other) = trained
    torch.testing.assert_close(codes, same, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(raw, other, rtol=0.1)


def test_running_affine_ignores_masked_vectors() -> None:
    torch.manual_seed(0)
    first, second = (bound(svq.RunningAffine(), 4, 3) for _ in range(2))
    z, raw = torch.randn(9, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    valid = torch.arange(9) % 2 == 0
    first.observe(Batch(z, valid, False, Draws(Clock())), raw)
    second.observe(Batch(z[valid], None, False, Draws(Clock())), raw)
    torch.testing.assert_close(first(raw), second(raw))


def test_running_statistics_take_no_gradient_and_are_saved() -> None:
    part = bound(svq.RunningAffine(groups=2), 8, 3)
    assert not part.is_learned
    assert {"mean_z", "var_z", "mean_c", "var_c", "is_started"} <= set(part.state_dict())
    raw = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    part(raw).sum().backward()
    assert raw.grad is not None


def test_running_statistics_move_in_training_only() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(3, svq.Codebook(8, parametrization=svq.RunningAffine()))
    layer(torch.randn(50, 3) + 4)
    layer.eval()
    before = layer.codes()
    for _ in range(20):
        layer(torch.randn(50, 3) - 30)
    assert torch.equal(before, layer.codes())


@pytest.mark.parametrize("make", [EVERY["unit"], EVERY["chain"]], ids=["unit", "chain"])
def test_unit_norm_holds_for_the_effective_codes(make: object) -> None:
    part = stirred(bound(make(), 64, 5, torch.float32))
    norms = part(100 * torch.randn(64, 5)).norm(dim=1)
    assert (norms - 1).abs().max() < 1e-6


@pytest.mark.parametrize("make", [EVERY["unit"], EVERY["chain"]], ids=["unit", "chain"])
@pytest.mark.parametrize("dim", [2, 3, 64])
def test_codes_without_a_direction_get_one_each(make: Callable[[], svq.Parametrization], dim: int) -> None:
    book = svq.Codebook(500, parametrization=make())
    layer = svq.VectorQuantizer(dim, book)
    layer.set_codes(torch.zeros(500, dim))
    torch.testing.assert_close(layer.codes().norm(dim=1), torch.ones(500))
    assert len(layer.codes().unique(dim=0)) == 500
    first = layer.codes()
    book.write(torch.zeros(500, dim), torch.ones(500, dtype=torch.bool))
    assert torch.equal(layer.codes(), first), "the same at every time"
    z = layer.codes().roll(1, 0)
    layer(z).loss.backward()
    assert book.raw.grad is not None
    assert book.raw.grad.abs().max() < 2 / 500


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-13, 1e30, 3e38])
def test_codes_of_any_length_keep_their_direction(size: float) -> None:
    """Squares of such numbers are zero or infinite in float32."""
    part = bound(svq.UnitNormCodes(), 2, 2, torch.float32)
    codes = torch.tensor([[size, 0.0], [0.0, -size]])
    assert torch.equal(part.inverse(codes), torch.tensor([[1.0, 0.0], [0.0, -1.0]]))


@pytest.mark.parametrize("length", [0.0, 1e-15, 1e-9, 1e-3])
def test_raw_row_that_an_optimizer_drove_to_zero_gets_a_bounded_gradient(length: float) -> None:
    part = bound(svq.UnitNormCodes(), 3, 2, torch.float32)
    raw = (
        torch.tensor([[0.6, 0.8], [-0.8, 0.6], [6.0, -8.0]]) * torch.tensor([[length], [length], [1.0]])
    ).requires_grad_()
    codes = part(raw)
    if length:
        torch.testing.assert_close(codes, torch.tensor([[0.6, 0.8], [-0.8, 0.6], [0.6, -0.8]]))
    assert len(codes.detach().unique(dim=0)) == 3
    (codes * torch.tensor([1.0, 0.0])).sum().backward()
    assert raw.grad is not None
    # (I - c c^T) u / max(length, 0.01) with u = (1, 0)
    torch.testing.assert_close(raw.grad[2], torch.tensor([0.64, 0.48]) / 10)
    if length:
        torch.testing.assert_close(raw.grad[0], torch.tensor([0.64, -0.48]) / 0.01)
    assert 0 < raw.grad[:2].norm(dim=1).min() <= raw.grad[:2].norm(dim=1).max() <= 100


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD], ids=lambda kind: kind.__name__)
def test_zeros_among_the_vectors_do_not_stop_the_shift(optimizer: type[torch.optim.Optimizer]) -> None:
    """It has a code of its own, as k-means gives it one, whose gradient would be a billion times the others'."""
    torch.manual_seed(0)
    layer = svq.presets.vq_ste_pp(8, 64, l2=True)
    codes = torch.randn(64, 8) + 1
    codes[0] = 0
    layer.set_codes(codes)
    shift = layer.codebook.parametrization.get_parameter("parts.0.shift")
    steps = optimizer(layer.parameters(), 1e-2)
    for _ in range(30):
        z = codes[torch.arange(256) % 64] + 0.1 * torch.randn(256, 8)
        z[::64] = 0
        out = layer(z)
        steps.zero_grad()
        ((out.quantized - 1).square().mean() + out.loss).backward()
        assert shift.grad is not None
        assert shift.grad.abs().max() < 10
        steps.step()
    assert shift.abs().max() > 0.005
    assert len(out.indices.unique()) > 40


def test_chain_maps_in_order_and_inverts_in_reverse() -> None:
    affine = svq.Affine()
    chain = bound(svq.Chain([affine, svq.UnitNormCodes()]), 2, 2)
    affine.shift.data.copy_(torch.tensor([[1.0, 0.0]]))
    raw = torch.tensor([[2.0, 4.0], [-1.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(chain(raw), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64))
    want: Tensor = torch.tensor([[0.6 - 1, 0.8], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(chain.inverse(chain(raw)), want)


def test_chain_of_maps_is_learned_if_one_of_them_is() -> None:
    assert svq.Chain([svq.Direct(), svq.Affine()]).is_learned
    assert not svq.Chain([svq.Direct(), svq.UnitNormCodes()]).is_learned


def test_naive_effective_moments_are_those_of_numpy() -> None:
    twin = naive.RunningMoments(0.1, 1, 1.0)
    z, raw = np.random.default_rng(0).normal(3, 2, (50, 2)), np.random.default_rng(1).normal(0, 1, (8, 2))
    twin.observe(z, raw)
    assert twin.codes(raw).mean(0) == pytest.approx(z.mean(0))
