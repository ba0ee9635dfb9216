import numpy as np
import pytest
import torch
from tests.launches import Launches
from tests.reference import naive
from torch import Tensor

import straightvq as svq
from straightvq.nn.batch import Batch
from straightvq.nn.draws import Clock, Draws

PARTS = {
    "direct": lambda: svq.Direct(),
    "affine": lambda: svq.Affine(2.0),
    "affine-groups": lambda: svq.Affine(5.0, groups=8),
    "running": lambda: svq.RunningAffine(),
    "running-groups": lambda: svq.RunningAffine(groups=8),
    "unit": lambda: svq.UnitNormCodes(),
    "chain": lambda: svq.Chain([svq.Affine(), svq.UnitNormCodes()]),
}
K, D = 16, 4


def layer_with(
    reset: svq.Reset,
    codes: Tensor | None = None,
    parametrization: svq.Parametrization | None = None,
    update: svq.Update | None = None,
    transform: svq.Transform | None = None,
) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    size, dim = (K, D) if codes is None else codes.shape
    book = svq.Codebook(size, parametrization=parametrization, update=update, reset=reset)
    layer = svq.VectorQuantizer(dim, book, transform=transform)
    if codes is not None:
        layer.set_codes(codes)
    return layer


def used_and_dead() -> Tensor:
    """Codes 0 and 1 lie in the data, the others far away."""
    codes = 1000 + torch.arange(K * D).view(K, D) * 1.0
    codes[:2] = torch.tensor([[0.0] * D, [1.0] * D])
    return codes


