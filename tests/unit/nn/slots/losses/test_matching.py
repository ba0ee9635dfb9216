import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.nn.slots.losses.kernel import WIDTHS


def layer_of(loss: svq.Loss, codes: Tensor) -> svq.VectorQuantizer:
    layer = svq.VectorQuantizer(codes.shape[1], svq.Codebook(len(codes)), losses=[loss])
    layer.to(codes.dtype).set_codes(codes)
    return layer


def gradient(layer: svq.VectorQuantizer, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, layer.codebook.raw)[0]


def root_of(matrix: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(matrix)
    return basis * values.clamp(min=0).sqrt() @ basis.T


def naive_wasserstein(z: Tensor, codes: Tensor) -> Tensor:
    """In units of the embeddings' deviation, with both matrix roots written out."""
    scale = z.var(0, correction=0).mean().sqrt()
    z, codes = z / scale, codes / scale
    cov_z, cov_c = z.T.cov(correction=0), codes.T.cov(correction=0)
    root = root_of(cov_z)
    square = (z.mean(0) - codes.mean(0)).square().sum() + (cov_z + cov_c - 2 * root_of(root @ cov_c @ root)).trace()
    return square.sqrt()


def naive_mmd(z: Tensor, codes: Tensor) -> Tensor:
    """All pairs, one by one."""
    scale = z.var(0, correction=0).mean().sqrt()

    def mean_kernel(first: Tensor, second: Tensor) -> Tensor:
        total = torch.zeros((), dtype=z.dtype)
        for x in first:
            for y in second:
                square = ((x - y) / scale).square().sum()
                total = total + sum((square / (-2 * z.shape[1] * width)).exp() for width in WIDTHS) / len(WIDTHS)
        return total / (len(first) * len(second))

    return mean_kernel(z, z) + mean_kernel(codes, codes) - 2 * mean_kernel(z, codes)


def test_normal_distributions_on_a_line_by_hand() -> None:
    # Mean 0 against 3, deviation 1 against 5: sqrt(9 + 16). The code 3 -+ 5 pulls by (3 / 2 -+ 4 / 2) / 5.
    layer = layer_of(svq.WassersteinLoss(), torch.tensor([[-2.0], [8.0]])).eval()
    loss = layer(torch.tensor([[-1.0], [1.0]])).terms["wasserstein"]
    assert loss.item() == pytest.approx(5, abs=1e-6)
    torch.testing.assert_close(gradient(layer, loss), torch.tensor([[-0.1], [0.7]]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("loss", "naive"), [(svq.WassersteinLoss(), naive_wasserstein), (svq.MMDLoss(), naive_mmd)], ids=["w", "mmd"]
)
def test_distance_and_gradient_are_those_of_the_naive_formula(loss: svq.Loss, naive, masked: bool) -> None:
    torch.manual_seed(0)
    codes = 3 * torch.randn(9, 3, dtype=torch.float64) + 1
    z = torch.randn(17, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 5
    mask = torch.rand(17) > 0.3 if masked else None
    layer = layer_of(type(loss)(), codes).eval()
    got = layer(z, mask).terms[loss.name]
    codes.requires_grad_()
    want = naive(z if mask is None else z[mask], codes)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient(layer, got), torch.autograd.grad(want, codes)[0], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss])
def test_equal_sets_are_at_distance_0_with_a_finite_gradient(kind: type[svq.Loss], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    codes = torch.randn(12, 4, dtype=dtype) + 3
    layer = layer_of(kind(), codes).eval()
    loss = layer(codes.flip(0)).loss
    assert loss.abs() < 1e-3 if dtype == torch.float32 else loss.abs() < 1e-7
    assert gradient(layer, loss).abs().max() < 1e-3


@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss])
def test_at_a_distance_of_0_to_the_bit_the_gradient_is_0(kind: type[svq.Loss]) -> None:
    codes = torch.tensor([[-1.0], [1.0]])
    layer = layer_of(kind(), codes).eval()
    loss = layer(codes).loss
    assert loss == 0
    assert gradient(layer, loss).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss])
@pytest.mark.parametrize("flat", ["vectors", "codes", "both", "one vector"])
def test_sets_without_extent_have_a_finite_gradient(kind: type[svq.Loss], flat: str) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(20, 5), torch.randn(7, 5)
    if flat in ("vectors", "both"):
        z = z[:1].expand(20, 5) * torch.tensor([1.0, 0, 1, 0, 0])
    if flat in ("codes", "both"):
        codes = codes[:1].repeat(7, 1)
    layer = layer_of(kind(), codes).eval()
    loss = layer(z[:1] if flat == "one vector" else z).loss
    assert loss.isfinite()
    assert gradient(layer, loss).isfinite().all()


@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss])
@pytest.mark.parametrize("extent", [1e-20, 1e-18, 1e-12])
def test_embeddings_that_have_collapsed_give_a_finite_loss(kind: type[svq.Loss], extent: float) -> None:
    torch.manual_seed(0)
    layer = layer_of(kind(), 1e3 * torch.randn(8, 4)).eval()
    loss = layer(extent * torch.randn(30, 4)).loss
    assert loss.isfinite()
    assert gradient(layer, loss).isfinite().all()


