import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import straightvq as svq
from straightvq.models import BinaryConv2d


def signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def case(estimator: svq.Estimator | None, stride: int = 1) -> tuple[BinaryConv2d, Tensor, Tensor]:
    torch.manual_seed(0)
    conv = BinaryConv2d(2, 3, stride=stride, estimator=estimator).double()
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    size = conv(x).shape
    return conv, x, torch.randn(size, dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
def test_value_is_the_convolution_of_signs_scaled_by_the_mean_absolute_weight(stride: int) -> None:
    conv, x, _ = case(None, stride)
    weight = signs(conv.weight) * torch.stack([w.abs().mean() for w in conv.weight])[:, None, None, None]
    torch.testing.assert_close(conv(x), F.conv2d(signs(x), weight, stride=stride, padding=1))
    assert conv(x).shape == (2, 3, -(-5 // stride), -(-4 // stride))


def test_sign_of_zero_is_plus_one_for_weights_and_inputs() -> None:
    conv = BinaryConv2d(1, 1, kernel_size=1)
    conv.weight.data.fill_(0.5)
    assert conv(torch.zeros(1, 1, 1, 1)).item() == 0.5
    conv = BinaryConv2d(1, 2, kernel_size=1)
    conv.weight.data.copy_(torch.tensor([0.0, -2.0])[:, None, None, None])
    assert conv(torch.ones(1, 1, 1, 1)).flatten().tolist() == [0.0, -2.0]


@pytest.mark.parametrize(
    "estimator", [svq.StraightThrough(), svq.ReSTE(3.0), svq.ErrorDecay(4.0)], ids=lambda part: type(part).__name__
)
def test_gradients_pass_both_signs_by_the_estimator_and_the_scale_besides(estimator: svq.Estimator) -> None:
    conv, x, grad = case(estimator)
    conv(x).backward(grad)
    # The naive way: gradients of a convolution of numbers, then the chain rule by hand.
    scale = conv.weight.detach().abs().mean((1, 2, 3), keepdim=True)
    a, w = signs(x.detach()).requires_grad_(), (scale * signs(conv.weight.detach())).requires_grad_()
    F.conv2d(a, w, padding=1).backward(grad)

    def factor(z: Tensor) -> Tensor:
        return estimator.factor(z) if isinstance(estimator, svq.SignEstimator) else torch.ones_like(z)

    assert a.grad is not None
    assert w.grad is not None
    torch.testing.assert_close(x.grad, a.grad * factor(x.detach()))
    weight = conv.weight.detach()
    through_scale = (w.grad * signs(weight)).sum((1, 2, 3), keepdim=True) * weight.sign() / weight[0].numel()
    torch.testing.assert_close(conv.weight.grad, w.grad * scale * factor(weight) + through_scale)


def test_without_codes_it_is_the_convolution_of_continuous_numbers() -> None:
    conv, x, _ = case(svq.ReSTE())
    with svq.bypass(conv):
        scale = conv.weight.abs().mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(conv(x), F.conv2d(x, scale * conv.weight, padding=1))


def test_weights_can_be_stored_as_one_bit() -> None:
    conv, _, _ = case(None)
    bits = conv.weight_signs.encode(conv.weight[..., None])
    assert set(bits.unique().tolist()) <= {0, 1}
    assert torch.equal(conv.weight_signs.decode(bits)[..., 0].double(), signs(conv.weight))


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"in_channels": 0}, ValueError, "`in_channels` must be an integer >= 1. Got 0"),
        ({"out_channels": 2.5}, TypeError, "`out_channels` must be an integer >= 1"),
        ({"kernel_size": 2}, ValueError, "`kernel_size` must be odd. Got 2"),
        ({"kernel_size": 0}, ValueError, "`kernel_size` must be an integer >= 1"),
        ({"stride": 0}, ValueError, "`stride` must be an integer >= 1"),
        ({"estimator": svq.ReSTE}, TypeError, "write ReSTE()"),
        ({"estimator": svq.Gumbel()}, ValueError, "looks at the table of codes"),
    ],
)
def test_impossible_arguments_are_refused(given: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        BinaryConv2d(**({"in_channels": 2, "out_channels": 2} | given))
    assert words in str(caught.value)
