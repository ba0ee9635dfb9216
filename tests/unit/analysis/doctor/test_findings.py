"""When the doctor calls something not well, and when not: each threshold from both sides."""

import pytest
import torch

import straightvq as svq
from straightvq.analysis.doctor.findings import findings
from straightvq.analysis.doctor.measure import Table, tables_of

HEALTHY = {
    "nearest_min": 0.5, "nearest_median": 1.0, "norm_median": 3.0, "norm_max": 6.0, "spread": 3.0, "same_spot": 0.02,
    "crowded": 0.0, "at_origin": 0.0, "code_directions": 4.0,
}  # fmt: skip
ON_DATA = {
    "vectors": 1000.0, "used": 99.0, "usage": 0.99, "perplexity": 60.0, "error": 0.1, "mean_distance": 0.1,
    "wasserstein": 0.2, "scale": 1.0, "directions": 4.0, "far": 0.0,
}  # fmt: skip


def table(**values: float) -> Table:
    """Of 100 codes that are well, but for these values."""
    (made,) = tables_of(svq.presets.ema(4, 100))
    made.followed.codebook.set_codes(torch.randn(100, 4))
    made.values |= HEALTHY | values
    return made


def names(made: Table) -> list[str]:
    return [finding.name for finding in findings(made)]


def test_nothing_is_found_where_all_is_well() -> None:
    assert names(table()) == []
    assert names(table(**ON_DATA)) == []


SIDES = [
    ("crowded", {"crowded": 1.0}, {"crowded": 0.0}),
    ("at_origin", {"crowded": 2.0, "at_origin": 2.0}, {"crowded": 0.0, "at_origin": 1.0}),
    ("runaway", {"norm_max": 61.0}, {"norm_max": 60.0}),
    ("wide", {**ON_DATA, "scale": 2.1}, {**ON_DATA, "scale": 2.0}),
    ("small", {**ON_DATA, "scale": 0.49}, {**ON_DATA, "scale": 0.5}),
    ("far", {**ON_DATA, "used": 90.0, "far": 6.0}, {**ON_DATA, "used": 90.0, "far": 5.0}),
    ("error", {**ON_DATA, "error": 0.9}, {**ON_DATA, "error": 0.89}),
    ("mean_distance", {**ON_DATA, "mean_distance": 1.1}, {**ON_DATA, "mean_distance": 1.0}),
    ("perplexity", {**ON_DATA, "perplexity": 9.9}, {**ON_DATA, "perplexity": 10.0}),
    ("perplexity", {**ON_DATA, "perplexity": 2.0}, {**ON_DATA, "perplexity": 2.0, "vectors": 399.0}),
]


@pytest.mark.parametrize(("name", "bad", "good"), SIDES, ids=lambda side: side if isinstance(side, str) else "")
def test_each_threshold_is_where_the_documentation_says(
    name: str, bad: dict[str, float], good: dict[str, float]
) -> None:
    assert names(table(**bad)) == [name]
    assert names(table(**good)) == []


def test_more_than_a_tenth_unused_is_not_normal_and_more_than_half_are_dead() -> None:
    made = table()
    made.unused, made.unused_by = torch.arange(100) < 10, "so it is"
    assert names(made) == []
    made.unused = torch.arange(100) < 11
    (found,) = findings(made)
    assert (found.name, found.seen) == ("unused", "11 of 100 codes (11%) are unused: so it is")
    made.unused = torch.arange(100) < 51
    assert findings(made)[0].seen == "51 of 100 codes (51%) are dead: so it is"


def test_a_collapse_is_told_once_with_the_cures_that_the_layer_lacks() -> None:
    made = table(**{**ON_DATA, "usage": 0.05, "used": 5.0, "perplexity": 12.0})
    made.unused = torch.arange(100) >= 5
    (found,) = findings(made)
    assert not any("DeadCodeReset" in cure for cure in found.cures)  # `presets.ema` has one
    (bare,) = tables_of(svq.presets.vq_vae(64, 100))
    bare.values |= HEALTHY
    bare.unused = torch.arange(100) >= 5
    cures = findings(bare)[0].cures
    for word in ("svq.DeadCodeReset()", "svq.KMeansInit()", "svq.AlternatedUpdate()", "svq.Projection(8)"):
        assert any(word in cure for cure in cures), word


def test_a_narrow_spread_is_no_finding_of_its_own_where_codes_have_collapsed() -> None:
    assert names(table(**{**ON_DATA, "scale": 0.1, "crowded": 50.0, "at_origin": 50.0})) == ["at_origin"]


def test_broken_and_unstarted_codes_are_told_before_anything_else() -> None:
    (broken,) = tables_of(svq.presets.vq_vae(4, 8))
    broken.values = {"codes": 8, "width": 4, "not_finite": 3}
    assert [(f.name, f.seen) for f in findings(broken)] == [
        ("not_finite", "3 of 8 codes are NaN or infinite: the training has diverged")
    ]
    layer = svq.presets.ema(4, 8)
    assert "not_started" in names(tables_of(layer)[0])
    layer(torch.randn(64, 4))
    assert "not_started" not in names(tables_of(layer)[0])
