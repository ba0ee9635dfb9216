"""Masking schedule and parallel decoding of a masked token model, as pure functions.

Tokens are a grid of integers, -1 where masked. Source of all but the guidance: arXiv 2202.04200, sections 3.2 and 3.3.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from straightvq.nn.part import check_float, check_int


def masked_share(progress: Tensor) -> Tensor:
    """The cosine schedule: cos(pi/2 * progress), the share of tokens that is masked; progress is in [0, 1].

    Example:
        >>> masked_share(torch.tensor([0.0, 0.5])).tolist()
        [1.0, 0.7071067690849304]
    """
    return torch.cos(math.pi / 2 * progress)


def random_mask(progress: Tensor, order: Tensor) -> Tensor:
    """Which tokens training masks: the ceil(masked_share * N) of each grid that draw the lowest numbers, at least one.

    Shape: progress Float (B,) and order Float (B, h, w), draws in [0, 1) -> Bool (B, h, w), True where masked.

    Example:
        >>> random_mask(torch.tensor([0.5]), torch.tensor([[[0.9, 0.1, 0.4, 0.7]]]))   # ceil(0.707 * 4) = 3
        tensor([[[False,  True,  True,  True]]])
    """
    counts = (masked_share(progress) * order.shape[1:].numel()).ceil().clamp(min=1)
    return _places(order) < counts.view(-1, 1, 1)


def mask_counts(num_masked: int, steps: int) -> list[int]:
    """How many tokens are still masked after each decoding step; the last entry is 0.

    floor(num_masked * cos(pi/2 * t/steps)) after step t, but each step decides at least one token, so that fewer tokens
    than steps take as many steps as there are tokens.

    Example:
        >>> mask_counts(16, 4), mask_counts(2, 8), mask_counts(0, 8)
        ([14, 11, 6, 0], [1, 0], [])
    """
    left = check_int("mask_counts", "num_masked", num_masked, 0)
    steps = min(check_int("mask_counts", "steps", steps, 1), left)
    counts = []
    for step in range(1, steps + 1):
        left = min(left - 1, math.floor(num_masked * math.cos(math.pi / 2 * step / steps)))
        counts.append(left)
    return counts


def guided_logits(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """(1 + guidance) * conditional - guidance * unconditional; 0 is no guidance.

    Source: classifier-free guidance, arXiv 2207.12598, on logits as in arXiv 2301.00704, section 2.7.

    Example:
        >>> guided_logits(torch.tensor([2.0]), torch.tensor([1.0]), 0.5)
        tensor([2.5000])
    """
    return torch.lerp(unconditional, conditional, 1 + guidance)


def decode_step(
    logits: Tensor, tokens: Tensor, draws: Tensor, *, num_masked: Tensor, temperature: Tensor | float = 0.0
) -> Tensor:
    """Draws a token for every masked position and keeps those of the highest confidence; given tokens stay.

    The confidence is log p(token) + temperature * g, with Gumbel noise g = -log(-log(u)).

    Args:
        logits: Float (B, h, w, K).
        tokens: Int64 (B, h, w), -1 where masked; so is the result.
        draws: Float (B, 2, h, w), uniform in [0, 1): [:, 0] chooses the token, by the inverse of the cumulative
            distribution over the codes in their order; [:, 1] is u of the confidence.
        num_masked: Int64 (B,), how many positions are masked afterwards.
        temperature: of the noise, at least 0, a number or Float (B,); 0 keeps the most probable of the drawn tokens.

    Example:
        >>> logits = torch.tensor([[[[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]]]).log()       # two positions, three codes
        >>> draws = torch.tensor([[[[0.6, 0.9]], [[0.5, 0.5]]]])                      # 0.2 <= 0.6 < 0.7: code 1
        >>> decode_step(logits, torch.tensor([[[-1, -1]]]), draws, num_masked=torch.tensor([1]))
        tensor([[[-1,  2]]])
    """
    # Apple's GPU has no float64.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    log_p = logits.to(wide).log_softmax(-1)
    cdf = log_p.exp().cumsum(-1)
    # Scaled by the last entry, which rounding keeps from being exactly 1.
    drawn = torch.searchsorted(cdf, draws[:, 0, ..., None].to(wide) * cdf[..., -1:], right=True)
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    u = draws[:, 1].to(wide).clamp(min=torch.finfo(wide).tiny)
    noise = torch.as_tensor(temperature, dtype=wide, device=tokens.device).view(-1, 1, 1)
    confidence = log_p.gather(-1, drawn)[..., 0] - noise * (-u.log()).log()
    is_masked = tokens < 0
    again = _places(confidence.masked_fill(~is_masked, math.inf)) < num_masked.view(-1, 1, 1)
    return torch.where(is_masked & ~again, drawn[..., 0], tokens)


def _places(values: Tensor) -> Tensor:
    """The place of each value (B, h, w) in the ascending order of its grid; ties go by position."""
    return values.flatten(1).argsort(dim=1, stable=True).argsort(1).view_as(values)


@torch.no_grad()
def decode_tokens(
    predict: Callable[[Tensor], Tensor], tokens: Tensor, *, steps: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Fills the masked positions of token grids in a few parallel steps; given tokens stay.

    The cosine schedule says how many tokens are masked after each step; the temperature falls linearly to 0 at a
    grid's last one. Each grid has random numbers from a seed of its own, so that it comes out the same (up to the
    rounding of the network) whatever else is in the batch.

    Args:
        predict: tokens (B, h, w) -> logits (B, h, w, K), such as a `straightvq.models.MaskGIT` with its labels bound.
        tokens: Int (B, h, w), -1 at the positions to fill.
        steps: decoding steps, at least 1; a grid with fewer masked tokens takes as many steps as it has.
        temperature: of the noise at the first step, at least 0; larger values give more varied grids.
        generator: source of the grids' seeds.

    Returns:
        Int64 (B, h, w), all in [0, K).

    Example:
        >>> def predict(tokens):                                   # knows one thing: position j has token j
        ...     return 50 * torch.eye(4).expand(len(tokens), 1, 4, 4)
        >>> decode_tokens(predict, torch.tensor([[[-1, 3, -1, -1]]]), steps=2, temperature=1.0,
        ...               generator=torch.Generator().manual_seed(0))
        tensor([[[0, 3, 2, 3]]])
    """
    steps = check_int("decode_tokens", "steps", steps, 1)
    temperature = check_float("decode_tokens", "temperature", temperature, minimum=0)
    tokens = tokens.long()
    if not len(tokens):
        return tokens
    steps = min(steps, tokens[0].numel())
    draws = torch.stack([_draw((steps, 2, *tokens.shape[1:]), generator) for _ in tokens])
    numbers = (tokens < 0).flatten(1).sum(1)
    counts = pad_sequence([torch.tensor(mask_counts(number, steps), dtype=torch.int64) for number in numbers.tolist()])
    own_steps = numbers.clamp(min=1, max=steps)
    for step, num_masked in enumerate(counts.to(tokens.device)):
        noise = temperature * (1 - (step + 1) / own_steps).clamp(min=0)
        now = draws[:, step].to(tokens.device)
        tokens = decode_step(predict(tokens), tokens, now, num_masked=num_masked, temperature=noise)
    return tokens


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform numbers from a seed that ``generator`` draws. Made on the CPU: the same for any device."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