@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss])
def test_distance_does_not_depend_on_the_unit(kind: type[svq.Loss]) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(30, 4), 2 * torch.randn(8, 4)
    one, other = (layer_of(kind(), unit * codes).eval()(unit * z).loss for unit in (1.0, 1e3))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss])
def test_in_training_the_embeddings_are_those_of_the_steps_before(kind: type[svq.Loss]) -> None:
    torch.manual_seed(0)
    first, second, codes = torch.randn(10, 3), 9 * torch.randn(10, 3), torch.randn(6, 3)
    layer = layer_of(kind(queue=50), codes)
    assert layer(first).loss == 0
    torch.testing.assert_close(layer(second).loss, layer_of(kind(), codes).eval()(first).loss)
    torch.testing.assert_close(layer(first).loss, layer_of(kind(), codes).eval()(torch.cat([first, second])).loss)


def recent(layer: svq.VectorQuantizer) -> Tensor:
    loss = layer.losses[0]
    assert isinstance(loss, svq.MMDLoss)
    return loss.recent.rows.flatten()


def test_queue_holds_the_last_vectors_and_no_masked_one() -> None:
    layer = layer_of(svq.MMDLoss(queue=3), torch.zeros(2, 1))
    layer(torch.tensor([[1.0], [7.0], [2.0]]), torch.tensor([True, False, True]))
    assert sorted(recent(layer).tolist()) == [0, 1, 2]
    layer(torch.tensor([[3.0], [4.0]]))
    held = recent(layer).tolist()
    assert {3, 4} < set(held)
    assert len({1, 2} & set(held)) == 1
    before = layer.state_dict()["losses.0.recent.rows"].clone()
    layer(torch.ones(2, 1), torch.zeros(2, dtype=torch.bool))
    layer.eval()(torch.ones(2, 1))
    assert torch.equal(before, recent(layer)[:, None])


def test_a_queue_keeps_its_length() -> None:
    layer = layer_of(svq.WassersteinLoss(queue=5), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="`queue` must stay 5"):
        layer.losses[0].queue = 6


def test_of_a_batch_larger_than_the_queue_a_sample_without_repeats_is_held() -> None:
    layer = layer_of(svq.MMDLoss(queue=20), torch.zeros(2, 1))
    layer(torch.arange(100.0)[:, None])
    held = recent(layer)
    assert len(held.unique()) == 20
    assert held.mean() == pytest.approx(49.5, abs=25)


@pytest.mark.parametrize("update", [svq.EMAUpdate, svq.AlternatedUpdate])
@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss, svq.RegionLoss, svq.OrthogonalityLoss])
def test_a_table_that_takes_no_gradient_is_refused_and_its_parts_stay_free(
    kind: type[svq.Loss], update: type[svq.Update]
) -> None:
    loss, book = kind(), svq.Codebook(8, update=update())
    with pytest.raises(ValueError, match=rf"{kind.__name__} .*{update.__name__} and Direct.* Use GradientUpdate"):
        svq.VectorQuantizer(4, book, losses=[loss])
    assert list(loss.buffers()) == []
    layer = svq.VectorQuantizer(4, svq.Codebook(8), losses=[svq.CodebookLoss(), loss])
    layer(torch.randn(9, 4))
    svq.VectorQuantizer(4, book)  # the codebook is free too


@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss, svq.RegionLoss, svq.OrthogonalityLoss])
def test_quantizers_without_a_table_are_refused(kind: type[svq.Loss]) -> None:
    with pytest.raises(ValueError, match=rf"`FiniteScalarQuantizer`: {kind.__name__} looks at the table of codes"):
        svq.FiniteScalarQuantizer(2, [3, 3], losses=[kind()])


def test_a_loss_with_a_queue_has_one_owner() -> None:
    loss = svq.MMDLoss(queue=5)
    first = svq.VectorQuantizer(4, svq.Codebook(8), losses=[loss])
    with pytest.raises(ValueError, match="`MMDLoss`: this instance is already part of another quantizer"):
        svq.VectorQuantizer(4, svq.Codebook(8), losses=[loss])
    assert first(torch.randn(3, 4)).loss.isfinite()


@pytest.mark.parametrize("kind", [svq.WassersteinLoss, svq.MMDLoss])
def test_codes_reach_the_distribution_of_the_embeddings(kind: type[svq.Loss]) -> None:
    torch.manual_seed(0)
    layer = layer_of(kind(weight=1.0, queue=500), torch.randn(32, 2) * 0.1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        layer(torch.randn(64, 2) * torch.tensor([1.0, 2.0]) + 2).loss.backward()
        optimizer.step()
    torch.testing.assert_close(layer.codes().mean(0), torch.full((2,), 2.0), rtol=0, atol=0.3)
    torch.testing.assert_close(layer.codes().std(0), torch.tensor([1.0, 2.0]), rtol=0.25, atol=0)
