"""Masking and parallel decoding: counts by the schedule, draws by hand, what is given stays."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from straightvq.generation import sampling
from straightvq.generation.sampling import decode_step, decode_tokens, guided_logits, mask_counts, random_mask

CODES = 5


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_predict(seed: int = 0, size: int = 8) -> Callable[[Tensor], Tensor]:
    """Logits that depend on the position and on all tokens of the same grid, and on no other grid."""
    weight = torch.randn(size, size, CODES, generator=make_generator(seed))

    def predict(tokens: Tensor) -> Tensor:
        return torch.einsum("bj,jik->bik", tokens.flatten(1).float(), weight).view(*tokens.shape, CODES)

    return predict


def test_counts_follow_the_cosine() -> None:
    # 64 cos(pi/2 t/8): 62.77, 59.13, 53.21, 45.25, 35.56, 24.49, 12.49, 0
    assert mask_counts(64, 8) == [62, 59, 53, 45, 35, 24, 12, 0]
    assert mask_counts(4, 4) == [3, 2, 1, 0]
    assert mask_counts(3, 1) == [0]
    assert mask_counts(1, 5) == [0]
    assert mask_counts(0, 5) == []


@pytest.mark.parametrize("num_masked", [1, 2, 7, 16, 64, 255])
@pytest.mark.parametrize("steps", [1, 2, 8, 12, 64])
def test_each_step_decides_a_token_and_the_last_leaves_none(num_masked: int, steps: int) -> None:
    counts = mask_counts(num_masked, steps)
    assert all(a > b for a, b in zip([num_masked, *counts], counts, strict=False))
    assert counts[-1] == 0
    assert len(counts) <= min(steps, num_masked)
    assert all(left <= num_masked * math.cos(math.pi / 2 * (t + 1) / steps) + 1e-9 for t, left in enumerate(counts))


def test_training_masks_the_share_of_the_schedule_rounded_up() -> None:
    # cos(pi/2 u) * 16: 16 at 0, ceil(11.31) at 1/2, ceil(1.57) at 15/16, and one at least.
    progress = torch.tensor([0.0, 0.5, 15 / 16, 0.99999])
    masked = random_mask(progress, torch.rand(4, 4, 4, generator=make_generator()))
    assert masked.flatten(1).sum(1).tolist() == [16, 12, 2, 1]
    # Every position equally often.
    masked = random_mask(torch.full((4000,), 0.5), torch.rand(4000, 2, 4, generator=make_generator()))
    assert (masked.float().mean(0) - 6 / 8).abs().max() < 0.04


def test_step_by_hand() -> None:
    """Three positions. 0 is given. 1: u = 0.6 falls to code 1 (0.2 <= 0.6 < 0.7), p = 0.5. 2: to code 2, p = 0.8."""
    logits = torch.tensor([[0.1, 0.1, 0.8], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]).log().view(1, 1, 3, 3)
    tokens = torch.tensor([[[1, -1, -1]]])
    choose, noise = torch.tensor([[[0.0, 0.6, 0.9]]]), torch.full((1, 1, 3), 0.5)

    def step(left: int, noise: Tensor = noise, temperature: float = 0.0) -> list[int]:
        draws = torch.stack([choose, noise], 1)
        after = decode_step(logits, tokens, draws, num_masked=torch.tensor([left]), temperature=temperature)
        return after.flatten().tolist()

    assert step(0) == [1, 1, 2]
    assert step(1) == [1, -1, 2]  # the lower confidence is masked again
    assert step(2) == [1, -1, -1]
    # Gumbel noise: -log(-log 0.9) = 2.25, -log(-log 0.5) = 0.37; log 0.5 + 2.25 = 1.56 > log 0.8 + 0.37 = 0.14.
    assert step(1, torch.tensor([[[0.5, 0.9, 0.5]]]), 1.0) == [1, 1, -1]
    # At a tenth of the temperature: -0.69 + 0.225 = -0.47 < -0.22 + 0.037 = -0.19.
    assert step(1, torch.tensor([[[0.5, 0.9, 0.5]]]), 0.1) == [1, -1, 2]


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_draws_at_the_ends_give_codes_that_are_possible(u: float) -> None:
    logits = torch.tensor([-math.inf, 0.0, 1.0, -math.inf]).view(1, 1, 1, 4)
    draws = torch.full((1, 2, 1, 1), u)
    token = decode_step(logits, torch.tensor([[[-1]]]), draws, num_masked=torch.tensor([0]), temperature=1.0)
    assert token.item() == (1 if u == 0 else 2)


def test_tokens_are_drawn_from_the_distribution() -> None:
    """In one step; several prefer what is probable, by keeping it."""
    p = torch.tensor([0.5, 0.3, 0.2])
    logits = p.log().expand(1, 100, 100, 3)
    start = torch.full((1, 100, 100), -1)
    tokens = decode_tokens(lambda _: logits, start, steps=1, temperature=1.0, generator=make_generator())
    assert torch.bincount(tokens.flatten()) / 1e4 == pytest.approx(p, abs=0.02)


def test_equal_confidences_do_not_change_the_counts() -> None:
    draws = torch.full((2, 2, 3, 3), 0.5)
    after = decode_step(torch.zeros(2, 3, 3, 4), torch.full((2, 3, 3), -1), draws, num_masked=torch.tensor([5, 2]))
    assert (after < 0).flatten(1).sum(1).tolist() == [5, 2]


@pytest.mark.parametrize("temperature", [0.0, 4.5])
@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_decoded_tokens_never_change_and_counts_are_those_of_the_schedule(steps: int, temperature: float) -> None:
    start = torch.full((3, 2, 4), -1)
    start[1, 0, :3] = torch.tensor([4, 0, 2])  # five left
    start[2] = 3  # none left
    seen: list[Tensor] = []
    predict = make_predict()

    def spy(tokens: Tensor) -> Tensor:
        seen.append(tokens.clone())
        return predict(tokens)

    final = decode_tokens(spy, start, steps=steps, temperature=temperature, generator=make_generator())
    for before, after in zip(seen, [*seen[1:], final], strict=True):
        assert torch.equal(after[before >= 0], before[before >= 0])
    for row, number in enumerate([8, 5, 0]):
        left = [(grid[row] < 0).sum().item() for grid in [*seen[1:], final]]
        counts = mask_counts(number, steps)
        assert left == counts + [0] * (len(left) - len(counts))
    assert final.min() >= 0
    assert torch.equal(final[2], start[2])
    assert torch.equal(final[1, 0, :3], start[1, 0, :3])


def test_same_seed_same_grids_other_seed_others() -> None:
    def decode(seed: int) -> Tensor:
        options: dict[str, Any] = {"steps": 4, "temperature": 2.0, "generator": make_generator(seed)}
        return decode_tokens(make_predict(), torch.full((4, 2, 4), -1), **options)

    assert torch.equal(decode(0), decode(0))
    assert not torch.equal(decode(0), decode(1))
    assert len(decode(0).flatten(1).unique(dim=0)) == 4


def test_a_batch_in_parts_is_the_whole() -> None:
    """Also where grids have other numbers of masked tokens beside them."""
    start = torch.full((5, 2, 4), -1)
    start[3, 0] = 1
    options = {"steps": 6, "temperature": 2.0}
    whole = decode_tokens(make_predict(), start, generator=make_generator(), **options)
    generator = make_generator()
    parts = [decode_tokens(make_predict(), part, generator=generator, **options) for part in start.split([1, 2, 2])]
    assert torch.equal(torch.cat(parts), whole)


def test_more_steps_than_masked_tokens_change_nothing() -> None:
    start = torch.full((3, 4, 4), -1)
    start[1, 1:] = 2  # four masked tokens beside sixteen

    def decode(steps: int) -> Tensor:
        logits = torch.randn(len(start), 4, 4, 8, generator=make_generator(1))
        return decode_tokens(lambda _: logits, start, steps=steps, temperature=3.0, generator=make_generator())

    assert torch.equal(decode(17), decode(16))
    assert torch.equal(decode(1000), decode(16))


def test_the_noise_of_each_grid_falls_to_nothing_at_its_own_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    step = sampling.decode_step

    def spy(*args: Any, temperature: Tensor, **options: Any) -> Tensor:
        seen.append(temperature.tolist())
        return step(*args, temperature=temperature, **options)

    monkeypatch.setattr(sampling, "decode_step", spy)
    start = torch.full((2, 4, 4), -1)
    start[1, :, :2] = 0
    start[1, 2:] = 0  # four masked tokens left, fewer than steps
    options = {"steps": 8, "temperature": 8.0, "generator": make_generator()}
    decode_tokens(lambda tokens: torch.zeros(2, 4, 4, 8), start, **options)
    assert seen == [[7.0, 6.0], [6.0, 4.0], [5.0, 2.0], [4.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]


def test_nothing_to_do() -> None:
    full = torch.zeros(2, 2, 4, dtype=torch.int64)

    options: dict[str, Any] = {"steps": 3, "temperature": 1.0, "generator": make_generator()}
    assert torch.equal(decode_tokens(lambda _: pytest.fail("was asked"), full, **options), full)
    assert decode_tokens(lambda _: pytest.fail("was asked"), full[:0], **options).shape == (0, 2, 4)


def test_guidance_goes_from_unconditional_through_conditional_and_beyond() -> None:
    conditional, unconditional = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])
    assert torch.equal(guided_logits(conditional, unconditional, 0.0), conditional)
    assert torch.equal(guided_logits(conditional, unconditional, 1.0), torch.tensor([0.0, 5.0]))
    assert torch.equal(guided_logits(conditional, conditional, 3.0), conditional)


@pytest.mark.parametrize(
    ("name", "value", "words"), [("steps", 0, "an integer >= 1. Got 0"), ("temperature", -1.0, "a finite number in")]
)
def test_impossible_settings_are_refused(name: str, value: float, words: str) -> None:
    given: dict[str, Any] = {"steps": 2, "temperature": 1.0, name: value}
    with pytest.raises(ValueError, match=f"`decode_tokens`: `{name}` must be {words}"):
        decode_tokens(make_predict(), torch.full((1, 2, 4), -1), generator=make_generator(), **given)
