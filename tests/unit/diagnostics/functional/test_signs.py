import pytest
import torch

from straightvq.diagnostics.functional import estimating_error, gradient_instability
from straightvq.nn import ReSTE


def normal(n: int = 400_000) -> torch.Tensor:
    """Quantiles of N(0, 0.5^2): what a formula's mean is taken over."""
    p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return 0.5 * 2**0.5 * torch.erfinv(2 * p - 1)


@pytest.mark.parametrize(("power", "error"), [(1, 0.452), (2, 0.236), (3, 0.144), (5, 0.070), (10, 0.022)])
def test_errors_of_normal_values_follow_from_the_formula(power: float, error: float) -> None:
    assert estimating_error(normal(), ReSTE(power).surrogate).item() == pytest.approx(error, abs=6e-4)


def test_error_by_hand_for_any_estimator() -> None:
    z = torch.tensor([0.5, -1.0, 0.0])
    # (1 - .5)^2, 0 and, because the sign of 0 is +1, 1.
    assert estimating_error(z, lambda x: x).item() == pytest.approx(1.25 / 3)
    assert estimating_error(z, torch.tensor([1.0, -1.0, 1.0])).item() == 0
    assert estimating_error(z, torch.tanh).item() == pytest.approx(
        ((1 - z[0].tanh()) ** 2 + (1 - z[1].abs().tanh()) ** 2 + 1).item() / 3
    )
    assert estimating_error(z.half(), torch.tanh).dtype == torch.float32


def test_instability_is_the_variance_of_the_sizes_of_all_gradients() -> None:
    parts = [torch.randn(7, 3), torch.randn(11), torch.zeros(0)]
    together = torch.cat([part.reshape(-1) for part in parts]).abs().double()
    assert gradient_instability(parts).item() == pytest.approx(together.var(correction=0).item())
    assert gradient_instability(torch.tensor([2.0, -2.0])).item() == 0


def test_what_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`z` must hold at least one value"):
        estimating_error(torch.zeros(0), torch.tanh)
    with pytest.raises(ValueError, match=r"`surrogate` must give the shape of `z`, \(3,\). Got \(2,\)"):
        estimating_error(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="`gradients` must hold at least one element"):
        gradient_instability([])
