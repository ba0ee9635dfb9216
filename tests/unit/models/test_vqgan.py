"""`VQGANNet`: the published size, its attention, the range of its pixels."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.unit.models.sizes import conv, count

import straightvq as svq
from straightvq.models import VQGANNet
from straightvq.models.vqgan import _Attention


def make_model(dim: int = 8, **kwargs: Any) -> VQGANNet:
    torch.manual_seed(0)
    quantizer = svq.presets.vq_vae(dim, 16, channel_dim=1)
    with torch.device(kwargs.pop("device", "cpu")):
        return VQGANNet(quantizer, **({"hidden": 32, "multipliers": (1, 2), "blocks": 1} | kwargs))


def block(channels: int, out: int) -> int:
    shortcut = 0 if channels == out else conv(channels, out, 1)
    return 2 * channels + conv(channels, out, 3) + 2 * out + conv(out, out, 3) + shortcut


def attention(width: int) -> int:
    return 2 * width + 4 * conv(width, width, 1)


def expected_counts(dim: int, hidden: int, multipliers: Sequence[int], blocks: int) -> tuple[int, int]:
    widths = [hidden * multiplier for multiplier in multipliers]
    middle = 2 * block(widths[-1], widths[-1]) + attention(widths[-1])
    resamplings = sum(conv(w, w, 3) for w in widths[:-1])
    encoder = conv(3, hidden, 3) + resamplings + middle + 2 * widths[-1] + conv(widths[-1], dim, 3) + conv(dim, dim, 1)
    for before, width in zip([hidden, *widths[:-1]], widths, strict=True):
        encoder += block(before, width) + (blocks - 1) * block(width, width)
    encoder += blocks * attention(widths[-1])
    decoder = conv(dim, dim, 1) + conv(dim, widths[-1], 3) + middle + 2 * widths[0] + conv(widths[0], 3, 3)
    for before, width in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True):
        decoder += block(before, width) + blocks * block(width, width)
    decoder += (blocks + 1) * attention(widths[-1]) + sum(conv(w, w, 3) for w in widths[1:])
    return encoder, decoder


# The totals are those of the authors' code with the same settings.
@pytest.mark.parametrize(
    ("dim", "hidden", "multipliers", "blocks", "total"),
    [(256, 128, (1, 1, 2, 2, 4), 2, 71_879_555), (32, 64, (1, 2, 4), 1, 11_670_435), (8, 32, (1, 2), 1, 711_035)],
)
def test_sizes_are_the_published_ones(dim: int, hidden: int, multipliers: Any, blocks: int, total: int) -> None:
    model = make_model(dim, hidden=hidden, multipliers=multipliers, blocks=blocks, device="meta")
    counts = count(model.encoder), count(model.decoder)
    assert counts == expected_counts(dim, hidden, multipliers, blocks)
    assert sum(counts) == total


@pytest.mark.parametrize("multipliers", [(1,), (1, 1), [1, 1, 2]])
def test_levels_but_the_last_halve_the_resolution(multipliers: Sequence[int]) -> None:
    model = make_model(multipliers=multipliers)
    factor = 2 ** (len(multipliers) - 1)
    assert model.downsample == factor
    assert model.encode(torch.rand(1, 3, 8, 16)).shape == (1, 8, 8 // factor, 16 // factor)


def test_attention_mixes_positions_by_a_softmax() -> None:
    torch.manual_seed(0)
    layer = _Attention(32)
    x = torch.randn(2, 32, 2, 3)
    q, k, v = layer.to_qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # (B, 32, 6) each
    weights = (torch.einsum("bci,bcj->bij", q, k) / 32**0.5).softmax(-1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    torch.testing.assert_close(layer(x), x + layer.to_out(mixed))


def test_pixels_are_centred_inside() -> None:
    model = make_model()
    assert torch.equal(model.encoder[0](torch.tensor([0.0, 1.0])), torch.tensor([-1.0, 1.0]))
    assert torch.equal(model.decoder[-1](torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))
