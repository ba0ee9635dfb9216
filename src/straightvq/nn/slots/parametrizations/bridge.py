"""A transformer that looks at the whole codebook."""

import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.nn.part import check_int, setting
from straightvq.nn.slots.parametrizations.residual import ResidualMap, zero_linear


class Bridge(ResidualMap):
    """A small transformer over the whole codebook, so that every code moves with every other one.

    The table is cut into patches of consecutive codes, each of which becomes one token: ``compress`` is a linear map of
    a patch to the token's width, ``depth`` transformer blocks process all tokens together, ``recover`` is a linear map
    back to the patch, which is added to the raw codes. ``recover`` starts at zero, so the codes start as the init has
    them. A table that is no multiple of the patch is filled up with zeros, whose part of the result is dropped; the
    codebook's size need not be a square.

    The map has no inverse: inits from data, resets, ``EMAUpdate``, ``AlternatedUpdate`` and ``set_codes`` are refused.
    It is computed once in a training forward, and once in each ``forward``, ``encode`` and ``decode`` of evaluation:
    ``Codebook.fold`` drops it when training has ended, and leaves a plain table with the same codes.

    A forward takes ``2 K D width + depth (12 (K / patch) width^2 + 2 (K / patch)^2 width)`` multiplications for K
    codes of width D. With ``patch=16, width=D, depth=2`` and few tokens that is 3.5 times a ``Linear``.

    Args:
        patch: codes in a token, at least 1.
        width: of a token; a multiple of ``heads``.
        depth: number of transformer blocks, at least 1.
        heads: attention heads of a block, at least 1.

    Raises:
        ValueError: for a width that is no multiple of ``heads``.

    Source: arXiv 2509.10140 (FVQ, VQBridge). Deviations: patches are runs of codes, not squares of a square image; no
    position embedding, since a patch is told from others by its codes.

    Example:
        >>> import torch
        >>> bridge = Bridge(patch=4, width=8, heads=2)
        >>> bridge.bind(6, 3)
        >>> bridge(torch.ones(6, 3)).equal(torch.ones(6, 3))
        True
    """

    patch: int = setting(check_int, minimum=1, keeps="all")
    width: int = setting(check_int, minimum=1, keeps="all")
    depth: int = setting(check_int, minimum=1, keeps="all")
    heads: int = setting(check_int, minimum=1, keeps="all")

    def __init__(self, patch: int = 16, width: int = 256, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.width = width
        self.depth = depth
        self.heads = heads
        if self.width % self.heads:
            raise InvalidValueError(f"`Bridge`: `heads` must divide `width` {self.width}. Got {self.heads}.")

    def _make(self, size: int, dim: int) -> None:
        self.compress = nn.Linear(self.patch * dim, self.width)
        self.blocks = nn.ModuleList(_Block(self.width, self.heads) for _ in range(self.depth))
        self.recover = nn.Sequential(nn.LayerNorm(self.width), zero_linear(self.width, self.patch * dim))

    def _change(self, raw: Tensor) -> Tensor:
        size, dim = raw.shape
        patches = F.pad(raw, (0, 0, 0, -size % self.patch)).reshape(-1, self.patch * dim)
        tokens: Tensor = self.compress(patches)
        for block in self.blocks:
            tokens = block(tokens)
        change: Tensor = self.recover(tokens)
        return change.reshape(-1, dim)[:size]

    def extra_repr(self) -> str:
        return f"patch={self.patch}, width={self.width}, depth={self.depth}, heads={self.heads}"


class _Block(nn.Module):
    """Self-attention and a network of one hidden layer, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_heads, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (t, width) -> tokens (t, width)."""
        number, width = tokens.shape
        parts = self.to_heads(self.norm_attention(tokens)).view(1, number, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)  # (1, heads, t, width / heads)
        tokens = tokens + self.from_heads(attended.transpose(1, 2).reshape(number, width))
        changed: Tensor = tokens + self.network(self.norm_network(tokens))
        return changed
