import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.functional import nearest_code, nearest_codes, nearest_few


def naive(z: Tensor, codes: Tensor, k: int, distance: str) -> tuple[Tensor, Tensor]:
    if distance == "cosine":
        z, codes = (x / x.norm(dim=1, keepdim=True) for x in (z, codes))
        distances = 1 - z @ codes.T
    else:
        distances = (z[:, None] - codes).norm(dim=2)
    values, indices = distances.sort(dim=1, stable=True)
    return values[:, :k], indices[:, :k]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 300, 1000])
def test_distances_and_indices_are_those_of_all_codes_sorted(k: int, distance: str) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(40, 6), torch.randn(300, 6)
    distances, indices = nearest_codes(z, codes, k, distance=distance)
    want, places = naive(z.double(), codes.double(), k, distance)
    assert torch.equal(indices, places)
    torch.testing.assert_close(distances, want.float())
    assert torch.equal(nearest_few(z, codes, k, distance=distance), indices)
    assert torch.equal(indices[:, 0], nearest_code(z, codes, distance=distance))


def test_ties_go_to_the_lowest_index() -> None:
    codes = torch.tensor([[1.0], [-1.0], [1.0], [0.0], [-1.0], [5.0]])
    distances, indices = nearest_codes(torch.zeros(1, 1), codes, 4)
    assert indices.tolist() == [[3, 0, 1, 2]]
    assert distances.tolist() == [[0, 1, 1, 1]]
    equal = torch.cat([9 + torch.rand(100, 1), torch.zeros(4, 1), 9 + torch.rand(100, 1)])
    assert nearest_codes(torch.ones(1, 1), equal, 3)[1].tolist() == [[100, 101, 102]]


def test_vectors_and_codes_of_length_0_are_at_a_right_angle_to_all() -> None:
    z, codes = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    distances, indices = nearest_codes(z, codes, 3, distance="cosine")
    torch.testing.assert_close(distances, torch.tensor([[1.0, 1, 1], [0, 1, 2]]))
    assert indices[1].tolist() == [1, 0, 2]


def test_half_precision_gives_float32_and_nothing_gives_nothing() -> None:
    distances, indices = nearest_codes(torch.randn(3, 2).half(), torch.randn(9, 2).half(), 2)
    assert distances.dtype == torch.float32
    assert [x.shape for x in nearest_codes(torch.zeros(0, 2), torch.randn(9, 2), 2)] == [(0, 2)] * 2
    assert indices.shape == (3, 2)


@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_a_layer_gives_them_in_the_layout_of_its_input(channel_dim: int) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(6, svq.Codebook(20), transform=svq.Projection(3), channel_dim=channel_dim)
    z = torch.randn(2, 4, 5, 6)
    mask = torch.rand(2, 4, 5) > 0.3
    given = z.movedim(-1, channel_dim)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    distances, indices = layer.nearest(given, 3, mask)
    assert distances.shape == indices.shape == (2, 4, 5, 3)
    assert torch.equal(indices[..., 0], layer.encode(given, mask))
    assert (indices[~mask] == -1).all()
    assert (distances[~mask] == torch.inf).all()
    want, places = nearest_codes(layer.transform(z[mask]), layer.codes(), 3)
    assert torch.equal(indices[mask], places)
    torch.testing.assert_close(distances[mask], want)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in before.items())


def test_a_layer_goes_by_the_distance_of_its_assigner() -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(2), assigner=svq.Nearest("cosine"))
    layer.set_codes(torch.tensor([[1.0, 0.0], [0.0, 9.0]]))
    assert layer.nearest(torch.tensor([1.0, 2.0]), 1)[1].tolist() == [1]


def test_it_compiles() -> None:
    layer = svq.VectorQuantizer(4, svq.Codebook(20)).eval()
    compiled = torch.compile(layer.nearest, fullgraph=True, backend="aot_eager")
    z = torch.randn(5, 4)
    for got, want in zip(compiled(z, 3), layer.nearest(z, 3), strict=True):
        assert torch.equal(got, want)
