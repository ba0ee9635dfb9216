"""Quantizers with codebooks, one or several."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

from straightvq.nn import (
    Affine,
    AlternatedUpdate,
    Chain,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    DeadCodeReset,
    EMAUpdate,
    GradientUpdate,
    KMeansInit,
    Nearest,
    NormalInit,
    Parametrization,
    Projection,
    ResidualQuantizer,
    RunningAffine,
    StraightThrough,
    UniformInit,
    UnitNorm,
    UnitNormCodes,
    VectorQuantizer,
)
from straightvq.nn.part import check_bool, check_int


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
        transform=projection_to(dim, codebook_dim),
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
        transform=projection_to(dim, codebook_dim),
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
    codebook_dim: int | None = None,
    fraction: float = 0.2,
    sync: float = 0.0,
    commitment: float = 0.25,
    patience: int = 20,
    reassign: bool = False,
    affine: bool = True,
) -> VectorQuantizer:
    """Our recommendation: alternated optimisation of codes that follow the moments of the vectors.

    Chosen by measurement, see ``docs/presets.md``: the alternated step and the moments keep the codes on moving data of
    any scale and mean, k-means starts them there, and dead codes are reset. No width has to be chosen, and no learning
    rate of the codes.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``. With images
            and an autoencoder 8 is worth a try.
        fraction: of the way to the cluster mean, per step.
        sync: the paper's nu.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.
        reassign: whether vectors are assigned again after the step: a second search, and no lower error where measured.
        affine: whether all codes follow the mean and deviation of the vectors, by ``RunningAffine()``.

    Source: arXiv 2305.08842 for alternation, affine codes, replacement and k-means.

    Example:
        >>> straight(64, 16).codes().shape
        torch.Size([16, 64])
    """
    return _alternated(
        dim,
        codebook_size,
        transform=projection_to(dim, codebook_dim),
        update=AlternatedUpdate(fraction=fraction, reassign=reassign),
        parametrization=RunningAffine() if check_bool("straight", "affine", affine) else None,
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
    memory: float = 100.0,
    sync: float = 0.0,
    commitment: float = 0.25,
    patience: int = 20,
    dropout: float = 0.0,
    kept_choices: Sequence[int] | None = None,
    beam: int = 1,
) -> ResidualQuantizer:
    """Our recommendation for several codes per vector: alternated optimisation at every level.

    Each level starts by k-means on what the levels before it have left, run until little changes, because every later
    level inherits the error. Its codes are running means, so that small noisy batches, whole data sets and data that
    move are served alike; see ``benchmarks/residual.py``. Whatever the width, no level can make what is left longer
    than it was at the start.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes of each level.
        num_quantizers: number of levels.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection of each level; None, or at least ``dim``: that of
            ``z``.
        memory: how many of its vectors a code is the mean of; larger is steadier, smaller follows faster.
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
            transform=projection_to(dim, codebook_dim, start="orthonormal"),
            update=AlternatedUpdate(memory=memory, reassign=False),
            init=KMeansInit(50, trials=4),
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
    patience: int | None = None,
) -> ResidualQuantizer:
    """Residual levels with narrow codes found by the angle, trained by gradient: the quantizer of DAC.

    Vectors that all point about the same way, as those of a fresh encoder may, find one code at every level; with
    ``patience`` the codes start by k-means and unused ones are reset.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes of each level.
        num_quantizers: number of levels.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection of each level.
        commitment: weight of the commitment loss.
        dropout: share of the samples that keep only some levels in training.
        patience: steps without use before a code is reset; None: DAC's normal start, and no reset.

    Source: arXiv 2306.06546, section 3.2. Deviations: the projections start orthonormal and have no weight
    normalisation; the commitment of every level reaches the encoder.

    Example:
        >>> dac(16, 32).codebooks()[0].codes().shape
        torch.Size([32, 8])
    """
    levels = [
        VectorQuantizer(
            dim,
            Codebook(
                codebook_size,
                init=NormalInit() if patience is None else KMeansInit(),
                reset=None if patience is None else DeadCodeReset(patience),
            ),
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
    parametrization: Parametrization | None = None,
    init: KMeansInit | None = None,
    channel_dim: int = -1,
) -> VectorQuantizer:
    return VectorQuantizer(
        dim,
        Codebook(
            codebook_size,
            parametrization=parametrization,
            init=init or KMeansInit(),
            update=update,
            reset=DeadCodeReset(patience),
        ),
        transform=transform,
        estimator=StraightThrough(sync),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def projection_to(
    dim: int, codebook_dim: int | None, start: Literal["scaled", "orthonormal"] = "scaled"
) -> Projection | None:
    """The projection to narrower codes, None where there is nothing to narrow."""
    if codebook_dim is None:
        return None
    projection = Projection(codebook_dim, start)
    # A `dim` that is no integer is the quantizer's to refuse.
    return projection if not isinstance(dim, Integral) or codebook_dim < dim else None
