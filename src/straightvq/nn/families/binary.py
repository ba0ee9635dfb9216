"""Binary quantizers: the signs of a vector are its index."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from straightvq.nn.batch import Context
from straightvq.nn.families.codebook_free import CodebookFree, check_bits
from straightvq.nn.part import check_float, check_int, setting
from straightvq.nn.slots.estimators import Estimator
from straightvq.nn.slots.losses import CommitmentLoss, EntropyLoss, Loss
from straightvq.nn.slots.transforms import Transform

# Groups of bits in which the sphere's paper measures the entropy of the codebook.
_GROUP = 9


class SignQuantizer(CodebookFree):
    """Base of quantizers whose code is ``half_width`` times the sign of each coordinate.

    Bit i of the index, of weight ``2^i``, is 1 where coordinate i is at least 0, i = 0 for the first channel. There is
    no third value: the sign of 0 is +1.

    Attributes:
        bits: coordinates of a code.
        half_width: absolute value of each.
    """

    has_signs = has_thresholds = True
    bits: int = setting(check_int, minimum=1, keeps="all")
    half_width: float = setting(check_float, minimum=0, open_minimum=True, keeps="all")

    def _bind(self, half_width: float) -> None:
        check_bits(self, "bits", 1 << self.bits)
        self._check_width("bits", self.bits)
        self.codebook_size = 1 << self.bits
        self.half_width = half_width
        self._declare(bits=self.bits, half_width=self.half_width)
        self._is_bound = True

    def digits(self, z: Tensor) -> Tensor:
        return z >= 0

    def index(self, digits: Tensor) -> Tensor:
        return (digits.long() << self._places(digits)).sum(1)

    def split(self, indices: Tensor) -> Tensor:
        return indices[:, None] >> self._places(indices) & 1

    def values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        return digits.to(dtype) * (2 * self.half_width) - self.half_width

    def offsets(self, z: Tensor) -> Tensor:
        """Bounded rows (n, d) -> their coordinates in units of the half-width: what a ``SignEstimator`` looks at."""
        return z / self.half_width

    def _places(self, like: Tensor) -> Tensor:
        return torch.arange(self.bits, device=like.device)

    def _context(self, z: Tensor, indices: Tensor) -> Context:
        group = self.process_group if self.training else False
        return Context(z[:0], indices, None, self.half_width, group)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, bits={self.bits}, channel_dim={self.channel_dim}"


class LookupFreeQuantizer(SignQuantizer):
    """Lookup-free quantization: ``code = scale * sign(z)``, and the signs are the bits of the index.

    ``index = sum_i 2^i [z_i >= 0]``, i = 0 for the first channel. Without a penalty few codes are used: the default
    losses are those of the paper, entropy and commitment. Training and evaluation do the same; in evaluation the
    entropy is that of this process's batch, in training that of all ranks.

    Args:
        dim: channels of ``z``; equal to ``bits``, unless a transform narrows them.
        bits: length of the index, 62 at most: there are ``2^bits`` codes.
        scale: absolute value of a code's coordinates. A level of a residual stack takes a smaller one.
        transform: from ``z`` to the space of the codes and back; default ``Identity()``.
        estimator: the gradient that passes the sign; default ``StraightThrough()``.
        losses: default ``[EntropyLoss(), CommitmentLoss()]``; ``[]`` for none.
        channel_dim: axis of ``z`` that holds the channels: -1 for sequences, 1 for images ``(B, C, H, W)``.

    Shape:
        z: Float (*batch, dim) with the channels on ``channel_dim``; mask: Bool (*batch), True where valid;
        indices: Int64 (*batch).

    Raises:
        ValueError, TypeError: at construction for a width that does not fit the bits, or more than 62 of them; in
            ``forward`` as in every quantizer. A failed call changes nothing.

    Source: arXiv 2310.05737 (MAGVIT-v2), eq. (3) to (5). Deviation: there the sign of 0 is -1.

    Example:
        >>> layer = LookupFreeQuantizer(3, bits=3)
        >>> out = layer(torch.tensor([[0.3, -2.0, 0.0]]))
        >>> out.quantized.tolist(), out.indices.tolist()
        ([[1.0, -1.0, 1.0]], [5])
    """

    kept_as: ClassVar = {"scale": "half_width"}

    def __init__(
        self,
        dim: int,
        bits: int,
        *,
        scale: float = 1.0,
        transform: Transform | None = None,
        estimator: Estimator | None = None,
        losses: list[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        losses = [EntropyLoss(), CommitmentLoss()] if losses is None else losses
        super().__init__(dim, transform=transform, estimator=estimator, losses=losses, channel_dim=channel_dim)
        scale = check_float(self, "scale", scale, minimum=0, open_minimum=True)
        self.bits = bits
        self._bind(scale)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.half_width == 1 else f", scale={self.half_width}")


class BinarySphericalQuantizer(SignQuantizer):
    """Binary spherical quantization: ``u = z / ||z||``, ``code = sign(u) / sqrt(bits)``.

    Vectors and codes lie on the unit sphere, so the error of a code is bounded. Bits as in ``LookupFreeQuantizer``.
    The gradient is that of the normalisation; a zero vector (shorter than 1e-12) has no direction: it gets the code of
    ones and no gradient. Training and evaluation do the same; in evaluation the entropy is that of this process's
    batch, in training that of all ranks.

    Args:
        dim: channels of ``z``; equal to ``bits``, unless a transform narrows them.
        bits: length of the index, 62 at most: there are ``2^bits`` codes.
        transform: from ``z`` to the space that is normalised, and back; default ``Identity()``.
        estimator: the gradient that passes the sign; default ``StraightThrough()``.
        losses: default ``[EntropyLoss(temperature=0.01, group_bits=9)]``, in the paper's groups; ``[]`` for none. The
            paper finds no commitment loss needed.
        channel_dim: axis of ``z`` that holds the channels: -1 for sequences, 1 for images ``(B, C, H, W)``.

    Shape:
        z: Float (*batch, dim) with the channels on ``channel_dim``; mask: Bool (*batch), True where valid;
        indices: Int64 (*batch).

    Raises:
        ValueError, TypeError: at construction for a width that does not fit the bits, or more than 62 of them; in
            ``forward`` as in every quantizer. A failed call changes nothing.

    Source: arXiv 2406.07548, section 3. Bit order: the authors' code has the first channel as the highest bit.

    Example:
        >>> layer = BinarySphericalQuantizer(2, bits=2)
        >>> out = layer(torch.tensor([[3.0, -4.0]]))
        >>> out.quantized.tolist(), out.indices.tolist()
        ([[0.7071067690849304, -0.7071067690849304]], [1])
    """

    def __init__(
        self,
        dim: int,
        bits: int,
        *,
        transform: Transform | None = None,
        estimator: Estimator | None = None,
        losses: list[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        losses = [EntropyLoss(temperature=0.01, group_bits=_GROUP)] if losses is None else losses
        super().__init__(dim, transform=transform, estimator=estimator, losses=losses, channel_dim=channel_dim)
        self.bits = bits
        self._bind(self.bits**-0.5)

    def bound(self, x: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True)
        return x / length.masked_fill(length < 1e-12, math.inf)
