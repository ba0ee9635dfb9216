"""What is reported of a quantizer that is followed."""

import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.diagnostics.following import Followed, follow
from straightvq.diagnostics.sums import Window

PRESETS = [
    svq.presets.ema(8, 16),
    svq.presets.straight(16, 16, codebook_dim=4),
    svq.presets.fsq(8, [5, 5]),
    svq.presets.lfq(8, 3),
    svq.presets.bsq(8, 3),
    svq.presets.best_rq(8, 16),
]


@pytest.mark.parametrize("quantizer", PRESETS, ids=lambda quantizer: type(quantizer).__name__)
def test_vectors_have_the_stated_width_with_and_without_a_codebook(quantizer: svq.Quantizer) -> None:
    def seen(followed: Followed, z: Tensor, code: Tensor, indices: Tensor) -> None:
        assert z.shape == code.shape == (5, followed.dim)
        window.add(z, code, indices)

    (followed,) = follow(quantizer, seen)
    window = Window(followed, torch.device("cpu"))
    quantizer(torch.randn(5, quantizer.dim))
    values, counts = window.close()
    assert int(counts.sum()) == 5
    assert 0 < values["usage"] <= 1
