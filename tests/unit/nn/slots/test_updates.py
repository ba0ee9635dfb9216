import numpy as np
import pytest
import torch
from tests.reference import naive
from torch import Tensor

import straightvq as svq
from straightvq.nn.batch import Batch
from straightvq.nn.draws import Draws


def layer_with(update: svq.Update, codes: Tensor, **slots: object) -> svq.VectorQuantizer:
    book = svq.Codebook(len(codes), update=update, **slots)
    layer = svq.VectorQuantizer(codes.shape[1], book, losses=[svq.CommitmentLoss(), svq.CodebookLoss()])
    layer = layer.to(codes.dtype)
    layer.set_codes(codes)
    return layer


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


# --- EMA -------------------------------------------------------------------------------------------------------------


def test_ema_by_hand() -> None:
    # decay .9, weights (1,1), sums (0,1); z = .2 on code 0, .9 and .8 on code 1:
    # weights (1.0, 1.1), codes (.02, 1.07/1.1).
    update = svq.EMAUpdate(0.9)
    layer = layer_with(update, column(0, 1))
    layer(column(0.2, 0.9, 0.8))
    assert update.cluster_size.tolist() == pytest.approx([1.0, 1.1])
    assert layer.codes().flatten().tolist() == pytest.approx([0.02, 1.07 / 1.1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_equals_two_moving_averages(decay: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    codes = torch.randn(7, 3, dtype=dtype)
    layer = layer_with(svq.EMAUpdate(decay), codes)
    twin, counts = codes.double().numpy(), np.ones(7)
    sums = twin.copy()
    for number in range(12):
        z = 1.5 * torch.randn(11, 3, dtype=dtype) + 0.1 * number
        before = layer.codes()
        out = layer(z)
        indices = svq.functional.nearest_code(z, before)
        assert torch.equal(out.indices, indices), "the forward shares the update's own search"
        if decay == 0.0:
            # The textbook ratio is 0/0 for a code without vectors; ours stays where it is.
            used = torch.bincount(indices, minlength=7) > 0
            counts, sums = np.ones(7), twin.copy()
            new = naive.ema_step(twin, counts, sums, z.double().numpy(), indices.numpy(), 0.0)[0]
            twin = np.where(used.numpy()[:, None], new, twin)
        else:
            twin, counts, sums = naive.ema_step(twin, counts, sums, z.double().numpy(), indices.numpy(), decay)
        torch.testing.assert_close(layer.codes().double(), torch.from_numpy(twin), rtol=1e-5, atol=1e-5)


def test_unused_ema_code_stays_where_it_is_for_ever() -> None:
    layer = layer_with(svq.EMAUpdate(0.5), column(0, 10))
    for _ in range(3000):
        layer(column(0.1, 0.2))
    assert layer.codes()[1].item() == 10.0
    layer(column(10.0, 12.0))
    assert layer.codes()[1].item() == pytest.approx(11.0)
    assert layer.codes().isfinite().all()


def test_ema_right_after_k_means_leaves_the_centres_in_place() -> None:
    torch.manual_seed(0)
    points = 20 * torch.randn(8, 4)
    layer = svq.VectorQuantizer(4, svq.Codebook(8, init=svq.KMeansInit(), update=svq.EMAUpdate()))
    z = points.repeat(10, 1)
    layer(z)
    torch.testing.assert_close(layer(z).quantized, z, rtol=1e-4, atol=1e-4)


def test_ema_takes_no_gradient_and_keeps_its_table_in_buffers() -> None:
    layer = layer_with(svq.EMAUpdate(), torch.randn(4, 3))
    assert list(layer.parameters()) == []
    assert layer(torch.randn(9, 3, requires_grad=True)).loss.requires_grad
    assert {"codebook.raw", "codebook.update.cluster_size"} <= set(layer.state_dict())


# --- alternated ------------------------------------------------------------------------------------------------------


def test_alternated_sgd_step_by_hand() -> None:
    # z = {0,1,10,12}, c = {0,10}, D = 1, lr 1: each code has 2 of 4 vectors, fraction 2 * 2 / 4 = 1: c = {.5, 11}.
    layer = layer_with(svq.AlternatedUpdate(lr=1.0), column(0, 10))
    out = layer(column(0, 1, 10, 12))
    assert layer.codes().flatten().tolist() == [0.5, 11.0]
    assert out.indices.tolist() == [0, 0, 1, 1]
    assert out.quantized.flatten().tolist() == [0.5, 0.5, 11.0, 11.0]


def test_alternated_fraction_of_one_is_a_k_means_step() -> None:
    layer = layer_with(svq.AlternatedUpdate(fraction=1.0), column(0, 10))
    layer(column(0, 1, 10, 12))
    assert layer.codes().flatten().tolist() == [0.5, 11.0]


def test_one_code_that_owns_all_vectors_does_not_overshoot() -> None:
    layer = layer_with(svq.AlternatedUpdate(fraction=0.5), column(0, 1000))
    for _ in range(50):
        layer(column(3, 5))
    assert layer.codes().flatten().tolist() == pytest.approx([4.0, 1000.0])


def test_a_running_mean_by_hand() -> None:
    # c = {0,10}, memory 3. First {0,1,10,12}: k-means, {.5,11}, two seen each. Then {3,11,11,11,11}: 1 of min(2,3) + 1
    # takes .5 to .5 + 2.5 / 3; four of 2 + 4 leave 11 in place. Then {2}: min(3,3) + 1 = 4, and the other code stays;
    # {18}: min(6,3) + 1 = 4 take it a quarter of the way.
    layer = layer_with(svq.AlternatedUpdate(memory=3.0), column(0, 10))
    second = 0.5 + 2.5 / 3
    third = second + (2 - second) / 4
    batches = [column(0, 1, 10, 12), column(3, 11, 11, 11, 11), column(2), column(18)]
    for batch, codes in zip(batches, [[0.5, 11], [second, 11], [third, 11], [third, 11 + 7 / 4]], strict=True):
        layer(batch)
        assert layer.codes().flatten().tolist() == pytest.approx(codes)
    assert layer.codebook.update.seen.tolist() == [4, 4]


def test_without_a_bound_the_codes_are_the_means_of_all_vectors() -> None:
    torch.manual_seed(0)
    layer = layer_with(svq.AlternatedUpdate(memory=1e9, reassign=False), column(-5, 5).double())
    z = torch.randn(6, 20, 1).double() + torch.tensor([-5.0, 5.0]).repeat(10)[:, None]
    for batch in z:
        layer(batch)
    means = torch.stack([z[:, ::2].mean(), z[:, 1::2].mean()])
    torch.testing.assert_close(layer.codes().flatten(), means)


def test_no_memory_is_a_k_means_step_and_a_rewritten_code_starts_over() -> None:
    layer = layer_with(svq.AlternatedUpdate(memory=0.0), column(0, 10))
    for _ in range(2):
        layer(column(0, 1, 10, 12))
        assert layer.codes().flatten().tolist() == [0.5, 11.0]
    layer.codebook.update.memory = 50.0
    layer.codebook.rewrite(column(4, 4), torch.tensor([True, False]))
    layer(column(3, 13))  # the new code has seen nothing; the other one two vectors
    assert layer.codes().flatten().tolist() == pytest.approx([3.0, 11 + 2 / 3])
    layer.set_codes(column(0, 10))
    layer(column(1, 13))
    assert layer.codes().flatten().tolist() == [1.0, 13.0]


def test_a_rate_may_change_but_not_its_kind() -> None:
    memory, fraction = svq.AlternatedUpdate(memory=10.0), svq.AlternatedUpdate(fraction=0.3)
    layer_with(memory, column(0, 10))
    layer_with(fraction, column(0, 10))
    memory.memory, fraction.fraction = 20.0, 0.1
    with pytest.raises(ValueError, match="one of `fraction`, `lr`, `memory` must be given"):
        memory.memory = None
    with pytest.raises(ValueError, match="only one of `fraction` and `memory` may be given"):
        memory.fraction = 0.1
    with pytest.raises(ValueError, match="only one of `memory` and `fraction` may be given"):
        fraction.memory = 10.0
    assert (memory.memory, memory.fraction, fraction.fraction, fraction.memory) == (20.0, None, 0.1, None)


PARTS = {
    "direct": lambda: svq.Direct(),
    "running": lambda: svq.RunningAffine(),
    "affine": lambda: svq.Affine(2.0, groups=2),
}


@pytest.mark.parametrize("part", list(PARTS.values()), ids=list(PARTS))
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("reassign", [True, False])
def test_alternated_fraction_equals_the_naive_step(part: object, steps: int, reassign: bool) -> None:
    torch.manual_seed(0)
    update = svq.AlternatedUpdate(steps=steps, fraction=0.3, reassign=reassign)
    layer = layer_with(update, torch.randn(6, 3).double(), parametrization=part())
    for name, value in layer.named_parameters():
        if name.endswith(("scale", "shift")):
            value.data.copy_(0.2 * torch.randn(value.shape))
    for _ in range(4):
        z = torch.randn(17, 3).double()
        frozen = {k: v.clone() for k, v in layer.state_dict().items()}
        # What the running map does to the codes before the step is its own affair: read it from a second layer.
        layer.codebook.parametrization.observe(Batch(z, None, False, Draws(layer.clock)), layer.codebook.raw.detach())
        codes = layer.codes().numpy()
        layer.load_state_dict(frozen)
        indices = naive.nearest_code(z.numpy(), codes)
        for number in range(steps):
            if number and reassign:
                indices = naive.nearest_code(z.numpy(), codes)
            codes = naive.alternated_step(codes, z.numpy(), indices, 0.3)
        out = layer(z)
        torch.testing.assert_close(layer.codes(), torch.from_numpy(codes), rtol=1e-9, atol=1e-9)
        final = naive.nearest_code(z.numpy(), codes) if reassign else indices
        assert out.indices.tolist() == final.tolist()
        assert torch.equal(out.quantized, layer.codes()[out.indices])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_alternated_lr_equals_torch_sgd_on_the_effective_codes(momentum: float, steps: int, masked: bool) -> None:
    torch.manual_seed(0)
    start = torch.randn(6, 3).double()
    layer = layer_with(svq.AlternatedUpdate(steps=steps, lr=2.0, momentum=momentum), start)
    codes = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([codes], lr=2.0, momentum=momentum)
    for _ in range(6):
        z = torch.randn(17, 3).double()
        mask = torch.rand(17) < 0.7 if masked else None
        seen = z if mask is None else z[mask]
        for _ in range(steps):
            indices = torch.from_numpy(naive.nearest_code(seen.numpy(), codes.detach().numpy()))
            optimizer.zero_grad()
            (codes[indices] - seen).square().mean().backward()
            optimizer.step()
        layer(z, mask)
        torch.testing.assert_close(layer.codes(), codes.detach(), rtol=1e-9, atol=1e-9)


def test_alternated_momentum_on_the_fraction_form() -> None:
    layer = layer_with(svq.AlternatedUpdate(fraction=0.5, momentum=0.5), column(0, 100))
    layer(column(1))  # move .5 * (1 - 0) = .5
    assert layer.codes()[0].item() == 0.5
    layer(column(1))  # .5 * .5 + .5 * (1 - .5) = .5
    assert layer.codes()[0].item() == 1.0
    assert layer.codes()[1].item() == 100.0


def test_alternated_lr_step_leaves_the_affine_map_alone() -> None:
    torch.manual_seed(0)
    affine = svq.Affine(10.0)
    layer = layer_with(svq.AlternatedUpdate(lr=1.0, momentum=0.9), torch.randn(6, 3), parametrization=affine)
    for _ in range(5):
        layer(torch.randn(17, 3))
    assert (affine.scale == 0).all()
    assert (affine.shift == 0).all()
    assert affine.scale.grad is None


@pytest.mark.parametrize(
    "update",
    [
        svq.AlternatedUpdate(momentum=0.9),
        svq.AlternatedUpdate(lr=5.0, momentum=0.9),
        svq.AlternatedUpdate(memory=9.0),
        svq.EMAUpdate(),
    ],
    ids=repr,
)
def test_batch_without_vectors_moves_nothing(update: svq.Update) -> None:
    torch.manual_seed(0)
    layer = layer_with(update, torch.randn(6, 3))
    layer(torch.randn(17, 3))
    before = {k: v.clone() for k, v in layer.state_dict().items() if k != "clock.step"}
    layer(torch.randn(0, 3))
    layer(torch.randn(5, 3), torch.zeros(5, dtype=torch.bool))
    for name, value in before.items():
        assert torch.equal(value, layer.state_dict()[name]), name


def test_alternated_step_far_from_the_origin_keeps_its_digits() -> None:
    torch.manual_seed(0)
    codes, z = torch.randn(6, 3) + 1000, torch.randn(17, 3) + 1000
    layer = layer_with(svq.AlternatedUpdate(fraction=0.5), codes)
    layer(z)
    exact = naive.alternated_step(
        codes.double().numpy(), z.double().numpy(), naive.nearest_code(z.double().numpy(), codes.double().numpy()), 0.5
    )
    torch.testing.assert_close(layer.codes().double(), torch.from_numpy(exact), rtol=0, atol=2e-4)


# --- together --------------------------------------------------------------------------------------------------------


def test_gradient_update_moves_nothing_by_itself() -> None:
    layer = layer_with(svq.GradientUpdate(), torch.randn(6, 3))
    before = layer.codes()
    layer(torch.randn(17, 3))
    assert torch.equal(before, layer.codes())


@pytest.mark.parametrize("sync", [0.0, 0.3])
def test_toy_figure_of_the_paper(sync: float) -> None:
    # L_task = |q|^2 / 2, one used code, gradient descent with lr .55, beta .7; with D = 2 the mean is the half norm.
    # z_e and z_q after each of three steps, as digitised and then derived from the authors' figure.
    want = {
        0.0: [((-0.7515, -0.4050), (-0.3465, -0.9000)), ((-0.4941, 0.0083), (-0.5024, -0.7094)),
              ((-0.2191, 0.2801), (-0.4992, -0.4331))],
        0.3: [((-0.7515, -0.4050), (-0.3465, -0.7515)), ((-0.4941, -0.0488), (-0.4453, -0.4941)),
              ((-0.2412, 0.1494), (-0.3906, -0.2412))],
    }[sync]  # fmt: skip
    layer = svq.VectorQuantizer(
        2,
        svq.Codebook(2),
        estimator=svq.StraightThrough(sync),
        losses=[svq.CommitmentLoss(0.3), svq.CodebookLoss(0.7)],
    ).double()
    layer.set_codes(torch.tensor([[0.0, -0.9], [99.0, 99.0]]).double())
    z = torch.tensor([[-0.9, -0.9]]).double().requires_grad_()
    optimizer = torch.optim.SGD([z, *layer.parameters()], lr=0.55)
    for z_e, z_q in want:
        optimizer.zero_grad()
        out = layer(z)
        (out.quantized.square().sum() / 2 + out.loss).backward()
        optimizer.step()
        assert z[0].tolist() == pytest.approx(z_e, abs=1e-4)
        assert layer.codes()[0].tolist() == pytest.approx(z_q, abs=1e-4)


def test_nothing_is_stepped_twice() -> None:
    """Alternated and synchronised: the raw table moves by the inner step, and by lr * nu * g through the optimizer."""
    torch.manual_seed(0)
    codes = torch.randn(6, 3).double()
    layer = svq.VectorQuantizer(
        3, svq.Codebook(6, update=svq.AlternatedUpdate(fraction=0.3)), estimator=svq.StraightThrough(0.5)
    ).double()
    layer.set_codes(codes)
    z, g = torch.randn(17, 3).double(), torch.randn(17, 3).double()
    out = layer(z)
    inner = naive.alternated_step(codes.numpy(), z.numpy(), naive.nearest_code(z.numpy(), codes.numpy()), 0.3)
    ((g * out.quantized).sum() + out.loss).backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    _, sums = naive.code_sums(g.numpy(), out.indices.numpy(), 6)
    torch.testing.assert_close(layer.codes(), torch.from_numpy(inner - 0.1 * 0.5 * sums))


def test_representation_names_what_is_set() -> None:
    assert repr(svq.AlternatedUpdate()) == "AlternatedUpdate(steps=1, fraction=0.1)"
    assert repr(svq.AlternatedUpdate(2, lr=50.0, momentum=0.9, reassign=False)) == (
        "AlternatedUpdate(steps=2, lr=50.0, momentum=0.9, reassign=False)"
    )


def test_reset_counts_what_the_alternated_step_moved_the_codes_by() -> None:
    # The vector 3.9 belongs to the first code before the step, and after it, from (-3.05, 4.1), to the second.
    reset = svq.DeadCodeReset()
    book = svq.Codebook(2, update=svq.AlternatedUpdate(fraction=1.0), reset=reset)
    layer = svq.VectorQuantizer(1, book)
    layer.set_codes(torch.tensor([[0.0], [8.0]]))
    seen: list[list[float]] = []
    reset.record = lambda counts: seen.append(counts.tolist())
    out = layer(torch.tensor([[-10.0], [3.9], [4.1]]))
    assert layer.codes().flatten().tolist() == pytest.approx([-3.05, 4.1])
    assert out.indices.tolist() == [0, 1, 1]
    assert seen == [[2.0, 1.0]]
