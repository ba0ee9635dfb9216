"""Joint refinement: the least squares solution, the least error is kept, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import straightvq as svq


def vectors(n: int = 300, dim: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def trained(z: Tensor, **settings: Any) -> svq.ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = svq.presets.straight_residual(z.shape[1], 8, num_quantizers=3, **settings)
    for _ in range(10):
        quantizer(z)
    return quantizer


def test_one_round_by_hand() -> None:
    """Two levels of two codes on a line. The indices are (0, 0), (0, 1), (1, 0), and no vector has (1, 1)."""
    levels = [svq.VectorQuantizer(1, svq.Codebook(2)) for _ in range(2)]
    quantizer = svq.ResidualQuantizer(1, levels)
    levels[0].set_codes(torch.tensor([[0.0], [10.0]]))
    levels[1].set_codes(torch.tensor([[0.0], [2.0]]))
    z = torch.tensor([[0.0], [3.0], [10.0]])
    # First level: code 0 is the mean of 0 - 0 and 3 - 2, code 1 of 10 - 0. Second: code 0 is the mean of 0 - 0.5 and
    # 10 - 10, code 1 is 3 - 0.5. The error of the
    # same indices is then 0.25^2, 0 and 0.25^2, and no other indices are nearer.
    errors = svq.refine_residual(quantizer, z, rounds=1, sweeps=1)
    assert levels[0].codes().flatten().tolist() == [0.5, 10.0]
    assert levels[1].codes().flatten().tolist() == [-0.25, 2.5]
    assert errors == pytest.approx([1 / 3, 2 * 0.0625 / 3])


def test_many_sweeps_reach_the_least_squares_solution() -> None:
    z = vectors()
    quantizer = trained(z)
    indices = quantizer.encode(z)
    design = np.zeros((len(z), 24))
    for level in range(3):
        design[np.arange(len(z)), 8 * level + indices[:, level].numpy()] = 1
    solution = np.linalg.lstsq(design, z.double().numpy(), rcond=None)[0]
    least = ((z.double().numpy() - design @ solution) ** 2).sum(1).mean()
    tables = [level.codes() for level in quantizer.levels]
    svq.refine_residual(quantizer, z, rounds=1, sweeps=200)
    refined = [level.codes() for level in quantizer.levels]

    def error(codes: list[Tensor]) -> float:
        total = sum(table[own] for table, own in zip(codes, indices.T, strict=True))
        return float((z - total).square().sum(1).mean())

    assert error(refined) == pytest.approx(least, rel=1e-4)
    assert error(refined) < error(tables)


@pytest.mark.parametrize("beam", [1, 4])
def test_the_codes_left_behind_are_those_of_the_least_error_and_a_beam_gains_more(beam: int) -> None:
    z = vectors()
    quantizer = trained(z, beam=beam)

    def error() -> float:
        return float((z - quantizer.decode(quantizer.encode(z))).square().sum(1).mean())

    before = error()
    errors = svq.refine_residual(quantizer, z, rounds=6)
    assert len(errors) == 7
    assert errors[0] == pytest.approx(before, rel=1e-5)
    assert error() == pytest.approx(min(errors), rel=1e-5)
    assert error() < {1: 0.99, 4: 0.9}[beam] * before


def test_a_round_that_makes_it_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that finds nothing but the first codes, after the first time."""
    z = vectors()
    quantizer = trained(z)
    before = [level.codes() for level in quantizer.levels]
    found = [quantizer.encode(z)]
    monkeypatch.setattr(quantizer, "encode", lambda z: found.pop() if found else torch.zeros(len(z), 3).long())
    errors = svq.refine_residual(quantizer, z, rounds=2)
    assert min(errors) == errors[0]
    assert all(torch.equal(level.codes(), codes) for level, codes in zip(quantizer.levels, before, strict=True))


