"""What is measured of a quantizer with its parts, against numbers worked out by hand."""

import math
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.analysis.subject import Measurement, Passed, Subject
from straightvq.diagnostics.following import Followed

CPU = torch.device("cpu")


class Task(lightning.LightningModule):
    def __init__(self, *quantizers: svq.Quantizer) -> None:
        super().__init__()
        self.quantizers = torch.nn.ModuleList(quantizers).eval()


def layer(codes: list[list[float]]) -> svq.VectorQuantizer:
    made = svq.VectorQuantizer(len(codes[0]), svq.Codebook(len(codes)))
    made.set_codes(torch.tensor(codes))
    return made


def measured(quantizer: svq.Quantizer, *batches: Tensor, share: int = 100) -> dict[str, Measurement]:
    passed: dict[Followed, Passed] = {}
    with Subject(Task(quantizer), lambda each, *seen: passed[each].add(*seen)) as subject:
        passed |= {each: Passed(each, CPU, share=share, seed=0) for each in subject.followed.values()}
        for batch in batches:
            quantizer(batch)
        return {name: passed[each].measure(7) for name, each in subject.followed.items()}


def numbers(measurement: Measurement, *names: str) -> list[float]:
    return [float(measurement.values[name]) for name in names]


def test_a_residual_level_is_measured_on_what_the_levels_before_have_left() -> None:
    # Level 0 takes 0, 0, 4, 4 and leaves 1, -1, 1, -1; the vectors have mean 2 and variance 5.
    quantizer = svq.ResidualQuantizer(1, [layer([[0.0], [4.0]]), layer([[-1.0], [1.0], [9.0]])])
    found = measured(quantizer, torch.tensor([[1.0], [-1.0]]), torch.tensor([[5.0], [3.0]]))
    assert list(found) == ["", "level 0", "level 1"]
    assert all(each.vectors == 4 for each in found.values())
    first, second = found["level 0"], found["level 1"]
    assert numbers(first, "usage", "perplexity", "error") == pytest.approx([1.0, 2.0, 1 / 5])
    assert numbers(second, "usage", "perplexity", "error") == pytest.approx([2 / 3, 2.0, 0.0])
    assert numbers(first, "codes_used", "dead_codes") == [2, 0]
    assert numbers(second, "codes_used", "dead_codes") == [2, 1]
    # Codes 0, 4: mean 2, deviation 2, beside 2 and sqrt 5. Codes -1, 1, 9: mean 3, beside 0 and deviation 1.
    assert numbers(first, "mean_distance", "wasserstein", "wasserstein_full") == pytest.approx(
        [0.0, (math.sqrt(5) - 2) / math.sqrt(5), (math.sqrt(5) - 2) / math.sqrt(5)], abs=1e-6
    )
    assert numbers(second, "mean_distance") == pytest.approx([3.0])
    assert second.snapshot is not None
    assert (second.snapshot.step, second.snapshot.z.flatten().tolist()) == (7, [1.0, -1.0, 1.0, -1.0])
    assert second.snapshot.counts.tolist() == [2, 2, 0]


def test_the_whole_of_a_residual_quantizer_has_the_error_of_all_levels_and_no_codes() -> None:
    quantizer = svq.ResidualQuantizer(1, [layer([[0.0], [4.0]]), layer([[0.5], [9.0]])])
    whole = measured(quantizer, torch.tensor([[1.0], [-1.0], [5.0], [3.0]]))[""]
    # What is left: 0.5, -1.5, 0.5, -1.5; squares 0.25 and 2.25, over the variance 5.
    assert whole.values.keys() == {"error", "effective_dimension"}
    assert numbers(whole, "error", "effective_dimension") == pytest.approx([1.25 / 5, 1.0])
    assert whole.snapshot is None


def test_a_group_is_measured_on_its_channels() -> None:
    groups = [layer([[0.0], [2.0]]), layer([[0.0], [10.0]])]
    found = measured(svq.ProductQuantizer(2, groups), torch.tensor([[0.5, 0.0], [1.5, 0.0], [-0.5, 0.0], [2.5, 10.0]]))
    # Group 0 misses 0.5 everywhere, and has variance 1.25; group 1 misses nothing, and has variance 18.75.
    assert numbers(found["group 0"], "error", "usage", "perplexity") == pytest.approx([0.25 / 1.25, 1.0, 2.0])
    shares = [3 / 4, 1 / 4]
    uneven = math.exp(-sum(share * math.log(share) for share in shares))
    assert numbers(found["group 1"], "error", "usage", "perplexity") == pytest.approx([0.0, 1.0, uneven])
    assert numbers(found[""], "error") == pytest.approx([0.25 / 20])


def vq() -> svq.VectorQuantizer:
    return svq.presets.vq_vae(2, 4)


def product() -> svq.ProductQuantizer:
    return svq.ProductQuantizer(4, [vq(), vq()])


