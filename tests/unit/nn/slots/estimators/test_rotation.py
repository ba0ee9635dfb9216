import math

import pytest
import torch
from tests.reference import estimators as naive
from torch import Tensor

import straightvq as svq


def gradient(estimator: svq.Estimator, z: Tensor, code: Tensor, g: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    code = code.clone().requires_grad_()
    out = estimator(z, code)
    assert torch.equal(out, code), "the value is the code to the bit"
    out.backward(g)
    assert code.grad is None
    assert z.grad is not None
    return z.grad


def test_quarter_turn_by_hand() -> None:
    # z = (2, 0), q = (0, 1): R turns by 90 degrees, gain 1/2. R^T (1, 0) = (0, -1).
    z, code = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    got = gradient(svq.RotationTrick(), z, code, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.0, -0.5]]))


@pytest.mark.parametrize(("max_gain", "gain"), [(2.0, 2.0), (None, 5.0), (0.5, 0.5), (7.0, 5.0)])
def test_gain_is_the_ratio_of_lengths_up_to_its_limit(max_gain: float | None, gain: float) -> None:
    z, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(gradient(svq.RotationTrick(max_gain), z, 5 * z, g), gain * g)


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 33])
@pytest.mark.parametrize("max_gain", [None, 1.0])
def test_it_is_the_paper_s_matrix(dim: int, max_gain: float | None) -> None:
    torch.manual_seed(dim)
    z, code, g = (torch.randn(57, dim, dtype=torch.float64) for _ in range(3))
    if dim == 1:
        code = code.abs() * z.sign()  # on a line only the same side is turned; the other is reflected
    x = z.clone().requires_grad_()
    out = naive.rotation(x, code, max_gain)
    out.backward(g)
    if max_gain is None:
        torch.testing.assert_close(out, code)
    torch.testing.assert_close(gradient(svq.RotationTrick(max_gain), z, code, g), x.grad)


def test_angle_between_gradient_and_vector_is_carried_over() -> None:
    torch.manual_seed(0)
    z, code, g = (torch.randn(100, 5, dtype=torch.float64) for _ in range(3))
    got = gradient(svq.RotationTrick(None), z, code, g)
    at_code = torch.cosine_similarity(g, code)
    torch.testing.assert_close(torch.cosine_similarity(got, z), at_code)
    torch.testing.assert_close(got.norm(dim=1), g.norm(dim=1) * code.norm(dim=1) / z.norm(dim=1))


def test_zeros_pass_the_gradient_as_it_is() -> None:
    g = torch.tensor([[3.0, -4.0]])
    zero, one = torch.zeros(1, 2), torch.tensor([[1.0, 2.0]])
    for z, code in ((zero, one), (one, zero), (zero, zero)):
        assert torch.equal(gradient(svq.RotationTrick(), z, code, g), g)
        assert torch.equal(gradient(svq.RotationTrick(None), z, code, g), g)
        assert torch.equal(gradient(svq.RotationTrick(0.5), z, code, g), g)


def test_opposite_vectors_reflect_the_gradient_along_their_line() -> None:
    z, g = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(gradient(svq.RotationTrick(), z, -z, g), torch.tensor([[-3.0, 4.0]]))


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-8, 1e-12])
def test_nearly_opposite_vectors_lengthen_no_gradient(gap: float) -> None:
    torch.manual_seed(0)
    z, g = torch.randn(200, 6), torch.randn(200, 6)
    got = gradient(svq.RotationTrick(None), z, -z + gap * torch.randn(200, 6), g)
    torch.testing.assert_close(got.norm(dim=1), g.norm(dim=1), rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e14])
def test_tiny_and_large_vectors_turn_as_others_do(size: float) -> None:
    torch.manual_seed(0)
    z, code, g = (torch.randn(9, 4) for _ in range(3))
    wanted = gradient(svq.RotationTrick(), z, code, g)
    torch.testing.assert_close(gradient(svq.RotationTrick(), size * z, size * code, g), wanted)
    assert gradient(svq.RotationTrick(None), 1e-30 * z, 1e14 * code, g).isnan().sum() == 0


def test_printed_and_set() -> None:
    part = svq.RotationTrick()
    assert repr(part) == "RotationTrick(max_gain=2.0)"
    part.max_gain = None
    with pytest.raises(ValueError, match="`max_gain` must be a finite number"):
        part.max_gain = math.inf
    assert part.max_gain is None
