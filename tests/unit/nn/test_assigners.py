import pytest
import torch

from straightvq import Nearest
from straightvq.functional import nearest_code


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
