"""Codes that move onto anchors, the further the less they are used: numbers by hand, and a twin in NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import straightvq as svq

K, D = 8, 3


def layer_with(
    reset: svq.AnchoredReset, codes: Tensor, usage: Tensor | None = None, **slots: object
) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(codes.shape[1], svq.Codebook(len(codes), reset=reset, **slots))
    layer.set_codes(codes)
    layer.codebook.is_ready.fill_(1)
    if usage is not None:
        reset.usage.copy_(usage)
    return layer


def far_codes() -> Tensor:
    """Codes 0 and 1 lie in the data, the others far away."""
    codes = 100 + 10 * torch.arange(K * D).view(K, D) * 1.0
    codes[:2] = torch.tensor([[0.25] * D, [0.75] * D])
    return codes


def used() -> Tensor:
    """Usage of the first two codes alone."""
    return torch.tensor([0.5, 0.5] + [0.0] * (K - 2))


def batch(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(seed))


# usage in units of 1 / K -> share of the way: exp(-1e-3), exp(-1 - 1e-3), exp(-2 - 1e-3) and exp(-1000 - 1e-3)
SHARES = {0.0: 0.9990005, 1e-3: 0.3675117, 2e-3: 0.1352000, 1.0: 0.0}


@pytest.mark.parametrize("usage", list(SHARES))
def test_share_of_the_way_by_hand(usage: float) -> None:
    codes = torch.tensor([[0.0], [0.0], [0.0], [100.0]], dtype=torch.float64)
    layer = layer_with(svq.AnchoredReset(0.99), codes.float()).double()
    layer.codebook.reset.usage.copy_(torch.tensor([usage / 4, 1.0, 1.0, 1.0]))
    layer.set_codes(codes)
    layer.codebook.reset.usage.copy_(torch.tensor([usage / 4, 1.0, 1.0, 1.0]))
    layer(torch.full((5, 1), 1.0, dtype=torch.float64))
    assert layer.codes()[0].item() == pytest.approx(SHARES[usage], abs=1e-6)
    assert layer.codes()[1:].flatten().tolist() == [0.0, 0.0, 100.0]


def test_the_share_is_the_formula_of_the_paper() -> None:
    for usage, share in SHARES.items():
        assert math.exp(-usage / K * K * 10 / (1 - 0.99) - 1e-3) == pytest.approx(share, abs=1e-6)


def test_running_usage_by_hand() -> None:
    reset = svq.AnchoredReset(decay=0.75)
    reset.bind(3, D)
    reset.record(torch.tensor([3.0, 1.0, 0.0]))
    assert reset.usage.tolist() == [0.25 * 0.75, 0.25 * 0.25, 0.0]
    reset.record(torch.tensor([0.0, 0.0, 2.0]))
    assert reset.usage.tolist() == [0.75 * 0.1875, 0.75 * 0.0625, 0.25]
    before = reset.usage.clone()
    reset.record(torch.zeros(3))
    assert torch.equal(reset.usage, before), "a batch without vectors is no step"


def test_a_dead_code_goes_to_the_nearest_vector_not_the_farthest() -> None:
    # One re-implementation sorts by the positive distance and takes the last.
    layer = layer_with(svq.AnchoredReset(), far_codes(), used())
    z = batch(40)
    layer(z)
    distances = torch.cdist(far_codes(), z)
    moved = layer.codes()
    assert torch.equal(moved[:2], far_codes()[:2]), "used codes stay"
    for k in range(2, K):
        nearest, farthest = z[distances[k].argmin()], z[distances[k].argmax()]
        torch.testing.assert_close(moved[k] - nearest, 0.0009995 * (far_codes()[k] - nearest), rtol=1e-2, atol=1e-4)
        assert (moved[k] - farthest).norm() > (moved[k] - nearest).norm()


def test_random_anchors_are_different_vectors_of_the_batch() -> None:
    layer = layer_with(svq.AnchoredReset(anchor="random"), far_codes(), used())
    z = batch(40)
    layer(z)
    # (code - (1 - a) old) / a is the anchor.
    share = math.exp(-1e-3)
    anchors = (layer.codes() - (1 - share) * far_codes())[2:] / share
    found = torch.cdist(anchors, z)
    assert (found.min(1).values < 2e-3).all()
    assert len(found.argmin(1).unique()) == K - 2


def test_random_anchors_are_others_at_every_step() -> None:
    layers = [layer_with(svq.AnchoredReset(anchor="random"), far_codes(), used()) for _ in range(2)]
    layers[0](batch(0))
    for layer in layers:
        layer.clock.seed.fill_(5)
        layer(batch(40))
    assert not torch.allclose(layers[0].codes(), layers[1].codes(), atol=1e-3)


def test_fewer_vectors_than_codes_serve_several() -> None:
    for anchor in ("closest", "random"):
        layer = layer_with(svq.AnchoredReset(anchor=anchor), far_codes(), used())
        layer(batch(1))
        moved = layer.codes()
        assert ((moved[2:] - batch(1)).norm(dim=1) < 1.0).all()
        assert len(moved.unique(dim=0)) == K


def test_codes_with_one_anchor_do_not_become_equal() -> None:
    layer = layer_with(svq.AnchoredReset(), far_codes(), used())
    for _ in range(20):
        layer(batch(1))
        assert len(layer.codes().unique(dim=0)) == K


class Twin:
    """One codebook with anchors, in NumPy: usage, shares, nearest vectors, assignment."""

    def __init__(self, codes: np.ndarray, decay: float) -> None:
        self.codes, self.decay = codes.copy(), decay
        self.usage = np.zeros(len(codes))

    def step(self, z: np.ndarray, valid: np.ndarray) -> np.ndarray:
        z = z[valid]
        if self.usage.sum() > 0:
            for k in range(len(self.codes)):
                share = math.exp(-self.usage[k] * len(self.codes) * 10 / (1 - self.decay) - 1e-3)
                if share >= 1e-3:
                    nearest = z[((z - self.codes[k]) ** 2).sum(1).argmin()]
                    self.codes[k] = (1 - share) * self.codes[k] + share * nearest
        indices = ((z[:, None] - self.codes) ** 2).sum(2).argmin(1)
        counts = np.bincount(indices, minlength=len(self.codes))
        self.usage = self.decay * self.usage + (1 - self.decay) * counts / len(z)
        return indices


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_steps_are_those_of_the_twin(decay: float, masked: bool) -> None:
    torch.manual_seed(0)
    codes = 3 * torch.randn(24, D, dtype=torch.float64)
    layer = svq.VectorQuantizer(D, svq.Codebook(24, reset=svq.AnchoredReset(decay))).double()
    layer.set_codes(codes)
    twin = Twin(codes.numpy(), decay)
    moved = 0
    for number in range(12):
        z = 0.2 * number + torch.randn(30, D, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        valid = torch.arange(30) % 3 != 1 if masked else torch.ones(30, dtype=torch.bool)
        before = layer.codes()
        out = layer(z, valid if masked else None)
        assert torch.equal(out.indices[valid], torch.from_numpy(twin.step(z.numpy(), valid.numpy())))
        np.testing.assert_allclose(layer.codes().numpy(), twin.codes, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(layer.codebook.reset.usage.numpy(), twin.usage, rtol=1e-5)
        moved += int((layer.codes() != before).any(1).sum())
    assert moved > 10


def test_masked_vectors_are_no_anchors() -> None:
    for anchor in ("closest", "random"):
        layer = layer_with(svq.AnchoredReset(anchor=anchor), far_codes(), used())
        z = torch.cat([batch(20), far_codes()[2:]])
        layer(z, torch.arange(len(z)) < 20)
        assert (layer.codes().amax(1) < 1.5).all()


@pytest.mark.parametrize("anchor", ["closest", "random"])
def test_nothing_moves_without_a_record_without_vectors_or_in_evaluation(anchor: str) -> None:
    layer = layer_with(svq.AnchoredReset(anchor=anchor), far_codes())
    layer(batch(20))
    assert torch.equal(layer.codes(), far_codes()), "before the first record"
    layer.codebook.reset.usage.copy_(used())
    layer(batch(20), torch.zeros(20, dtype=torch.bool))
    layer(batch(0))
    layer.eval()(batch(20))
    assert torch.equal(layer.codes(), far_codes())
    assert torch.equal(layer.codebook.reset.usage, used())


def test_only_codes_that_move_are_new_to_optimizer_and_update() -> None:
    layer = layer_with(svq.AnchoredReset(), far_codes(), used(), update=svq.EMAUpdate(0.9))
    layer.codebook.update.cluster_size.fill_(7)
    layer.codebook.rewritten.zero_()
    reset, seen = layer.codebook.reset, []
    forget = layer.codebook.update.forget
    layer.codebook.update.forget = lambda rows: (seen.append(rows.clone()), forget(rows))
    usage = reset.usage.clone()
    layer(batch(40))
    assert seen[0].tolist() == [False, False] + [True] * (K - 2)
    assert layer.codebook.rewritten.tolist() == [0.0, 0.0] + [1.0] * (K - 2)
    assert (reset.usage[2:] <= 0.01).all(), "the usage goes on from where it was"
    assert reset.usage[:2].sum() <= usage.sum()


def test_usage_is_saved_and_starts_over_with_a_new_table() -> None:
    layer = layer_with(svq.AnchoredReset(), far_codes())
    layer(batch(40))
    assert layer.state_dict()["codebook.reset.usage"].sum() > 0
    layer.set_codes(far_codes())
    assert layer.codebook.reset.usage.sum() == 0


PARTS = {
    "affine": lambda: svq.Affine(3.0, groups=2),
    "linear": lambda: svq.Linear(freeze_basis=False, bias=True),
    "chain": lambda: svq.Chain([svq.Affine(), svq.Linear(freeze_basis=False)]),
}


@pytest.mark.parametrize("name", list(PARTS))
def test_moves_go_through_the_parametrizations_inverse(name: str) -> None:
    part = PARTS[name]()
    layer = layer_with(svq.AnchoredReset(), far_codes(), used(), parametrization=part)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    before, z = layer.codes(), batch(40)
    layer(z)
    share = math.exp(-1e-3)
    wanted = (1 - share) * before + share * z[torch.cdist(before, z).argmin(1)]
    torch.testing.assert_close(layer.codes()[2:], wanted[2:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(layer.codes()[:2], before[:2], rtol=1e-3, atol=1e-3)
