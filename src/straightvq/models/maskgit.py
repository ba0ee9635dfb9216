"""The bidirectional transformer of MaskGIT over a grid of tokens."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.hub.pretrained import Pretrained
from straightvq.internals import is_exporting
from straightvq.models.transformer import TransformerBlock, check_heads, init_transformer_
from straightvq.nn.part import check_bool, check_float, check_int

_EPS = 1e-12  # of the layer normalizations, BERT's
MOST_CODES = 1 << 24  # each has an embedding and a logit


class MaskGIT(Pretrained, nn.Module):
    """Predicts the masked tokens of a grid from all others, as a distribution over the codes.

    Tokens and positions are embedded, summed and normalized; with classes, a token for the class goes in front. After
    BERT's blocks (normalization after the residual sum) and one more layer, the logits are its inner products with the
    embeddings of the codes, plus a bias per code. Training and evaluation differ in the dropout.

    Args:
        codebook_size: number of codes, 2 to 2^24.
        grid: height and width of the grid in tokens; the learned positions fit no other.
        num_classes: number of class labels; None for a network without.
        layers: transformer blocks, at least 1.
        width: channels of a token.
        heads: attention heads; a divisor of ``width``.
        dropout: probability of zeroing an attention weight, or a channel of what a layer adds, in [0, 1).
        tie_output: whether the output layer is the embedding of the codes, or a table of its own.

    Shape:
        indices: Int64 (B, *grid), codes in [0, codebook_size), or -1 where masked.
        labels: Int64 (B,), classes in [0, num_classes), or -1 for the null class, which stands for "any" in
            classifier-free guidance. None is the null class for all.
        logits: Float (B, *grid, codebook_size), masked positions or not.

    Raises:
        TypeError, ValueError: for impossible sizes, indices or labels that do not fit or are out of range (under
            ``torch.compile`` and on CUDA by an asynchronous assertion), labels without classes.

    Source: arXiv 2202.04200 and its code, whose sizes for ImageNet are the defaults. Deviations: logits for the codes
    only, not for class and mask tokens; a null class; the exact GELU; ``tie_output=False`` as an option.

    Example:
        >>> model = MaskGIT(32, grid=(4, 4), num_classes=10, layers=1, width=16, heads=2)
        >>> model(torch.full((2, 4, 4), -1), labels=torch.tensor([3, -1])).shape
        torch.Size([2, 4, 4, 32])
    """

    kept_as: ClassVar = {"dropout": "dropout.p"}

    def __init__(
        self,
        codebook_size: int,
        *,
        grid: tuple[int, int] = (16, 16),
        num_classes: int | None = None,
        layers: int = 24,
        width: int = 768,
        heads: int = 16,
        dropout: float = 0.1,
        tie_output: bool = True,
    ) -> None:
        super().__init__()
        self.codebook_size = check_int(self, "codebook_size", codebook_size, 2)
        if self.codebook_size > MOST_CODES:
            raise InvalidValueError(
                f"`MaskGIT`: `codebook_size` must be at most {MOST_CODES}, because every code has an embedding and a "
                f"logit. Got {codebook_size}; take a tokenizer of fewer bits or levels."
            )
        if not isinstance(grid, tuple | list) or len(grid) != 2:
            raise InvalidValueError(f"`MaskGIT`: `grid` must be two integers >= 1, (height, width). Got {grid!r}.")
        self.grid = (check_int(self, "grid", grid[0], 1), check_int(self, "grid", grid[1], 1))
        self.num_classes = None if num_classes is None else check_int(self, "num_classes", num_classes, 1)
        check_int(self, "layers", layers, 1)
        check_heads(self, check_int(self, "width", width, 1), heads)
        check_float(self, "dropout", dropout, minimum=0, maximum=1, open_maximum=True)
        self.layers, self.width, self.heads = layers, width, heads
        self.tie_output = check_bool(self, "tie_output", tie_output)

        # The last rows are the mask token and the null class.
        self.token_embedding = nn.Embedding(self.codebook_size + 1, width)
        self.class_embedding = None if self.num_classes is None else nn.Embedding(self.num_classes + 1, width)
        length = self.grid[0] * self.grid[1] + (self.class_embedding is not None)
        self.position_embedding = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, _EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, norm_first=False, dropout=dropout, eps=_EPS) for _ in range(layers))
        )
        self.last = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, _EPS))
        self.output = None if tie_output else nn.Linear(width, self.codebook_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(self.codebook_size))
        init_transformer_(self)

    def forward(self, indices: Tensor, labels: Tensor | None = None) -> Tensor:
        """Indices and labels -> logits; see the class for shapes."""
        self._check(indices, labels)
        x = self.token_embedding(_last_if_negative(indices, self.codebook_size).flatten(1))
        if self.class_embedding is not None:
            null = self.class_embedding.num_embeddings - 1
            labels = indices.new_full((len(indices),), -1) if labels is None else labels
            x = torch.cat([self.class_embedding(_last_if_negative(labels, null))[:, None], x], dim=1)
        x = self.blocks(self.dropout(self.norm(x + self.position_embedding.weight)))
        if self.class_embedding is not None:
            x = x[:, 1:]
        codes = self.token_embedding.weight[:-1] if self.output is None else self.output.weight
        logits = nn.functional.linear(self.last(x), codes, self.bias)
        return logits.unflatten(1, self.grid)

    def _check(self, indices: Tensor, labels: Tensor | None) -> None:
        _check_integers("indices", indices, self.codebook_size, "masked positions")
        if indices.ndim != 3 or indices.shape[1:] != self.grid:
            raise InvalidValueError(
                f"`MaskGIT`: `indices` must have the shape (B, {self.grid[0]}, {self.grid[1]}). "
                f"Got {tuple(indices.shape)}."
            )
        if labels is None:
            return
        if self.num_classes is None:
            raise InvalidValueError("`MaskGIT`: `labels` must be None, because the network has num_classes=None.")
        _check_integers("labels", labels, self.num_classes, "the null class")
        if labels.shape != indices.shape[:1]:
            raise InvalidValueError(
                f"`MaskGIT`: `labels` must have the shape ({len(indices)},), one for each grid. "
                f"Got {tuple(labels.shape)}."
            )


def _last_if_negative(indices: Tensor, last: int) -> Tensor:
    return torch.where(indices < 0, last, indices.long())


def _check_integers(name: str, values: Tensor, size: int, negative: str) -> None:
    if not isinstance(values, Tensor) or values.is_floating_point() or values.dtype == torch.bool:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise InvalidTypeError(f"`MaskGIT`: `{name}` must be an integer tensor. Got {got}.")
    if is_exporting() or values.numel() == 0:
        return
    message = f"`MaskGIT`: `{name}` must be in [0, {size}), or -1 for {negative}."
    values = values.long()  # comparing in a narrow dtype would wrap -1 and the size around
    inside = ((values >= -1) & (values < size)).all()
    if torch.compiler.is_compiling() or values.is_cuda:
        torch._assert_async(inside, message)
    elif not inside:
        low, high = (int(v) for v in values.aminmax())
        raise InvalidValueError(f"{message} Got values from {low} to {high}.")