def batch(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("patience", [1, 3, 20])
def test_code_is_reset_after_patience_steps_without_use(patience: int) -> None:
    layer = layer_with(svq.DeadCodeReset(patience, noise=0.0), used_and_dead())
    for number in range(patience):
        layer(batch(32, number))
        assert torch.equal(layer.codes(), used_and_dead()), number
    z = batch(32, 99)
    layer(z)
    assert torch.equal(layer.codes()[:2], used_and_dead()[:2]), "used codes stay"
    assert all((z == row).all(1).any() for row in layer.codes()[2:])


def test_evaluation_counts_nothing() -> None:
    layer = layer_with(svq.DeadCodeReset(2), used_and_dead()).eval()
    for number in range(10):
        layer(batch(32, number))
    assert (layer.codebook.reset.idle == 0).all()


@pytest.mark.parametrize("part", list(PARTS.values()), ids=list(PARTS))
@pytest.mark.parametrize("update", [svq.GradientUpdate, svq.AlternatedUpdate, svq.EMAUpdate], ids=lambda u: u.__name__)
def test_effective_row_lands_on_a_vector_of_the_batch(part: object, update: type[svq.Update]) -> None:
    parametrization = part()
    if parametrization.is_learned and update is svq.EMAUpdate:
        pytest.skip("refused: see the gradient contract")
    norm = isinstance(parametrization, (svq.UnitNormCodes, svq.Chain))
    layer = layer_with(
        svq.DeadCodeReset(1, noise=0.0), None, parametrization, update(), svq.UnitNorm() if norm else None
    )
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.endswith(("scale", "shift")):
                value.copy_(0.1 * torch.randn(value.shape))
    codes = torch.randn(K, D) + 5
    codes[0] = -1.0
    layer.set_codes(codes)
    reset = layer.codebook.reset
    assert isinstance(reset, svq.DeadCodeReset)
    layer(-torch.rand(K, D))
    dead = reset.idle >= 1
    assert dead.sum() == K - 1
    z = -torch.rand(64, D)
    # The step of the update's own moves a rewritten code further: look at what the reset wrote.
    layer.codebook.update.step = lambda *_: None
    layer(z)
    x = torch.nn.functional.normalize(z, dim=1) if norm else z
    distance = torch.cdist(layer.codes()[dead].double(), x.double())
    assert distance.min(1).values.max() < 1e-5
    assert len(distance.argmin(1).unique()) == K - 1, "no vector may be used twice"


def test_noise_is_relative_to_the_norm_of_the_vector() -> None:
    torch.manual_seed(0)
    codes = torch.full((2000, 8), 1e6)
    codes[0] = 0.0
    layer = layer_with(svq.DeadCodeReset(1, noise=0.01, relative_to="norm"), codes)
    z = torch.full((4000, 8), 3.0)
    layer(z), layer(z)
    moved = layer.codes()[1:] - 3.0
    assert moved.std().item() == pytest.approx(0.01 * 3 * 8**0.5, rel=0.05)
    assert abs(moved.mean().item()) < 0.01


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_noise_is_relative_to_the_spread_of_each_channel(masked: bool) -> None:
    # Vectors at +-1 and +-100 about 1000: deviations 1 and 100, noise 0.01 and 1.
    codes = torch.full((4000, 2), 1e6)
    codes[0] = 0.0
    layer = layer_with(svq.DeadCodeReset(1, noise=0.01), codes)
    sign = 1.0 - 2 * (torch.arange(8000) % 2)[:, None]
    z, mask = 1000 + sign * torch.tensor([1.0, 100.0]), None
    if masked:
        z, mask = torch.cat([z, torch.full((8000, 2), -5e4)]), torch.arange(16000) < 8000
    layer(z, mask), layer(z, mask)
    rows = layer.codes()[1:] - 1000
    moved = rows - rows.sign() * torch.tensor([1.0, 100.0])
    assert moved.std(0).tolist() == pytest.approx([0.01, 1.0], rel=0.05)
    assert moved.mean(0).abs().max() < 0.1


@pytest.mark.parametrize("mean", [0.0, 10.0, 1000.0])
def test_codes_on_data_beside_the_origin_heal(mean: float) -> None:
    """Noise relative to the norm is wider than the data there: the codes land where no vector is, and die again."""
    torch.manual_seed(0)
    centres = torch.randn(64, 256)
    codes = mean + 100 + torch.randn(64, 256)
    codes[0] = mean
    layer = layer_with(svq.DeadCodeReset(3), codes, update=svq.EMAUpdate(0.9))
    for _ in range(80):
        out = layer(mean + centres[torch.randint(64, (512,))] + 0.1 * torch.randn(512, 256))
    assert len(out.indices.unique()) >= 60
    assert out.terms["commitment"] < 0.2, "the error is near that of the clusters, 0.01, not that of the data, 1"


@pytest.mark.parametrize(("n", "value"), [(64, 0.0), (64, -7.5), (1, 3.0)], ids=["zeros", "equal", "single"])
@pytest.mark.parametrize("part", [svq.Direct, svq.UnitNormCodes, svq.Affine], ids=lambda part: part.__name__)
def test_reset_codes_differ_where_the_vectors_do_not(part: type[svq.Parametrization], n: int, value: float) -> None:
    reset = svq.DeadCodeReset(1)
    layer = layer_with(reset, parametrization=part())
    z = torch.full((n, D), value)
    before = layer.codes()
    layer(z)
    reset.idle.fill_(9)
    for _ in range(K if n == 1 else 1):
        layer(z)
    codes = layer.codes()
    assert (codes != before).any(1).all(), "every code was reset"
    assert len(codes.unique(dim=0)) == K
    if part is not svq.UnitNormCodes:
        torch.testing.assert_close(codes, z[:1].expand(K, D), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("factor", [2.0**-27, 2.0**27])
def test_reset_of_data_on_another_scale_is_the_same_reset(factor: float) -> None:
    found = []
    for scale in (1.0, factor):
        layer = layer_with(svq.DeadCodeReset(1), scale * used_and_dead())
        layer(scale * batch(32)), layer(scale * batch(32, 2))
        found.append(layer.codes())
    assert torch.equal(factor * found[0], found[1])


def test_masked_vectors_are_as_good_as_absent() -> None:
    found = []
    mask = torch.rand(40, generator=torch.Generator().manual_seed(3)) < 0.5
    for valid in (mask, None):
        layer = layer_with(svq.DeadCodeReset(1), used_and_dead())
        for number in range(3):
            z = batch(40, number)
            layer(z, valid) if valid is not None else layer(z[mask])
        found.append(layer.codes())
    assert not torch.equal(found[0], used_and_dead())
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


# --- on an accelerator ----------------------------------------------------------------------------------------------

# Kernels of one step, whether or not a code is dead: there nothing may ask. "uniform": all are valid or none, as the
# layer hands it over there. A mask has more to count.
LAUNCHES = {"all": 38, "uniform": 39, "masked": 64}


@pytest.mark.parametrize("which", list(LAUNCHES))
def test_a_step_launches_few_kernels(which: str) -> None:
    reset = svq.DeadCodeReset()
    reset.bind(K, D)
    reset.to("meta")
    z, counts = torch.empty(80, D, device="meta"), torch.empty(K, device="meta")
    shape = () if which == "uniform" else (80,)
    valid = None if which == "all" else torch.empty(shape, dtype=torch.bool, device="meta").expand(80)
    batch = Batch(z, valid, None, Draws(Clock().to("meta")))
    with Launches() as launches:
        assert reset.due(batch, svq.Codebook(K)) is not None
        reset.record(counts)
    assert len(launches.names) <= LAUNCHES[which], launches.names


def test_fewer_vectors_than_dead_codes_serve_the_longest_unused_first() -> None:
    reset = svq.DeadCodeReset(2, noise=0.0)
    layer = layer_with(reset, used_and_dead())
    reset.idle.copy_(torch.tensor([0.0, 0.0, *range(5, 19)]))
    z = batch(3)
    layer(z)
    changed = (layer.codes() != used_and_dead()).any(1)
    assert changed.nonzero().flatten().tolist() == [13, 14, 15]
    assert len(layer.codes()[13:].unique(dim=0)) == 3


@pytest.mark.parametrize("n", [1, 3, 7, 16, 40])
def test_no_vector_is_used_twice(n: int) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        reset = svq.DeadCodeReset(1, noise=0.0)
        layer = layer_with(reset, used_and_dead())
        layer.clock.seed.random_(1 << 62)
        reset.idle.fill_(9)
        z = batch(n, seed)
        layer(z)
        hit = [int((z == row).all(1).nonzero()[0]) for row in layer.codes() if (z == row).all(1).any()]
        assert len(hit) == len(set(hit)) == min(n, K)


def test_small_batches_do_not_wipe_a_healthy_codebook() -> None:
    torch.manual_seed(0)
    codes = 10 * torch.randn(64, D)
    reset = svq.DeadCodeReset(patience=3, noise=0.0)
    layer = layer_with(reset, codes)
    for number in range(200):
        layer(codes[(torch.arange(4) + 4 * number) % 64])
    assert torch.equal(layer.codes(), codes), "each code is used once in 16 batches of 4, that is once per step"


def test_masked_vectors_are_neither_counted_nor_picked() -> None:
    reset = svq.DeadCodeReset(1, noise=0.0)
    layer = layer_with(reset, used_and_dead())
    z = batch(40)
    mask = torch.arange(40) % 2 == 0
    layer(z, mask)
    assert (layer.codebook.reset.idle[2:] == 1).all()
    layer(z, mask)
    rows = layer.codes()[2:]
    assert all((z[mask] == row).all(1).any() for row in rows)
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("n", [3, 16, 40])
def test_book_keeping_equals_the_naive_counter(n: int) -> None:
    torch.manual_seed(0)
    codes = torch.randn(K, D)
    reset = svq.DeadCodeReset(4, noise=0.0)
    layer = layer_with(reset, codes)
    twin = naive.IdleCounter(K, 4)
    for number in range(40):
        z = 0.4 * torch.randn(n, D) + 0.05 * number
        mask = torch.rand(n) < 0.8
        before, due = layer.codes(), twin.due(int(mask.sum()))
        out = layer(z, mask)
        changed = (layer.codes() != before).any(1).nonzero().flatten().tolist()
        assert changed == sorted(due), number
        twin.forget(due)
        twin.record(out.indices.numpy())
        assert reset.idle.tolist() == pytest.approx(twin.idle, abs=1e-4)


def test_reset_code_can_be_used_in_the_same_forward() -> None:
    layer = layer_with(svq.DeadCodeReset(1, noise=0.0), used_and_dead())
    layer(batch(32))
    out = layer(batch(32, 2))
    assert (out.indices >= 2).any()


def test_planted_far_codes_disappear_and_stay_away_under_ema() -> None:
    layer = layer_with(svq.DeadCodeReset(3), used_and_dead(), update=svq.EMAUpdate(0.99))
    for number in range(40):
        layer(batch(64, number))
    assert layer.codes().abs().max() < 5


def test_ema_weight_and_momentum_of_a_reset_row_start_over() -> None:
    ema = svq.EMAUpdate(0.9)
    layer = layer_with(svq.DeadCodeReset(2), used_and_dead(), update=ema)
    layer(batch(32)), layer(batch(32))
    assert ema.cluster_size[5] < 1
    before = ema.cluster_size[0].item()
    seen: list[Tensor] = []
    step = ema.step
    ema.step = lambda *args: (seen.append(ema.cluster_size.clone()), step(*args))[1]
    layer(batch(32))
    assert seen[0][5] == 1
    assert seen[0][0] == before
    inner = svq.AlternatedUpdate(momentum=0.9)
    inner.bind(4, 2)
    inner.velocity.fill_(3.0)
    inner.forget(torch.tensor([True, False, False, True]))
    assert inner.velocity[:, 0].tolist() == [0.0, 3.0, 3.0, 0.0]


def test_reset_draws_depend_on_seed_and_step_only() -> None:
    found = []
    for draws in (0, 9):
        layer = layer_with(svq.DeadCodeReset(1), used_and_dead())
        torch.rand(draws)
        layer(batch(32)), layer(batch(32, 2))
        found.append(layer.codes())
    assert torch.equal(*found)
    later = layer_with(svq.DeadCodeReset(1), used_and_dead())
    later(batch(32)), later(batch(32)), later(batch(32, 2))
    assert not torch.equal(found[0], later.codes())


def test_no_reset_means_no_reset() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(D, svq.Codebook(K))
    layer.set_codes(used_and_dead())
    for number in range(60):
        layer(batch(32, number))
    assert torch.equal(layer.codes(), used_and_dead())


def test_naive_counter_by_hand() -> None:
    counter = naive.IdleCounter(4, patience=2)
    counter.record(np.array([0, 0, 1, 1]))  # a full step: codes 2 and 3 idle 1
    counter.record(np.array([0, 2, -1]))  # two vectors are half a step: code 1 idle .5, code 3 idle 1.5
    assert counter.idle == [0.0, 0.5, 0.0, 1.5]
    counter.record(np.array([0, 1]))
    assert counter.due(5) == [3]


@pytest.mark.parametrize("all_valid", [True, False])
def test_a_batch_that_is_valid_as_a_whole_or_not_at_all_does_what_its_mask_says(all_valid: bool) -> None:
    found = []
    for mask in (torch.full((40,), all_valid), torch.tensor(all_valid).expand(40)):
        torch.manual_seed(0)
        reset = svq.DeadCodeReset(1, noise=0.0)
        layer = layer_with(reset, used_and_dead())
        reset.idle.fill_(9)
        layer.step(batch(40, 1), mask)
        found.append(layer.codes())
    assert torch.equal(*found)
    assert torch.equal(found[0], used_and_dead()) is not all_valid
