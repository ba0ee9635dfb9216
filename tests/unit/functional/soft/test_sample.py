import pytest
import torch
from tests.reference import estimators as naive

from straightvq.functional.soft import logits as shared
from straightvq.functional.soft.logits import Noise
from straightvq.functional.soft.sample import sample_code


def noise(rows: torch.Tensor, step: int = 0) -> Noise:
    return Noise(torch.tensor(3), torch.tensor(step), 11, rows)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_codes_are_drawn_with_the_probabilities_of_the_softmax(temperature: float) -> None:
    n, codes = 60_000, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    z = torch.tensor([[0.3, 0.4]]).expand(n, 2)
    shares = torch.bincount(sample_code(z, codes, temperature, noise(torch.arange(n))), minlength=3) / n
    wanted = naive.distance_logits(z[:1], codes, temperature).softmax(1)[0]
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.01)


@pytest.mark.parametrize("tile", [64, 1 << 16])
def test_it_is_the_largest_noisy_logit_in_tiles_of_any_size(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(shared, "_TILE", tile)
    torch.manual_seed(0)
    z, codes = 5 + torch.randn(300, 4, dtype=torch.float64), 5 + torch.randn(17, 4, dtype=torch.float64)
    drawn = noise(torch.arange(300))
    noisy = naive.distance_logits(z, codes, 2.0) + drawn.tile(slice(None), codes)
    assert torch.equal(sample_code(z, codes, 2.0, drawn), noisy.argmax(1))


def test_a_vector_draws_by_its_number_and_step() -> None:
    z, codes, rows = torch.randn(200, 3), torch.randn(8, 3), torch.arange(200)
    whole = sample_code(z, codes, 3.0, noise(rows))
    assert torch.equal(sample_code(z[50:], codes, 3.0, noise(rows[50:])), whole[50:])
    assert not torch.equal(sample_code(z, codes, 3.0, noise(rows, step=1)), whole)


def test_far_from_the_origin_distances_keep_their_digits() -> None:
    torch.manual_seed(0)
    z, codes = torch.randn(500, 4).round(decimals=2), torch.randn(9, 4).round(decimals=2)
    rows = torch.arange(500)
    near = sample_code(z, codes, 1.0, noise(rows))
    far = sample_code(z + 1024, codes + 1024, 1.0, noise(rows))
    assert (near == far).float().mean() > 0.99


def test_no_vectors_draw_nothing() -> None:
    assert sample_code(torch.zeros(0, 3), torch.zeros(4, 3), 1.0, noise(torch.arange(0))).shape == (0,)
