"""Quantizers by the name of their paper. Each is a composition that you could write yourself."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

from straightvq.nn import (
    Affine,
    AlternatedUpdate,
    AnchoredReset,
    BinarySphericalQuantizer,
    Bridge,
    Chain,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    DeadCodeReset,
    EMAUpdate,
    FiniteScalarQuantizer,
    GradientUpdate,
    KMeansInit,
    Linear,
    LookupFreeQuantizer,
    Nearest,
    NormalInit,
    Parametrization,
    Projection,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    StraightThrough,
    UniformInit,
    UnitNorm,
    UnitNormCodes,
    VectorQuantizer,
)
from straightvq.nn.part import check_bool, check_int

__all__ = [
    "best_rq",
    "bsq",
    "cvq",
    "dac",
    "ema",
    "fsq",
    "fvq",
    "lfq",
    "rq_vae",
    "simvq",
    "soundstream",
    "straight",
    "straight_residual",
    "vq_ste_pp",
    "vq_vae",
]


def vq_vae(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    commitment: float = 0.25,
) -> VectorQuantizer:
    """Plain VQ: a gradient codebook with a uniform start, straight-through estimator, no rescue for dead codes.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        commitment: weight of the commitment loss.

    Source: arXiv 1711.00937. It collapses easily; it is here as the baseline.

    Example:
        >>> vq_vae(8, 16).codes().shape
        torch.Size([16, 8])
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=UniformInit(), update=GradientUpdate()),
        transform=_projection(dim, codebook_dim),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def ema(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    decay: float = 0.99,
    commitment: float = 0.25,
    patience: int = 20,
) -> VectorQuantizer:
    """EMA codebook with k-means init and reset of dead codes: the strongest conventional baseline.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        decay: weight of the old value in the moving average.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.

    Source: arXiv 1711.00937 appendix A.1 (EMA); k-means init and reset as in SoundStream (arXiv 2107.03312).

    Example:
        >>> ema(8, 16).codes().shape
        torch.Size([16, 8])
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit(), update=EMAUpdate(decay), reset=DeadCodeReset(patience)),
        transform=_projection(dim, codebook_dim),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def vq_ste_pp(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    lr_scale: float = 2.0,
    groups: int = 1,
    sync: float = 0.2,
    fraction: float | None = None,
    lr: float | None = None,
    momentum: float = 0.0,
    patience: int = 20,
    commitment: float = 0.25,
    l2: bool = False,
) -> VectorQuantizer:
    """The paper's full recipe: affine codes, alternated optimisation, synchronised update, replacement, k-means.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        lr_scale: learning-rate multiplier of the affine map.
        groups: affine groups.
        sync: the paper's nu.
        fraction: of the way to the cluster mean, per inner step; by default 0.1.
        lr: the authors' inner SGD instead of ``fraction``; they use ``lr=50, momentum=0.9``.
        momentum: of the inner step.
        patience: steps without use before a code is replaced.
        commitment: weight of the commitment loss; the codebook's share belongs to the inner step.
        l2: unit-norm embeddings and codes, as in the paper's best reconstruction row.

    Source: arXiv 2305.08842; values from the authors' examples and the range that the paper states.

    Example:
        >>> vq_ste_pp(8, 16, l2=True).codes().norm(dim=1).allclose(__import__("torch").ones(16))
        True
    """
    check_bool("vq_ste_pp", "l2", l2)
    affine: Parametrization = Affine(lr_scale, groups)
    return VectorQuantizer(
        dim,
        Codebook(
            codebook_size,
            parametrization=Chain([affine, UnitNormCodes()]) if l2 else affine,
            init=KMeansInit(),
            update=AlternatedUpdate(fraction=fraction, lr=lr, momentum=momentum),
            reset=DeadCodeReset(patience),
        ),
        transform=UnitNorm() if l2 else None,
        estimator=StraightThrough(sync),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def straight(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = 8,
    fraction: float = 0.2,
    sync: float = 0.0,
    commitment: float = 0.25,
    patience: int = 20,
    reassign: bool = False,
) -> VectorQuantizer:
    """Our recommendation: alternated optimisation of narrow codes, with k-means init and reset of dead codes.

    Chosen by measurement, see ``benchmarks/results/``: the alternated step keeps the codes on moving data, narrow codes
    lower the reconstruction error and steady it.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        fraction: of the way to the cluster mean, per step.
        sync: the paper's nu.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.
        reassign: whether vectors are assigned again after the step: a second search, and no lower error where measured.

    Source: arXiv 2305.08842 for alternation, replacement and k-means; arXiv 2110.04627 for narrow codes.

    Example:
        >>> straight(64, 16).codes().shape
        torch.Size([16, 8])
    """
    return _alternated(
        dim,
        codebook_size,
        transform=_projection(dim, codebook_dim),
        update=AlternatedUpdate(fraction=fraction, reassign=reassign),
        sync=sync,
        commitment=commitment,
        patience=patience,
        channel_dim=channel_dim,
    )


def straight_residual(
    dim: int,
    codebook_size: int,
    *,
    num_quantizers: int = 8,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    fraction: float = 0.5,
    sync: float = 0.0,
    commitment: float = 0.25,
    patience: int = 20,
    dropout: float = 0.0,
    kept_choices: Sequence[int] | None = None,
    beam: int = 1,
) -> ResidualQuantizer:
    """Our recommendation for several codes per vector: alternated optimisation at every level.

    Each level starts by k-means on what the levels before it have left. Whatever the width, no level can make what is
    left longer than it was at the start.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes of each level.
        num_quantizers: number of levels.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection of each level; None, or at least ``dim``: that of
            ``z``.
        fraction: of the way to the cluster mean, per step.
        sync: the paper's nu.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.
        dropout: share of the samples that keep only some levels in training.
        kept_choices: how many levels they may keep; None for any number.
        beam: candidates kept per vector while encoding.

    Source: arXiv 2305.08842 for alternation, replacement and k-means; arXiv 2107.03312 for the levels and dropout.

    Example:
        >>> straight_residual(8, 16, num_quantizers=4).codebook_sizes
        [16, 16, 16, 16]
    """
    levels = [
        _alternated(
            dim,
            codebook_size,
            transform=_projection(dim, codebook_dim, start="orthonormal"),
            update=AlternatedUpdate(fraction=fraction, reassign=False),
            sync=sync,
            commitment=commitment,
            patience=patience,
        )
        for _ in range(check_int("straight_residual", "num_quantizers", num_quantizers, 1))
    ]
    return ResidualQuantizer(
        dim, levels, dropout=dropout, kept_choices=kept_choices, beam=beam, channel_dim=channel_dim
    )


def soundstream(
    dim: int,
    codebook_size: int,
    *,
    num_quantizers: int = 8,
    channel_dim: int = -1,
    decay: float = 0.99,
    commitment: float = 0.25,
    patience: int = 20,
    dropout: float = 0.0,
) -> ResidualQuantizer:
    """Residual EMA codebooks with k-means init and reset: the quantizer of SoundStream and EnCodec.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes of each level.
        num_quantizers: number of levels.
        channel_dim: axis of the channels.
        decay: weight of the old value in the moving average.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.
        dropout: share of the samples that keep only some levels in training; 1 in the paper's scalable models.

    Source: arXiv 2107.03312, section III.C.

    Example:
        >>> soundstream(8, 16).num_quantizers
        8
    """
    levels = [
        ema(dim, codebook_size, decay=decay, commitment=commitment, patience=patience)
        for _ in range(check_int("soundstream", "num_quantizers", num_quantizers, 1))
    ]
    return ResidualQuantizer(dim, levels, dropout=dropout, channel_dim=channel_dim)


def dac(
    dim: int,
    codebook_size: int,
    *,
    num_quantizers: int = 9,
    channel_dim: int = -1,
    codebook_dim: int = 8,
    commitment: float = 0.25,
    dropout: float = 0.5,
) -> ResidualQuantizer:
    """Residual levels with narrow codes found by the angle, trained by gradient: the quantizer of DAC.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes of each level.
        num_quantizers: number of levels.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection of each level.
        commitment: weight of the commitment loss.
        dropout: share of the samples that keep only some levels in training.

    Source: arXiv 2306.06546, section 3.2. Deviations: the projections start orthonormal and have no weight
    normalisation; the commitment of every level reaches the encoder.

    Example:
        >>> dac(16, 32).codebooks()[0].codes().shape
        torch.Size([32, 8])
    """
    levels = [
        VectorQuantizer(
            dim,
            Codebook(codebook_size, init=NormalInit()),
            transform=Projection(codebook_dim, start="orthonormal"),
            assigner=Nearest("cosine"),
            losses=[CommitmentLoss(commitment), CodebookLoss()],
        )
        for _ in range(check_int("dac", "num_quantizers", num_quantizers, 1))
    ]
    return ResidualQuantizer(dim, levels, gradient="per_level", dropout=dropout, channel_dim=channel_dim)


def rq_vae(
    dim: int,
    codebook_size: int,
    *,
    num_quantizers: int = 4,
    channel_dim: int = -1,
    decay: float = 0.99,
    commitment: float = 0.25,
    patience: int = 20,
) -> ResidualQuantizer:
    """Residual levels that share one EMA codebook.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        num_quantizers: number of levels.
        channel_dim: axis of the channels.
        decay: weight of the old value in the moving average.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.

    Source: arXiv 2203.01941, section 3.1.

    Example:
        >>> len(rq_vae(8, 16).codebooks())
        1
    """
    num_quantizers = check_int("rq_vae", "num_quantizers", num_quantizers, 1)
    level = ema(dim, codebook_size, decay=decay, commitment=commitment, patience=patience)
    return ResidualQuantizer(dim, level, num_quantizers=num_quantizers, channel_dim=channel_dim)


def _alternated(
    dim: int,
    codebook_size: int,
    *,
    transform: Projection | None,
    update: AlternatedUpdate,
    sync: float,
    commitment: float,
    patience: int,
    channel_dim: int = -1,
) -> VectorQuantizer:
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit(), update=update, reset=DeadCodeReset(patience)),
        transform=transform,
        estimator=StraightThrough(sync),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
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


def _projection(
    dim: int, codebook_dim: int | None, start: Literal["scaled", "orthonormal"] = "scaled"
) -> Projection | None:
    """The projection to narrower codes, None where there is nothing to narrow."""
    if codebook_dim is None:
        return None
    projection = Projection(codebook_dim, start)
    # A `dim` that is no integer is the quantizer's to refuse.
    return projection if not isinstance(dim, Integral) or codebook_dim < dim else None


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
    transform = _projection(check_int("simvq", "dim", dim, 1), codebook_dim)
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
    transform = _projection(check_int("fvq", "dim", dim, 1), codebook_dim)
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
        transform=_projection(dim, codebook_dim),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def _unit_init(dim: int, transform: Projection | None) -> NormalInit:
    """Codes whose squared lengths are 1 on average."""
    return NormalInit((dim if transform is None else transform.codebook_dim(dim)) ** -0.5)
