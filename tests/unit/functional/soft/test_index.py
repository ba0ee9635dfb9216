from collections.abc import Callable

import pytest
import torch
from tests.reference import estimators as naive
from torch import Tensor

from straightvq.functional.soft import logits as shared
from straightvq.functional.soft.index import gumbel_index, product_index, reinmax_index
from straightvq.functional.soft.logits import Noise, distance_logits


def noise(n: int) -> Noise:
    return Noise(torch.tensor(5), torch.tensor(2), 77, torch.arange(n) + 3)


@pytest.fixture(params=["one tile", "many tiles"], autouse=True)
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        monkeypatch.setattr(shared, "_TILE", 64)


def gradients(
    rule: Callable[[Tensor, Tensor], Tensor], z: Tensor, codes: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    z, codes = z.clone().requires_grad_(), codes.clone().requires_grad_()
    out = rule(z, codes)
    return out.detach(), *torch.autograd.grad(out, [z, codes], g)


def assert_same(mine: Callable[[Tensor, Tensor], Tensor], other: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    z, codes, g = Z + 0.0, CODES + 0.0, torch.randn(N, D, dtype=torch.float64)
    got, wanted = gradients(mine, z, codes, g), gradients(other, z, codes, g)
    assert torch.equal(got[0], codes[INDICES]), "the value is the code to the bit"
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


N, K, D = 67, 9, 4
Z = 3 + torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CODES = 3 + torch.randn(K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
INDICES = torch.randint(K, (N,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("temperature", "softness"), [(1.0, 1.0), (2.5, 0.4), (0.7, 3.0)])
def test_gumbel_is_the_relaxed_sample_of_autograd(temperature: float, softness: float) -> None:
    drawn = noise(N)
    numbers = drawn.tile(slice(None), CODES)
    assert_same(
        lambda z, c: gumbel_index(z, c, INDICES, drawn, temperature=temperature, softness=softness),
        lambda z, c: naive.gumbel(z, c, INDICES, numbers, naive.distance_logits(z, c, temperature), softness),
    )
    assert_same(
        lambda z, c: gumbel_index(z, c, INDICES, None, temperature=temperature, softness=softness),
        lambda z, c: naive.gumbel(z, c, INDICES, 0 * numbers, naive.distance_logits(z, c, temperature), softness),
    )


@pytest.mark.parametrize(("temperature", "softness"), [(1.0, 1.0), (2.5, 1.7)])
def test_reinmax_is_the_surrogate_of_autograd(temperature: float, softness: float) -> None:
    assert_same(
        lambda z, c: reinmax_index(z, c, INDICES, temperature=temperature, softness=softness),
        lambda z, c: naive.reinmax(z, c, INDICES, temperature, softness),
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_product_is_the_dense_index_of_autograd(temperature: float) -> None:
    none = torch.zeros(N, K, dtype=torch.float64)
    assert_same(
        lambda z, c: product_index(z, c, INDICES, temperature=temperature),
        lambda z, c: naive.gumbel(z, c, INDICES, none, z @ c.T / temperature, 1.0),
    )


def test_product_by_hand() -> None:
    # p = softmax(1, 0) = (.7311, .2689); p1 p2 = .1966. G = g C^T = (1, 0): logits get (.1966, -.1966).
    z, codes, g = torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([[1.0, 0.0]])
    out, to_z, to_codes = gradients(lambda z, c: product_index(z, c, torch.tensor([0]), temperature=1.0), z, codes, g)
    assert out.tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(to_z, torch.tensor([[0.1966, -0.1966]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(to_codes, torch.tensor([[1.1966, 0.0], [-0.1966, 0.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("drawn", [0, 1])
def test_reinmax_by_hand(drawn: int) -> None:
    # Equal logits, G = (1, 0): they get (.25, -.25), whichever was drawn. Codes (1, 0) and (0, 1), z = 0:
    # a_k = -|z - c_k|^2, so z gets 2 (.25 c_1 - .25 c_2), and c_k -2 c_k times its logit's.
    z, codes, g = torch.zeros(1, 2), torch.eye(2), torch.tensor([[1.0, 0.0]])
    _, to_z, to_codes = gradients(
        lambda z, c: reinmax_index(z, c, torch.tensor([drawn]), temperature=1.0, softness=1.0), z, codes, g
    )
    torch.testing.assert_close(to_z, torch.tensor([[0.5, -0.5]]))
    wanted = torch.tensor([[-0.5, 0.0], [0.0, 0.5]])
    wanted[drawn] += g[0]
    torch.testing.assert_close(to_codes, wanted)


def test_mean_of_reinmax_over_draws_is_the_exact_gradient_of_a_linear_task() -> None:
    torch.manual_seed(0)
    z, g = torch.randn(1, D, dtype=torch.float64), torch.randn(1, D, dtype=torch.float64)
    p = distance_logits(z, CODES, 2.0).softmax(1)[0]
    every = [
        gradients(lambda z, c, k=k: reinmax_index(z, c, torch.tensor([k]), temperature=2.0, softness=1.0), z, CODES, g)[
            1:
        ]
        for k in range(K)
    ]
    exact = gradients(lambda z, c: naive.distance_logits(z, c, 2.0).softmax(1) @ c, z, CODES, g)[1:]
    for side in (0, 1):
        mean = torch.stack([each[side] * share for each, share in zip(every, p, strict=True)]).sum(0)
        torch.testing.assert_close(mean, exact[side])


def test_masked_places_with_no_gradient_send_none() -> None:
    indices, g = INDICES.clone(), torch.randn(N, D, dtype=torch.float64)
    indices[:9], g[:9] = -1, 0
    masked = gradients(lambda z, c: product_index(z, c, indices, temperature=1.0), Z, CODES, g)
    others = gradients(lambda z, c: product_index(z, c, indices[9:], temperature=1.0), Z[9:], CODES, g[9:])
    assert not masked[1][:9].any()
    torch.testing.assert_close(masked[2], others[2])
