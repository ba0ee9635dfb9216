import pytest
import torch

from straightvq import Identity, Projection, UnitNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identity_returns_its_argument(dtype: torch.dtype) -> None:
    z = torch.randn(3, 5, dtype=dtype)
    assert Identity()(z) is z
    assert Identity().inverse(z) is z
    assert Identity().codebook_dim(5) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_is_two_linear_maps(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    p = Projection(3)
    p.bind(7)
    assert p.codebook_dim(7) == 3
    z, code = torch.randn(5, 7, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    down = z @ p.down.weight.to(dtype).T + p.down.bias.to(dtype)
    up = code @ p.up.weight.to(dtype).T + p.up.bias.to(dtype)
    torch.testing.assert_close(p(z), down)
    torch.testing.assert_close(p.inverse(code), up)


@pytest.mark.parametrize(("dim", "width"), [(64, 8), (8, 8), (8, 64)])
def test_projection_starts_with_maps_that_keep_the_mean_square_of_a_coordinate(dim: int, width: int) -> None:
    torch.manual_seed(0)
    p = Projection(width)
    p.bind(dim)
    z, code = torch.randn(4096, dim), torch.randn(4096, width)
    assert p(z).square().mean().item() == pytest.approx(1, rel=0.05)
    assert p.inverse(code).square().mean().item() == pytest.approx(1, rel=0.05)
    # Down and up again is the projection onto `width` directions, and as long again as that shortens it.
    there_and_back = p.inverse(p(torch.eye(dim)))
    scale = max(dim / width, width / dim) ** 0.5
    torch.testing.assert_close(there_and_back @ there_and_back, scale * there_and_back)
    assert there_and_back.trace().item() == pytest.approx(scale * min(dim, width), rel=1e-4)


def test_projection_starts_over_with_both_maps() -> None:
    p = Projection(3)
    p.bind(7)
    for parameter in p.parameters():
        torch.nn.init.ones_(parameter)
    for module in p.modules():  # as a network does that was made on the meta device
        module.reset_parameters()
    torch.testing.assert_close(p.down.weight @ p.down.weight.T, torch.eye(3))
    torch.testing.assert_close(p.up.weight, (7 / 3) ** 0.5 * p.down.weight.T)
    assert not p.down.bias.any()
    assert not p.up.bias.any()


def test_projection_takes_no_sizes_before_it_is_bound() -> None:
    p = Projection(3)
    assert list(p.parameters()) == []
    p.bind(4)
    with pytest.raises(ValueError, match="already part"):
        p.bind(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_norm_value_and_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = (5 * torch.randn(7, 3, dtype=dtype)).requires_grad_()
    g = torch.randn(7, 3, dtype=dtype)
    out = UnitNorm()(z)
    out.backward(g)
    length = z.detach().square().sum(1, keepdim=True).sqrt()
    unit = z.detach() / length
    torch.testing.assert_close(out, unit)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, (g - unit * (unit * g).sum(1, keepdim=True)) / length)
    assert UnitNorm().inverse(z) is z


def test_unit_norm_of_zero_is_zero_without_a_gradient() -> None:
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-30, 0.0]], requires_grad=True)
    out = UnitNorm()(z)
    (out * torch.tensor([5.0, 0.0])).sum().backward()
    torch.testing.assert_close(out.detach(), torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0]]))
    # d(5 x / |z|) = 5 (1 / |z| - x^2 / |z|^3, -x y / |z|^3)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, torch.tensor([[0.0, 0.0], [0.64, -0.48], [0.0, 0.0]]))
