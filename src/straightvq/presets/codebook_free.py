"""Quantizers without a codebook."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from straightvq.nn import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Projection,
    RandomProjectionQuantizer,
)


def fsq(dim: int, levels: Sequence[int], *, channel_dim: int = -1) -> FiniteScalarQuantizer:
    """Finite scalar quantization: each channel rounded to one of a few levels; no codebook, no losses.

    Args:
        dim: channels of ``z``; a learned projection leads to as many as there are levels, where that is another number.
        levels: number of levels of each channel, each at least 2; [8, 5, 5, 5] gives 1,000 codes.
        channel_dim: axis of the channels.

    Source: arXiv 2309.15505.

    Example:
        >>> fsq(16, [8, 5, 5, 5]).codebook_size
        1000
    """
    transform = _to_width(dim, len(levels) if isinstance(levels, Sequence) and not isinstance(levels, str) else None)
    return FiniteScalarQuantizer(dim, levels, transform=transform, channel_dim=channel_dim)


def lfq(dim: int, bits: int, *, channel_dim: int = -1) -> LookupFreeQuantizer:
    """Lookup-free quantization: the signs of the channels are the bits of the index; entropy and commitment losses.

    Args:
        dim: channels of ``z``; a learned projection leads to ``bits`` where that is another number.
        bits: length of the index, 62 at most.
        channel_dim: axis of the channels.

    Source: arXiv 2310.05737 (MAGVIT-v2).

    Example:
        >>> lfq(16, 10).codebook_size
        1024
    """
    return LookupFreeQuantizer(dim, bits, transform=_to_width(dim, bits), channel_dim=channel_dim)


def bsq(dim: int, bits: int, *, channel_dim: int = -1) -> BinarySphericalQuantizer:
    """Binary spherical quantization: signs of vectors on the unit sphere; entropy loss in groups of 9 bits.

    Args:
        dim: channels of ``z``; a learned projection leads to ``bits`` where that is another number.
        bits: length of the index, 62 at most.
        channel_dim: axis of the channels.

    Source: arXiv 2406.07548.

    Example:
        >>> bsq(16, 18).codebook_size
        262144
    """
    return BinarySphericalQuantizer(dim, bits, transform=_to_width(dim, bits), channel_dim=channel_dim)


def best_rq(dim: int, codebook_size: int, *, channel_dim: int = -1) -> RandomProjectionQuantizer:
    """Random-projection quantization: fixed maps and fixed codes, whose indices are targets to be predicted.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes, of width 16; the paper uses 8,192.
        channel_dim: axis of the channels.

    Source: arXiv 2202.01855.

    Example:
        >>> best_rq(80, 8192).codebook_size
        8192
    """
    return RandomProjectionQuantizer(dim, codebook_size, channel_dim=channel_dim)


def _to_width(dim: Any, width: Any) -> Projection | None:
    """The projection to another width; what is no width is the quantizer's to refuse."""
    known = all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 1 for n in (dim, width))
    return Projection(width) if known and width != dim else None
