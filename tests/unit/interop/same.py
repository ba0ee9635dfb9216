"""What the tests of importers share: the same indices wherever the margin is more than rounding, the same decode."""

import torch
from torch import Tensor

import straightvq as svq


def decided(z: Tensor, codes: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Rows whose nearest and second nearest code differ by more than rounding, in float64, Bool (n,)."""
    distances = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest, second = distances.topk(2, largest=False).values.unbind(1)
    return second - nearest > tolerance


def assert_same_codes(quantizer: svq.Quantizer, z: Tensor, indices: Tensor, quantized: Tensor) -> None:
    """The layer, in evaluation, gives for ``z`` what the library gave."""
    quantizer.eval()
    assert torch.equal(quantizer.encode(z), indices)
    torch.testing.assert_close(quantizer(z).quantized, quantized, rtol=0, atol=1e-6)
    torch.testing.assert_close(quantizer.decode(indices), quantized, rtol=0, atol=1e-6)
