import pytest
import torch

from straightvq.functional import straight_through


@pytest.mark.parametrize("sync", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_value_is_the_code_to_the_bit_and_gradients_are_g_and_sync_g(dtype: torch.dtype, sync: float) -> None:
    torch.manual_seed(0)
    z = (1e3 * torch.randn(7, 3)).to(dtype).requires_grad_()
    code = (1e-3 * torch.randn(7, 3)).to(dtype).requires_grad_()
    g = torch.randn(7, 3).to(dtype)
    out = straight_through(z, code, sync)
    assert torch.equal(out, code)
    out.backward(g)
    assert z.grad is not None
    assert torch.equal(z.grad, g)
    if sync:
        assert code.grad is not None
        assert torch.equal(code.grad, sync * g)
    else:
        assert code.grad is None


def test_synchronised_update_by_hand() -> None:
    # codes {0, 1}, z = {.2, .9, .8}, g = {1, 2, 3}, nu = .5: code 0 gets .5 * 1, code 1 gets .5 * (2 + 3).
    codes = torch.tensor([[0.0], [1.0]], requires_grad=True)
    z = torch.tensor([[0.2], [0.9], [0.8]], requires_grad=True)
    out = straight_through(z, codes[[0, 1, 1]], 0.5)
    out.backward(torch.tensor([[1.0], [2.0], [3.0]]))
    assert out.flatten().tolist() == [0.0, 1.0, 1.0]
    assert z.grad is not None
    assert codes.grad is not None
    assert z.grad.flatten().tolist() == [1.0, 2.0, 3.0]
    assert codes.grad.flatten().tolist() == [0.5, 2.5]


def test_codes_get_their_share_of_the_gradient_from_a_frozen_encoder_too() -> None:
    code = torch.tensor([[1.0, 2.0]], requires_grad=True)
    straight_through(torch.zeros(1, 2), code, sync=0.5).backward(torch.tensor([[2.0, -4.0]]))
    assert code.grad is not None
    assert code.grad.tolist() == [[1.0, -2.0]]
