"""The block of the transformers: attention over all tokens, then a two-layer network on each token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.nn.part import check_int

# Hidden units of the two-layer network, in units of the width.
_EXPANSION = 4


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer network with GELU, each with a residual connection and a layer normalization.

    x <- x + f(norm(x)) with ``norm_first`` (as in ViT), x <- norm(x + f(x)) without (as in BERT and MaskGIT), for x:
    Float (B, tokens, width). Every token attends to all. Training and evaluation differ in the dropout.

    Args:
        width: channels of a token.
        heads: attention heads; a divisor of ``width``.
        norm_first: whether to normalize before each part.
        dropout: probability of zeroing an attention weight, or a channel of what a part adds.
        eps: of the layer normalizations.

    Example:
        >>> TransformerBlock(8, 2, norm_first=True)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, width: int, heads: int, *, norm_first: bool, dropout: float = 0.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.attention = _SelfAttention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, _EXPANSION * width), nn.GELU(), nn.Linear(_EXPANSION * width, width))
        self.norm1 = nn.LayerNorm(width, eps)
        self.norm2 = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.attention(self.norm1(x)))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attention(x)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.heads = heads
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        # (B, tokens, 3 * width) -> three of (B, heads, tokens, width / heads)
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = _attend(q, k, v, self.dropout if self.training else 0.0)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Attention; of bfloat16 on a CPU in float32, which takes half the time forwards and backwards together."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), dropout_p=dropout).to(q.dtype)


def check_heads(owner: nn.Module, width: int, heads: int) -> int:
    """Returns ``heads`` if it divides ``width``; raises the house's sentence otherwise."""
    if width % check_int(owner, "heads", heads, 1):
        raise InvalidValueError(f"`{type(owner).__name__}`: `heads` must divide the width {width}. Got {heads}.")
    return heads


def init_transformer_(module: nn.Module) -> None:
    """BERT's start: weights normal with standard deviation 0.02, cut off at twice that; biases at zero."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(child.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(child, nn.Linear) and child.bias is not None:
            nn.init.zeros_(child.bias)
