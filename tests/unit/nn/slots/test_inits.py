import logging

import pytest
import torch
from torch import Tensor

import straightvq as svq


def layer_with(init: svq.Init, size: int, dim: int = 4) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    return svq.VectorQuantizer(dim, svq.Codebook(size, init=init, update=svq.AlternatedUpdate()))


def matches(points: Tensor, codes: Tensor) -> Tensor:
    """Distance of every point to its nearest code."""
    return torch.cdist(points.double(), codes.double()).min(1).values


def test_normal_init_has_its_deviation() -> None:
    torch.manual_seed(0)
    assert svq.NormalInit(0.1).start(2000, 8).std().item() == pytest.approx(0.1, rel=0.05)


def test_uniform_init_stays_within_one_over_the_size() -> None:
    torch.manual_seed(0)
    codes = svq.UniformInit().start(50, 8)
    assert codes.abs().max() <= 1 / 50
    assert codes.abs().max() > 0.9 / 50
    assert abs(codes.mean()) < 0.1 / 50


@pytest.mark.parametrize("init", [svq.KMeansInit(), svq.SampleInit()], ids=repr)
def test_data_init_fits_before_the_first_assignment(init: svq.Init) -> None:
    torch.manual_seed(0)
    points = 50 * torch.eye(8, 4).add(torch.arange(8.0)[:, None])
    layer = layer_with(init, 8)
    z = points.repeat(6, 1) if isinstance(init, svq.KMeansInit) else points
    out = layer(z[torch.randperm(len(z))])
    assert out.terms["commitment"] < 1e-3, "the very first forward must use the fitted codes"
    assert matches(points, layer.codes()).max() < 1e-2
    assert len(out.indices.unique()) == 8


