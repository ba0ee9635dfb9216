"""Transforms: from the network's vectors to the codebook's space and back."""

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.nn.part import Part, check_choice, check_int


class Transform(Part):
    """What happens to a vector before the search, and to a code after it.

    Required: ``forward`` and ``inverse``; ``codebook_dim`` and ``_make`` where the width changes.
    """

    def bind(self, dim: int) -> None:
        self._bind_once()
        self._make(dim)

    def _make(self, dim: int) -> None:
        """Makes parameters and buffers; called once."""

    def codebook_dim(self, dim: int) -> int:
        """Width of a code for inputs of width ``dim``."""
        return dim

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """(n, dim) -> (n, codebook_dim)."""

    @abstractmethod
    def inverse(self, code: Tensor) -> Tensor:
        """(n, codebook_dim) -> (n, dim)."""


class Identity(Transform):
    """Leaves vectors and codes as they are.

    Example:
        >>> import torch
        >>> Identity()(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def forward(self, z: Tensor) -> Tensor:
        return z

    def inverse(self, code: Tensor) -> Tensor:
        return code


class Projection(Transform):
    """Learned linear maps to a smaller code width and back: ``W_down z + b`` and ``W_up c + b``.

    Low-dimensional codes (4 to 16) are the cheapest way to keep a large codebook in use.

    Both maps start along the same random orthonormal directions, scaled so that they keep the mean square of a
    coordinate: ``W_up = sqrt(dim / codebook_dim) W_down.T``, and no biases. With the start of ``nn.Linear`` each map
    divides it by three, activations and gradients alike, and a network without normalisation does not recover.

    With ``start="orthonormal"`` ``W_up = W_down.T``: a code then stands for the part of z that the codes can express,
    and what is left of z is never longer than z. Levels of a residual quantizer need that; a single layer in an image
    network did 9 % worse with it.

    Args:
        codebook_dim: width of the codes, at least 1.
        start: ``"scaled"`` or ``"orthonormal"``.

    Source: factorised codes, Yu et al. 2021 (ViT-VQGAN, arXiv 2110.04627). The start is ours.

    Example:
        >>> import torch
        >>> p = Projection(4)
        >>> p.bind(16)
        >>> p(torch.ones(2, 16)).shape, p.inverse(torch.ones(2, 4)).shape
        (torch.Size([2, 4]), torch.Size([2, 16]))
    """

    kept_as: ClassVar = {"codebook_dim": "width"}

    def __init__(self, codebook_dim: int, start: Literal["scaled", "orthonormal"] = "scaled") -> None:
        super().__init__()
        self.width = check_int(self, "codebook_dim", codebook_dim, 1)
        self.start = check_choice(self, "start", start, ("scaled", "orthonormal"))

    def _make(self, dim: int) -> None:
        self.down = _Map(dim, self.width)
        self.up = _Map(self.width, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts over, as ``docs/distributed.md`` needs it for networks that were made on the meta device."""
        nn.init.orthogonal_(self.down.weight)
        self.up.weight.copy_(self.down.weight.T)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)
            if self.start == "scaled":
                # An orthonormal map to fewer coordinates keeps their mean square, one to more coordinates spreads it.
                layer.weight.mul_(max(1.0, layer.out_features / layer.in_features) ** 0.5)

    def codebook_dim(self, dim: int) -> int:
        return self.width

    def forward(self, z: Tensor) -> Tensor:
        return _linear(self.down, z)

    def inverse(self, code: Tensor) -> Tensor:
        return _linear(self.up, code)

    def extra_repr(self) -> str:
        return f"codebook_dim={self.width}" + ("" if self.start == "scaled" else f", start={self.start!r}")


class _Map(nn.Linear):
    def reset_parameters(self) -> None:
        """Does nothing: the projection starts both of its maps together."""


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class UnitNorm(Transform):
    """Puts every vector on the unit sphere; codes leave as they are, so the output is on that scale too.

    Use it together with ``UnitNormCodes``. The gradient is that of ``z / ||z||``; a zero vector (shorter than 1e-12)
    has no direction: it gives zero and gets no gradient.

    Source: l2-normalised codes, Yu et al. 2021 (arXiv 2110.04627); "+ l2" in the tables of arXiv 2305.08842.

    Example:
        >>> import torch
        >>> UnitNorm()(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """

    def forward(self, z: Tensor) -> Tensor:
        length = z.norm(dim=-1, keepdim=True)
        return z / length.masked_fill(length < 1e-12, math.inf)

    def inverse(self, code: Tensor) -> Tensor:
        return code
