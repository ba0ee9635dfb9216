import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.functional.entropy import bit_entropy, bit_usage, entropy, soft_usage
from straightvq.functional.soft import logits


def naive_bits(logits: Tensor) -> Tensor:
    """Probability of every combination (n, 2^g), one by one; bit i has the weight 2^i."""
    p = logits.sigmoid()
    columns = []
    for code in range(1 << logits.shape[1]):
        factors = [p[:, bit] if code >> bit & 1 else 1 - p[:, bit] for bit in range(logits.shape[1])]
        columns.append(torch.stack(factors).prod(0))
    return torch.stack(columns, 1)


def naive_soft(z: Tensor, codes: Tensor, temperature: float) -> Tensor:
    return (-(z[:, None] - codes).square().sum(2) / temperature).softmax(1)


def plain_entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-300).log()).sum(-1)


@pytest.fixture(params=["one tile", "many tiles"])
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        monkeypatch.setattr(logits, "_TILE", 64)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("bits", [1, 2, 3, 7, 10])
def test_bit_usage_is_the_sum_of_products_in_values_and_gradients(bits: int) -> None:
    torch.manual_seed(0)
    weight = (torch.rand(63) > 0.3).double()
    by_usage = torch.randn(1 << bits).double()
    logits = [torch.randn(63, bits).double().mul(3).requires_grad_() for _ in range(2)]
    logits[1].data.copy_(logits[0])
    got, want = bit_usage(logits[0], weight), weight @ naive_bits(logits[1])
    torch.testing.assert_close(got, want)
    (by_usage * got).sum().backward()
    (by_usage * want).sum().backward()
    torch.testing.assert_close(logits[0].grad, logits[1].grad)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_soft_usage_is_the_sum_of_softmaxes_in_values_and_gradients(temperature: float) -> None:
    torch.manual_seed(0)
    weight = (torch.rand(100) > 0.3).double()
    by_usage = torch.randn(9).double()
    inputs = [(torch.randn(100, 4).double().requires_grad_(), torch.randn(9, 4).double().requires_grad_())]
    inputs.append(tuple(x.detach().clone().requires_grad_() for x in inputs[0]))
    total, usage = soft_usage(*inputs[0], weight, temperature)
    p = naive_soft(*inputs[1], temperature)
    torch.testing.assert_close(total, weight @ plain_entropy(p))
    torch.testing.assert_close(usage, weight @ p)
    (2 * total + by_usage @ usage).backward()
    (2 * weight @ plain_entropy(p) + by_usage @ (weight @ p)).backward()
    for mine, other in zip(*inputs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_soft_usage_keeps_its_digits_far_from_the_origin() -> None:
    z, codes = torch.randn(50, 4), torch.randn(9, 4)
    near = soft_usage(z, codes, torch.ones(50), 1.0)
    # 2^13 is added and taken away without rounding more than the inputs themselves.
    z, codes = ((x * 1024).round() / 1024 for x in (z, codes))
    near = soft_usage(z, codes, torch.ones(50), 1.0)
    far = soft_usage(z + 8192, codes + 8192, torch.ones(50), 1.0)
    for mine, other in zip(near, far, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


def test_gradients_pass_gradcheck() -> None:
    z, codes = torch.randn(5, 3).double().requires_grad_(), torch.randn(4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, c: soft_usage(z, c, torch.ones(5).double(), 0.7), (z, codes))
    assert torch.autograd.gradcheck(lambda x: bit_usage(x, torch.ones(5).double()), (z,))


def test_bit_entropy_by_hand_and_far_out() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 30.0, -30.0, 200.0], requires_grad=True)
    got = bit_entropy(logits)
    exact = logits.detach().double()
    p = exact.sigmoid()
    want = -(p * F.logsigmoid(exact) + torch.sigmoid(-exact) * F.logsigmoid(-exact))
    torch.testing.assert_close(got.double()[:5], want[:5], rtol=1e-5, atol=0)
    assert got[5] == 0
    got.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:3].double(), (-exact * p * (1 - p))[:3])
    assert logits.grad.isfinite().all()


def test_entropy_of_nothing_and_of_a_certain_code_is_zero_with_a_finite_gradient() -> None:
    for shares in (torch.zeros(4), torch.eye(4)[0]):
        shares.requires_grad_()
        entropy(shares).backward()
        assert entropy(shares) == 0
        assert shares.grad is not None
        assert shares.grad.isfinite().all()


def test_no_matrix_of_vectors_times_codes_is_made_for_18_bits() -> None:
    """2^18 codes and 4,096 vectors: the largest tensor of forward and backward is that of the shares."""
    from straightvq.testing.laws.evaluation import _Largest

    logits = torch.randn(4096, 18, requires_grad=True)
    with _Largest() as largest:
        entropy(bit_usage(logits, torch.ones(4096)) / 4096).backward()
    assert largest.numel <= 1 << 18


def test_usage_of_18_bits_is_that_of_the_combinations_that_were_looked_up() -> None:
    logits = torch.randn(40, 18).double()
    usage = bit_usage(logits, torch.ones(40).double())
    p = logits.sigmoid()
    for code in (0, 1, 0b10, 0b101010101010101010, (1 << 18) - 1):
        bits = torch.tensor([code >> bit & 1 for bit in range(18)], dtype=torch.bool)
        torch.testing.assert_close(usage[code], torch.where(bits, p, 1 - p).prod(1).sum())
    torch.testing.assert_close(usage.sum(), torch.tensor(40.0).double())


def test_no_vectors_give_zeros() -> None:
    for bits, codes in itertools.product((1, 4), (2, 3)):
        x = torch.zeros(0, bits, requires_grad=True)
        bit_usage(x, torch.zeros(0)).sum().backward()
        assert x.grad is not None
        total, usage = soft_usage(torch.zeros(0, bits), torch.randn(codes, bits), torch.zeros(0), 1.0)
        assert total == 0
        assert not usage.any()
