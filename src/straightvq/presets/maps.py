"""Presets that move all codes by one map, or unused ones to anchors in the data."""

from typing import Literal

from straightvq.nn import (
    AnchoredReset,
    Bridge,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    Linear,
    NormalInit,
    Projection,
    UniformInit,
    VectorQuantizer,
)
from straightvq.nn.part import check_int
from straightvq.presets.codebooks import projection_to


def simvq(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    commitment: float = 0.25,
) -> VectorQuantizer:
    """Frozen normal codes under one learned linear map, so that every code moves in every step.

    Train the map at a constant learning rate, 1e-4 in the paper, whatever the network's schedule. The codes' scale at
    the start, ``1 / sqrt(codebook_dim)``, should be about that of the embeddings.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        commitment: weight of the commitment loss.

    Source: arXiv 2411.02038 (SimVQ). Deviation: the map starts as the identity.

    Example:
        >>> simvq(8, 16).codebook.parametrization
        Linear(freeze_basis=True, bias=False)
    """
    transform = projection_to(check_int("simvq", "dim", dim, 1), codebook_dim)
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, parametrization=Linear(), init=_unit_init(dim, transform)),
        transform=transform,
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def fvq(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    patch: int = 16,
    width: int = 256,
    depth: int = 2,
    heads: int = 4,
    commitment: float = 0.25,
) -> VectorQuantizer:
    """A gradient codebook under a transformer that looks at all codes; ``Codebook.fold`` drops it after training.

    The paper trains at a rate of 1e-4 by Adam (0.9, 0.95), warmed up over the first tenth of the steps and annealed
    over the last two thirds.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        patch: codes in a token of the transformer.
        width: of a token.
        depth: number of transformer blocks.
        heads: attention heads of a block; they must divide ``width``.
        commitment: weight of the commitment loss.

    Source: arXiv 2509.10140 (FVQ). Deviations: those of ``Bridge``; codes of any number, which start as SimVQ's do.

    Example:
        >>> fvq(8, 100, patch=4, width=16).codes().shape
        torch.Size([100, 8])
    """
    transform = projection_to(check_int("fvq", "dim", dim, 1), codebook_dim)
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, parametrization=Bridge(patch, width, depth, heads), init=_unit_init(dim, transform)),
        transform=transform,
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def cvq(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    decay: float = 0.99,
    anchor: Literal["closest", "random"] = "closest",
    commitment: float = 0.25,
) -> VectorQuantizer:
    """A gradient codebook whose codes move onto embeddings, the further the less they are used.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        decay: weight of the old usage in its moving average.
        anchor: which vector a code moves to, the closest one or a random one.
        commitment: weight of the commitment loss.

    Source: arXiv 2307.15139 (CVQ-VAE). Deviations: those of ``AnchoredReset``; codes are assigned and anchored by the
    Euclidean distance, where the authors' code has the angle by default.

    Example:
        >>> cvq(8, 16).codebook.reset
        AnchoredReset(decay=0.99, anchor='closest')
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=UniformInit(), reset=AnchoredReset(decay, anchor)),
        transform=projection_to(dim, codebook_dim),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def _unit_init(dim: int, transform: Projection | None) -> NormalInit:
    """Codes whose squared lengths are 1 on average."""
    return NormalInit((dim if transform is None else transform.codebook_dim(dim)) ** -0.5)