@pytest.mark.parametrize(
    ("quantizer", "names"),
    [
        (vq(), [""]),
        (svq.presets.fsq(2, [3, 3]), [""]),
        (svq.ResidualQuantizer(2, vq(), num_quantizers=3), ["", "all levels"]),
        (svq.ProductQuantizer(4, vq(), num_groups=2), ["", "all groups"]),
        (
            svq.ResidualQuantizer(4, [product(), svq.presets.lfq(4, 4)]),
            ["", "level 0, group 0", "level 0, group 1", "level 1"],
        ),
        (
            svq.ProductQuantizer(4, [svq.ResidualQuantizer(2, [vq(), vq()]) for _ in range(2)]),
            ["", "group 0, level 0", "group 0, level 1", "group 1, level 0", "group 1, level 1"],
        ),
        (svq.RandomProjectionQuantizer(2, 4, 2, num_codebooks=2), ["", "codebook 0", "codebook 1"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, svq.Quantizer) else "",
)
def test_parts_are_called_by_where_they_are(quantizer: svq.Quantizer, names: list[str]) -> None:
    found = measured(quantizer, torch.randn(20, quantizer.dim))
    assert list(found) == names
    assert [name for name in found if found[name].snapshot is None] == [""] * quantizer.is_composite


def test_a_shared_codebook_is_measured_on_what_all_levels_give_it() -> None:
    quantizer = svq.ResidualQuantizer(1, layer([[4.0], [1.0], [0.0]]), num_quantizers=2)
    found = measured(quantizer, torch.tensor([[5.0], [4.0], [1.0]]))["all levels"]
    # It is given 5, 4, 1 and then 1, 0, 0, whose squared deviations add up to 43 - 11^2 / 6; it misses 5 by 1.
    assert found.vectors == 6
    assert numbers(found, "perplexity", "error") == pytest.approx([3.0, 1 / (43 - 121 / 6)])


def test_without_a_codebook_there_are_no_distances_and_the_codes_are_those_of_the_grid() -> None:
    found = measured(svq.presets.fsq(2, [3, 2]), torch.randn(50, 2))[""]
    distances = {"mean_distance", "std_distance", "wasserstein", "wasserstein_full", "symmetric_kl"}
    assert not distances & found.values.keys()
    assert {"usage", "perplexity", "error", "effective_dimension"} <= found.values.keys()
    assert found.snapshot is not None
    assert sorted(found.snapshot.codes.tolist()) == [[x, y] for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0)]
    assert int(found.snapshot.counts.sum()) == 50


def test_of_more_codes_than_can_be_counted_those_that_were_taken_are_shown() -> None:
    z = torch.tensor([[3.0, -1.0], [2.0, -5.0], [-1.0, -1.0]]).repeat(1, 20)
    found = measured(svq.LookupFreeQuantizer(40, 40), z)[""]
    assert not {"usage", "perplexity", "codes_used"} & found.values.keys()
    assert found.snapshot is not None
    assert (found.snapshot.size, found.snapshot.counts.tolist()) == (1 << 40, [1, 2])
    assert found.snapshot.codes[:, :2].tolist() == [[-1.0, -1.0], [1.0, -1.0]]


def test_vectors_that_are_kept_are_a_share_of_each_call_and_the_same_every_time() -> None:
    batches = [torch.randn(30, 2), torch.randn(5, 2)]
    first, again = (measured(vq(), *batches, share=8)[""] for _ in range(2))
    assert first.vectors == 35
    assert first.snapshot is not None
    assert again.snapshot is not None
    assert len(first.snapshot.z) == 8 + 5
    assert torch.equal(first.snapshot.z, again.snapshot.z)


@pytest.mark.parametrize(("quantizers", "got"), [((), "none"), ((vq(), vq()), "quantizers.0, quantizers.1")])
def test_another_number_of_quantizers_is_refused(quantizers: tuple[Any, ...], got: str) -> None:
    with pytest.raises(ValueError, match=rf"`analyze`: Task must have exactly one quantizer.*Got {got}\."):
        Subject(Task(*quantizers))


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (svq.StraightThrough(), (0.25 + 9) / 2),  # (1 - 0.5)^2 and (-1 + 4)^2
        (svq.ReSTE(power=2.0), ((1 - 0.5**0.5) ** 2 + 1) / 2),  # sign(x) |x|^(1/2), here of -4 too
        (svq.ErrorDecay(sharpness=1.0), ((1 - math.tanh(0.5)) ** 2 + (1 - math.tanh(4)) ** 2) / 2),
    ],
)
def test_signs_have_an_estimating_error(estimator: Any, expected: float) -> None:
    quantizer = svq.LookupFreeQuantizer(2, 2, estimator=estimator, losses=[])
    found = measured(quantizer, torch.tensor([[0.5, -4.0]]))[""]
    assert numbers(found, "estimating_error") == pytest.approx([expected])


def test_other_codes_have_no_estimating_error() -> None:
    found = measured(svq.FiniteScalarQuantizer(2, [4, 4]), torch.randn(5, 2))[""]
    assert "estimating_error" not in found.values
