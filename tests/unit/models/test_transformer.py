"""`TransformerBlock` against attention written out."""

import pytest
import torch
from torch import nn

from straightvq.models.transformer import TransformerBlock, init_transformer_


def naive_attention(block: TransformerBlock, x: torch.Tensor) -> torch.Tensor:
    """One image, one head, one query at a time."""
    attention = block.attention
    width = x.shape[-1]
    size = width // attention.heads
    q, k, v = attention.to_qkv(x).split(width, dim=-1)
    mixed = torch.zeros_like(x)
    for b in range(len(x)):
        for head in range(attention.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(x.shape[1]):
                weights = (k[b, :, part] @ q[b, i, part] / size**0.5).softmax(0)
                mixed[b, i, part] = weights @ v[b, :, part]
    return attention.to_out(mixed)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("norm_first", [True, False])
def test_block_is_its_equation(heads: int, norm_first: bool) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(12, heads, norm_first=norm_first)
    x = torch.randn(2, 5, 12)
    if norm_first:
        expected = x + naive_attention(block, block.norm1(x))
        expected = expected + block.mlp(block.norm2(expected))
    else:
        expected = block.norm1(x + naive_attention(block, x))
        expected = block.norm2(expected + block.mlp(expected))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_attends_as_float32_does(autocast: bool) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(12, 3, norm_first=True)
    x = torch.randn(2, 5, 12)
    expected = block(x)
    half = block if autocast else block.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = half(x if autocast else x.bfloat16())
        out.square().sum().backward()
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    assert out.dtype == (torch.float32 if autocast else torch.bfloat16)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in half.parameters())


def test_start_is_narrow_and_without_bias() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(100, 50), nn.Linear(50, 100))
    init_transformer_(module)
    for layer in module:
        # cutting a normal distribution at two deviations leaves 0.88 of its standard deviation
        assert layer.weight.std().item() == pytest.approx(0.88 * 0.02, rel=0.05)
        assert layer.weight.abs().max().item() <= 0.04
    assert not module[1].bias.any()