def test_k_means_finds_separated_points_in_the_same_forward() -> None:
    torch.manual_seed(0)
    points = 100 * torch.randn(16, 4)
    out = layer_with(svq.KMeansInit(), 16)(points.repeat(5, 1))
    torch.testing.assert_close(out.quantized, points.repeat(5, 1), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("init", [svq.KMeansInit(), svq.SampleInit()], ids=repr)
@pytest.mark.parametrize(("n", "k"), [(30, 100), (1, 3), (27, 64)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_fewer_vectors_than_codes_keeps_all_rows_apart(init: svq.Init, n: int, k: int, offset: float) -> None:
    layer = layer_with(init, k)
    z = torch.randn(n, 4) + offset
    layer(z)
    codes = layer.codes()
    assert codes.shape == (k, 4)
    assert len(codes.unique(dim=0)) == k
    assert matches(z, codes).max() < 0.1
    # A single vector does not say how far the data reach: its copies are some per cent of its size away.
    reach = 0.5 if n > 1 else max(0.5, 0.05 * z.norm())
    assert matches(codes, z).max() < reach, "no code may be away from the data"


def test_sample_init_draws_without_replacement() -> None:
    torch.manual_seed(0)
    z = torch.randn(20, 3)
    codes = svq.SampleInit().fit(z, 20, torch.Generator().manual_seed(1))
    assert torch.equal(codes.sort(0).values, z.sort(0).values)


@pytest.mark.parametrize("init", [svq.KMeansInit(), svq.SampleInit()], ids=repr)
def test_rows_without_a_vector_take_vectors_of_the_next_batches(init: svq.Init) -> None:
    layer = layer_with(init, 16)
    layer.codebook.update.fraction = 1e-6  # what the update does is its own affair
    book = layer.codebook
    batches = [torch.randn(6, 4) + 100 * number for number in range(4)]
    for number, z in enumerate(batches):
        before = layer.codes()
        assert not book.is_ready
        layer(z)
        filled = min(16, 6 * (number + 1))
        assert book.filled.tolist() == [1.0] * filled + [0.0] * (16 - filled)
        kept = slice(0, 6 * number)
        torch.testing.assert_close(layer.codes()[kept], before[kept], rtol=1e-4, atol=1e-3)
        assert len(layer.codes().unique(dim=0)) == 16
        if book.is_ready:
            break
    assert number == 2
    assert matches(torch.cat(batches[:2]), layer.codes()).max() < 1e-2, "each has a code of its own"
    assert (matches(batches[2], layer.codes()) < 1e-2).sum() == 4
    before = layer.codes()
    layer(torch.randn(10, 4) + 9000)
    assert (before - layer.codes()).abs().max() < 0.1, "after the init only the update may move codes"


def test_vectors_for_vacant_rows_are_drawn_at_random() -> None:
    taken = torch.zeros(40)
    for seed in range(60):
        torch.manual_seed(seed)
        layer = svq.VectorQuantizer(1, svq.Codebook(16, init=svq.SampleInit(), update=svq.EMAUpdate(0.0)))
        layer(torch.arange(14.0)[:, None])
        layer.codebook.update.decay = 0.999999
        layer(1000 + torch.arange(40.0)[:, None])
        places = (layer.codes()[14:, 0] - 1000).round().long()
        taken[places] += 1
    assert (taken > 0).sum() > 30, "not the first vectors of the batch, nor always the same"


def test_equal_vectors_leave_no_two_codes_equal() -> None:
    layer = layer_with(svq.KMeansInit(), 16)
    for _ in range(4):
        layer(torch.ones(5, 4))
        assert len(layer.codes().unique(dim=0)) == 16


def test_one_batch_with_a_vector_for_every_code_is_enough() -> None:
    layer = layer_with(svq.KMeansInit(), 16)
    layer(torch.randn(16, 4))
    assert layer.codebook.is_ready


def test_k_means_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fit = svq.KMeansInit.fit
    monkeypatch.setattr(svq.KMeansInit, "fit", lambda *a: calls.append(len(a[1])) or fit(*a))
    layer = layer_with(svq.KMeansInit(), 100)
    for _ in range(20):
        layer(torch.randn(9, 4))
    assert calls == [9]


def test_an_init_looks_at_a_random_part_of_a_huge_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    fit = svq.SampleInit.fit
    monkeypatch.setattr(svq.SampleInit, "fit", lambda *a: seen.append(a[1]) or fit(*a))
    layer_with(svq.SampleInit(), 4, dim=1)(torch.arange(4000.0)[:, None])
    assert len(seen[0]) == 256
    assert len(seen[0].unique()) == 256
    assert seen[0].max() > 3500
    assert abs(seen[0].mean() - 2000) < 300


@pytest.mark.parametrize("init", [svq.KMeansInit(), svq.SampleInit(), svq.NormalInit(), svq.UniformInit()], ids=repr)
def test_evaluation_never_initialises(init: svq.Init) -> None:
    layer = layer_with(init, 8).eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(torch.randn(100, 4))
    assert all(torch.equal(v, layer.state_dict()[k]) for k, v in before.items())
    layer.train()(torch.randn(100, 4))
    assert layer.codebook.is_ready


def test_set_codes_before_the_first_forward_forestalls_the_init() -> None:
    layer = layer_with(svq.KMeansInit(), 8)
    codes = torch.randn(8, 4) + 100
    layer.set_codes(codes)
    layer(torch.randn(2, 4) + 100)
    assert (layer.codes() == codes).all(1).sum() >= 6


def test_loaded_codes_are_not_initialised_again() -> None:
    layer = layer_with(svq.KMeansInit(), 8)
    layer(torch.randn(100, 4))
    fresh = layer_with(svq.KMeansInit(), 8)
    fresh.load_state_dict(layer.state_dict())
    fresh(torch.full((1, 4), 50.0))
    assert (fresh.codes() == layer.codes()).all(1).sum() == 7


def test_same_seed_gives_the_same_init_whatever_the_global_generator_does() -> None:
    found = []
    for draws in (0, 5):
        layer = layer_with(svq.KMeansInit(), 8)
        z = torch.randn(100, 4, generator=torch.Generator().manual_seed(3))
        torch.rand(draws)
        layer(z)
        found.append(layer.codes())
    assert torch.equal(*found)


def test_running_affine_starts_as_the_identity_on_fitted_codes() -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(
        4,
        svq.Codebook(8, parametrization=svq.RunningAffine(), init=svq.KMeansInit(), update=svq.EMAUpdate()),
    )
    points = 50 * torch.randn(8, 4)
    layer(points.repeat(4, 1))
    assert matches(points, layer.codes()).max() < 1e-2
    torch.testing.assert_close(layer.codes(), layer.codebook.raw, rtol=1e-5, atol=1e-4)


def test_the_log_says_what_an_init_waits_for(caplog) -> None:
    layer = layer_with(svq.KMeansInit(), 16)
    with caplog.at_level(logging.INFO, logger="straightvq"):
        for _ in range(3):
            layer(torch.randn(10, layer.dim))
    assert caplog.messages == [
        "KMeansInit: starting 16 codes on 10 vectors",
        "10 of 16 codes stand for a vector",
        "16 of 16 codes stand for a vector",
    ]
