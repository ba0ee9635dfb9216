import pytest
import torch

from straightvq import StraightThrough
from straightvq.functional import straight_through


@pytest.mark.parametrize("sync", [0.0, 0.7])
def test_estimator_is_the_function_in_both_modes(sync: float) -> None:
    torch.manual_seed(0)
    for mode in (True, False):
        z, code = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
        out = StraightThrough(sync).train(mode)(z, code)
        assert torch.equal(out, straight_through(z, code, sync))
        assert torch.equal(out, code)


def test_codes_are_trained_only_by_a_positive_sync() -> None:
    assert not StraightThrough().trains_codes
    assert StraightThrough(0.01).trains_codes
    assert repr(StraightThrough(0.5)) == "StraightThrough(sync=0.5)"
