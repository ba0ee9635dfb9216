import pytest
import torch
from tests.reference import estimators as naive
from torch import Tensor

import straightvq as svq
from straightvq.testing.ranks import Ranks


def gradient(z: Tensor, codes: Tensor, indices: Tensor, g: Tensor) -> Tensor:
    z, code = z.clone().requires_grad_(), codes[indices.clamp(min=0)]
    out = svq.DynamicStraightThrough()(z, code, svq.Context(codes, indices, None))
    assert torch.equal(out, code)
    out.backward(g)
    assert z.grad is not None
    return z.grad


def test_factors_by_hand() -> None:
    # Squared distances 1 and 4 to the first code, 9 to the second: factors 1, 1/4, 1.
    z, codes = torch.tensor([[1.0], [2.0], [13.0]]), torch.tensor([[0.0], [10.0]])
    got = gradient(z, codes, torch.tensor([0, 0, 1]), torch.tensor([[8.0], [8.0], [8.0]]))
    assert got.tolist() == [[8.0], [2.0], [8.0]]


def test_vectors_on_their_code_get_all_and_the_others_nothing() -> None:
    z, codes = torch.tensor([[0.0], [2.0], [0.0]]), torch.tensor([[0.0], [10.0]])
    assert gradient(z, codes, torch.tensor([0, 0, 0]), torch.ones(3, 1)).tolist() == [[1.0], [0.0], [1.0]]


def test_masked_vectors_damp_nobody() -> None:
    z, codes = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[0.0], [10.0]])
    assert gradient(z, codes, torch.tensor([-1, 0, 0]), torch.ones(3, 1))[1:].tolist() == [[1.0], [0.25]]


def test_it_is_the_paper_s_formula() -> None:
    torch.manual_seed(0)
    z, codes, g = (torch.randn(n, 3, dtype=torch.float64) for n in (40, 7, 40))
    indices = svq.functional.nearest_code(z, codes)
    x = z.clone().requires_grad_()
    naive.dynamic(x, codes[indices], indices).backward(g)
    torch.testing.assert_close(gradient(z, codes, indices, g), x.grad)


@pytest.mark.parametrize("masked", [False, True])
def test_ranks_compare_with_the_nearest_vector_of_all(masked: bool) -> None:
    torch.manual_seed(0)
    z = torch.randn(40, 3)
    mask = torch.arange(40) % 3 != 0 if masked else torch.ones(40, dtype=torch.bool)
    cuts = (slice(0, 25), slice(25, 40))
    layers = [svq.VectorQuantizer(3, svq.Codebook(4), estimator=svq.DynamicStraightThrough()) for _ in range(3)]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())

    def gradients(layer: svq.VectorQuantizer, rows: slice) -> Tensor:
        x = z[rows].clone().requires_grad_()
        layer(x, mask[rows]).quantized.sum().backward()
        assert x.grad is not None
        return x.grad

    alone = gradients(layers[2], slice(None))
    torch.testing.assert_close(torch.cat(Ranks(2).run(lambda rank: gradients(layers[rank], cuts[rank]))), alone)
    assert (alone < 0.99).any()
