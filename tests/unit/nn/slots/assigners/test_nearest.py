import pytest
import torch

import straightvq as svq
from straightvq import Nearest
from straightvq.functional import nearest_code
from straightvq.nn.slots.assigners import base


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_nearest_is_the_function_of_its_distance(distance: str) -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(31, 5), torch.randn(13, 5)
    assert torch.equal(Nearest(distance)(z, codes), nearest_code(z, codes, distance=distance))
    assert repr(Nearest(distance)) == f"Nearest(distance='{distance}')"


def test_distances_differ_where_lengths_do() -> None:
    codes, z = torch.tensor([[1.0, 0.0], [0.0, 9.0]]), torch.tensor([[1.0, 2.0]])
    assert Nearest()(z, codes).item() == 0
    assert Nearest("cosine")(z, codes).item() == 1


def test_the_rule_is_the_same_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    z, codes, rule = torch.randn(31, 5), torch.randn(13, 5), Nearest()
    assert torch.equal(rule.train()(z, codes), rule.eval()(z, codes))


@pytest.mark.parametrize("backend", ["tiled", "faiss"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_layer_asks_for_its_search_by_name(monkeypatch: pytest.MonkeyPatch, distance: str, backend: str) -> None:
    """Whichever searches, the codes are those of float64: forward, evaluation and `encode`."""
    if backend == "faiss":
        pytest.importorskip("faiss")
    asked = []
    monkeypatch.setattr(base, "nearest_code", lambda *a, **k: (asked.append(k["backend"]), nearest_code(*a, **k))[1])
    torch.manual_seed(0)
    assigner = Nearest(distance, backend=backend)
    layer = svq.VectorQuantizer(5, svq.Codebook(130, update=svq.GradientUpdate()), assigner=assigner)
    z = torch.randn(2000, 5)
    want = nearest_code(z.double(), layer.codebook.codes().detach().double(), distance=distance, backend="tiled")
    assert torch.equal(layer(z).indices, want)
    assert torch.equal(layer.eval()(z).indices, want)
    assert torch.equal(layer.encode(z), want)
    assert set(asked) == {backend}
    assert repr(assigner) == f"Nearest(distance={distance!r}, backend={backend!r})"
