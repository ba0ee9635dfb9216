"""Codes that move: their equations are those of the library's updates, one step of which is 1 / d of time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from straightvq.functional import nearest_code
from straightvq.studies.dynamics.codes import Means, Rule

CODES = torch.tensor([[0.0, 0.0], [2.0, 2.0], [9.0, 9.0]], dtype=torch.float64)


def example(blocks: int = 2000) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    w = torch.randn(blocks, 2, dtype=torch.float64, generator=draws) + 0.6
    targets = torch.randn(blocks, 2, dtype=torch.float64, generator=draws)
    return w, targets, nearest_code(w, CODES)


def slope(rule: Rule, means: Means, sizes: Tensor) -> Tensor:
    return (rule.flow(CODES, sizes, means, 1e-6)[0] - CODES) / 1e-6


def test_means_are_those_of_each_code() -> None:
    w, targets, indices = example(50)
    means = Means.of(w, targets, indices, 3)
    for code in range(2):
        own = indices == code
        assert means.share[code].item() == pytest.approx(own.double().mean().item())
        torch.testing.assert_close(means.weights[code], w[own].mean(0))
        torch.testing.assert_close(means.targets[code], targets[own].mean(0))
    assert means.share[2] == 0


def test_the_equations_are_those_written_down() -> None:
    means = Means.of(*example(), 3)
    p, to_weights, to_targets = means.share[:, None], CODES - means.weights, CODES - means.targets
    has = (p > 0).double()
    sizes = torch.tensor([0.5, 0.25, 0.1], dtype=torch.float64)
    for rule, expected in (
        (Rule("fixed"), 0 * CODES),
        (Rule("gradient", speed=3.0), -3 * p * to_weights),  # 2 p / m with m = 2
        (Rule("alternated", speed=3.0), -3 * has * to_weights),
        (Rule("EMA", speed=3.0), -3 * p / sizes[:, None] * to_weights),
        (Rule("gradient", sync=0.5), -p * to_weights - 0.25 * p * to_targets),
        (Rule("alternated", sync=0.5), -has * to_weights - 0.25 * p * to_targets),
    ):
        torch.testing.assert_close(slope(rule, means, sizes), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "rule", [Rule("gradient"), Rule("alternated"), Rule("gradient", sync=1.0), Rule("alternated", sync=2.0)], ids=str
)
def test_a_step_of_the_layer_is_one_of_the_equations(rule: Rule) -> None:
    """The task gradient is its mean over the samples, ``(Q - w*) / d``."""
    w, targets, indices = example()
    w.requires_grad_()
    d = w.numel()
    layer = rule.layer(CODES, d)
    optimizer = torch.optim.SGD([w, *(p for p in layer.parameters() if p.requires_grad)], lr=1 / d)
    out = layer(w)
    ((out.quantized - targets).square().sum() / (2 * d) + out.loss).backward()
    optimizer.step()
    expected = slope(rule, Means.of(w.detach(), targets, indices, 3), torch.ones(3).double())
    torch.testing.assert_close((layer.codes() - CODES) * d, expected, atol=0.01, rtol=0.01)


def test_ema_starts_fast_and_slows_down_as_the_layer_does() -> None:
    """Two clouds whose blocks stay at their codes."""
    rule, codes = Rule("EMA", speed=2.0), CODES[:2]
    draws = torch.Generator().manual_seed(0)
    w = codes.repeat_interleave(torch.tensor([1500, 500]), 0) + 0.3
    w += 0.1 * torch.randn(w.shape, dtype=torch.float64, generator=draws)
    means = Means.of(w, w, nearest_code(w, codes), 2)
    d, layer = w.numel(), rule.layer(codes, w.numel())
    sizes = torch.full((2,), 2 / d, dtype=torch.float64)
    for _ in range(40):
        layer(w)
        codes, sizes = rule.flow(codes, sizes, means, 1 / d)
    assert 0.5 < (codes[0] / means.weights[0]).mean() < 0.99  # neither at the start nor at the end
    torch.testing.assert_close(layer.codes(), codes, atol=2e-3, rtol=0.0)
    torch.testing.assert_close(layer.codebook.update.cluster_size * 2 / d, sizes, atol=1e-4, rtol=0.0)


def test_ema_is_solved_exactly_however_long_the_step() -> None:
    rule, means = Rule("EMA"), Means.of(*example(), 3)
    sizes = torch.full((3,), 1e-3, dtype=torch.float64)
    at_once = rule.flow(CODES, sizes, means, 0.5)
    codes = CODES
    for _ in range(10):
        codes, sizes = rule.flow(codes, sizes, means, 0.05)
    torch.testing.assert_close(codes, at_once[0])
    torch.testing.assert_close(sizes, at_once[1])


def test_fixed_codes_stay_and_commitment_pulls_the_weights() -> None:
    """The gradient of the commitment loss at a weight: ``2 weight (w - code) / d``."""
    w, _, indices = example(10)
    w.requires_grad_()
    layer = Rule("fixed", commitment=0.5).layer(CODES, 20)
    layer(w).loss.backward()
    assert torch.equal(layer.codes(), CODES)
    torch.testing.assert_close(w.grad, (w.detach() - CODES[indices]) / 20)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "still"}, "`kind` must be one of 'fixed'"),
        ({"kind": "EMA", "speed": 0.0}, "`speed` must be"),
        ({"kind": "EMA", "sync": 1.0}, "`sync` must be"),
        ({"kind": "fixed", "sync": 1.0}, "`sync` must be"),
        ({"kind": "gradient", "sync": -1.0}, "`sync` must be"),
        ({"kind": "gradient", "commitment": math.nan}, "`commitment` must be"),
    ],
)
def test_impossible_rules_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rule(**given)