def test_an_idle_code_takes_the_worst_served_vector() -> None:
    """One level. Code 0 is the mean 2 of 0, 1 and 5, which serves 5 worst: the idle code goes there."""
    quantizer = svq.ResidualQuantizer(1, [svq.VectorQuantizer(1, svq.Codebook(2))])
    quantizer.levels[0].set_codes(torch.tensor([[2.0], [100.0]]))
    errors = svq.refine_residual(quantizer, torch.tensor([[0.0], [1.0], [5.0]]), rounds=1, sweeps=1)
    assert quantizer.levels[0].codes().flatten().tolist() == [2.0, 5.0]
    assert errors == pytest.approx([14 / 3, 5 / 3])


def test_where_nothing_is_left_idle_codes_stay() -> None:
    z = vectors(2)
    quantizer = svq.ResidualQuantizer(5, [svq.VectorQuantizer(5, svq.Codebook(4)) for _ in range(2)])
    table = torch.cat([z, 9 + z])
    quantizer.levels[0].set_codes(table)
    quantizer.levels[1].set_codes(torch.tensor([[0.0], [7.0], [8.0], [9.0]]).expand(4, 5))
    assert svq.refine_residual(quantizer, z, rounds=2) == [0, 0, 0]
    assert torch.equal(quantizer.levels[0].codes(), table)


def test_it_draws_nothing_and_is_the_same_in_both_modes() -> None:
    z = vectors()
    one, other = trained(z), trained(z).eval()
    state = torch.get_rng_state()
    svq.refine_residual(one, z)
    svq.refine_residual(other, z)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.levels, other.levels, strict=True):
        assert torch.equal(a.codes(), b.codes())


@pytest.mark.parametrize(
    ("quantizer", "z", "kwargs", "message"),
    [
        (lambda: svq.presets.ema(4, 8), vectors(9, 4), {}, "`quantizer` must be an instance of ResidualQuantizer"),
        (
            lambda: svq.ResidualQuantizer(4, [svq.presets.ema(4, 8), svq.presets.lfq(4, 4)]),
            vectors(9, 4),
            {},
            "Got 2 levels of VectorQuantizer and LookupFreeQuantizer",
        ),
        (
            lambda: svq.ProductQuantizer(4, svq.presets.ema(2, 8), num_groups=2),
            vectors(9, 4),
            {},
            "instance of ResidualQuantizer. Got ProductQuantizer.",
        ),
        (lambda: svq.presets.rq_vae(4, 8), vectors(9, 4), {}, "Got 4 levels of VectorQuantizer"),
        (lambda: svq.presets.dac(4, 8, codebook_dim=2), vectors(9, 4), {}, "Euclidean distance, no transform"),
        (lambda: svq.presets.straight_residual(4, 8, codebook_dim=2), vectors(9, 4), {}, "no transform"),
        (lambda: svq.presets.straight_residual(4, 8), vectors(9, 3), {}, r"(n, 4) with n >= 1. Got (9, 3)"),
        (lambda: svq.presets.straight_residual(4, 8), vectors(0, 4), {}, r"Got (0, 4)"),
        (lambda: svq.presets.straight_residual(4, 8), vectors(9, 4) / 0, {}, "must be finite"),
        (lambda: svq.presets.straight_residual(4, 8), vectors(9, 4).long(), {}, "floating-point"),
        (lambda: svq.presets.straight_residual(4, 8), vectors(9, 4), {"rounds": 0}, "`rounds` must be an integer >= 1"),
        (lambda: svq.presets.straight_residual(4, 8), vectors(9, 4), {"sweeps": 0}, "`sweeps` must be an integer >= 1"),
    ],
)
def test_what_cannot_be_refined_is_refused_unchanged(
    quantizer: Any, z: Tensor, kwargs: dict[str, int], message: str
) -> None:
    made = quantizer()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises((ValueError, TypeError)) as refused:
        svq.refine_residual(made, z, **kwargs)
    assert message in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
