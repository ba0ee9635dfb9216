"""Quantizers by the name of their paper. Each is a composition that you could write yourself."""

from numbers import Integral

from straightvq import nn
from straightvq.nn.part import check_bool

__all__ = ["ema", "straight", "vq_ste_pp", "vq_vae"]


def vq_vae(
    dim: int, codebook_size: int, *, channel_dim: int = -1, codebook_dim: int | None = None, commitment: float = 0.25
) -> nn.VectorQuantizer:
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
    codebook = nn.Codebook(codebook_size, init=nn.UniformInit(), update=nn.GradientUpdate())
    transform = _projection(dim, codebook_dim)
    return nn.VectorQuantizer(dim, codebook, transform=transform, losses=_losses(commitment), channel_dim=channel_dim)


def ema(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    decay: float = 0.99,
    commitment: float = 0.25,
    patience: int = 20,
) -> nn.VectorQuantizer:
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
    update, reset = nn.EMAUpdate(decay), nn.DeadCodeReset(patience)
    codebook = nn.Codebook(codebook_size, init=nn.KMeansInit(), update=update, reset=reset)
    transform = _projection(dim, codebook_dim)
    return nn.VectorQuantizer(dim, codebook, transform=transform, losses=_losses(commitment), channel_dim=channel_dim)


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
) -> nn.VectorQuantizer:
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
    affine: nn.Parametrization = nn.Affine(lr_scale, groups)
    codebook = nn.Codebook(
        codebook_size,
        parametrization=nn.Chain([affine, nn.UnitNormCodes()]) if l2 else affine,
        init=nn.KMeansInit(),
        update=nn.AlternatedUpdate(fraction=fraction, lr=lr, momentum=momentum),
        reset=nn.DeadCodeReset(patience),
    )
    transform, estimator = nn.UnitNorm() if l2 else None, nn.StraightThrough(sync)
    return nn.VectorQuantizer(
        dim, codebook, transform=transform, estimator=estimator, losses=_losses(commitment), channel_dim=channel_dim
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
) -> nn.VectorQuantizer:
    """Our recommendation: alternated optimisation of narrow codes, with k-means init and reset of dead codes.

    Measured in ``benchmarks/results/``: the alternated step keeps the codes on moving data; narrow codes lower the
    reconstruction error and steady it.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        fraction: of the way to the cluster mean, per step.
        sync: the paper's nu.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.
        reassign: assigns vectors again after the step: a second search, and no lower error where measured.

    Source: arXiv 2305.08842 for alternation, replacement and k-means; arXiv 2110.04627 for narrow codes.

    Example:
        >>> straight(64, 16).codes().shape
        torch.Size([16, 8])
    """
    update, reset = nn.AlternatedUpdate(fraction=fraction, reassign=reassign), nn.DeadCodeReset(patience)
    codebook = nn.Codebook(codebook_size, init=nn.KMeansInit(), update=update, reset=reset)
    transform, estimator = _projection(dim, codebook_dim), nn.StraightThrough(sync)
    return nn.VectorQuantizer(
        dim, codebook, transform=transform, estimator=estimator, losses=_losses(commitment), channel_dim=channel_dim
    )


def _losses(commitment: float) -> list[nn.Loss]:
    return [nn.CommitmentLoss(commitment), nn.CodebookLoss()]


def _projection(dim: int, codebook_dim: int | None) -> nn.Projection | None:
    """The projection to narrower codes, None where there is nothing to narrow."""
    if codebook_dim is None:
        return None
    projection = nn.Projection(codebook_dim)
    # A `dim` that is no integer is the quantizer's to refuse.
    return projection if not isinstance(dim, Integral) or codebook_dim < dim else None
