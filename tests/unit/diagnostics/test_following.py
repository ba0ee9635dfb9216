"""What is reported of a quantizer that is followed."""

import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.diagnostics.following import Followed, follow, outermost
from straightvq.diagnostics.sums import Totals, Window

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


def test_several_fixed_codebooks_of_one_quantizer_are_told_apart() -> None:
    seen: dict[str, Tensor] = {}
    quantizer = svq.RandomProjectionQuantizer(8, 16, 4, num_codebooks=2)
    followed = follow(quantizer, lambda each, z, code, indices: seen.update({each.name: indices}))
    indices = quantizer(torch.randn(50, 8)).indices
    assert [each.name for each in followed] == ["RandomProjectionQuantizer.0", "RandomProjectionQuantizer.1"]
    for column, each in enumerate(followed):
        assert torch.equal(seen[each.name], indices[:, column])


def test_the_outermost_quantizers_are_parts_of_no_other() -> None:
    inner = svq.ProductQuantizer(4, [svq.presets.ema(2, 8) for _ in range(2)])
    one, other = svq.ResidualQuantizer(4, [inner, svq.presets.fsq(4, [3, 3])]), svq.presets.lfq(4, 4)
    assert outermost(torch.nn.ModuleList([one, torch.nn.Linear(4, 4), other])) == {"0": one, "2": other}
    assert outermost(inner) == {"": inner}


def test_codes_that_are_too_many_to_be_counted_leave_the_other_values() -> None:
    quantizer, cpu = svq.presets.lfq(8, 40), torch.device("cpu")
    (followed,) = follow(quantizer, lambda each, *passed: (window.add(*passed), totals.add(*passed, each.codes())))
    assert (followed.size, followed.num_counters) == (1 << 40, 0)
    window, totals = Window(followed, cpu), Totals(followed, cpu)
    assert totals.compute() == {}
    z = torch.randn(50, 8)
    quantizer(z)
    x, code = quantizer.transform(z).detach(), quantizer.transform(z).detach().sign()
    error = float((x - code).square().sum() / (x - x.mean(0)).square().sum())
    values, counts = window.close()
    assert values == pytest.approx({"commitment": float((x - code).square().mean()), "error": error}, rel=1e-5)
    assert len(counts) == len(totals.counts) == 0
    assert {name: float(value) for name, value in totals.compute().items()} == pytest.approx({"error": error}, rel=1e-5)
