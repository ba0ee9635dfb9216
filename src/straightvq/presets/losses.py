"""Presets whose losses or assignment reach every code."""

from straightvq.nn import (
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    DynamicStraightThrough,
    GradientUpdate,
    Linear,
    Loss,
    MMDLoss,
    NormalInit,
    Parametrization,
    RegionLoss,
    Sinkhorn,
    VectorQuantizer,
    WassersteinLoss,
)
from straightvq.presets.codebooks import projection_to


def wasserstein(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    commitment: float = 0.1,
    matching: float = 0.5,
    queue: int = 65536,
) -> VectorQuantizer:
    """Gradient codebook whose mean and covariance are drawn to those of recent embeddings.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        commitment: weight of the commitment loss.
        matching: weight of the Wasserstein distance.
        queue: recent embeddings that it is measured to.

    Source: arXiv 2506.15078. The authors train the codes with a constant rate of 0.02, 400 times that of the rest: give
    ``codebook_lr`` to the optimizer.

    Example:
        >>> wasserstein(8, 16).losses[2]
        WassersteinLoss(
          weight=0.5, queue=65536
          (recent): RecentVectors(capacity=65536)
        )
    """
    losses: list[Loss] = [CommitmentLoss(commitment), CodebookLoss(), WassersteinLoss(matching, queue)]
    return _by_gradient(dim, codebook_size, channel_dim, losses, codebook_dim=codebook_dim)


def mmd(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    commitment: float = 0.1,
    matching: float = 0.5,
    queue: int = 2048,
) -> VectorQuantizer:
    """Gradient codebook whose distribution is drawn to that of recent embeddings, by a kernel.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        commitment: weight of the commitment loss.
        matching: weight of the discrepancy.
        queue: recent embeddings that it is measured to; the time grows with the square of their number and the codes'.

    Source: the MMD-VQ of VQ-Transplant (ICLR 2026). The kernel is ours.

    Example:
        >>> mmd(8, 16).losses[2].queue
        2048
    """
    losses: list[Loss] = [CommitmentLoss(commitment), CodebookLoss(), MMDLoss(matching, queue)]
    return _by_gradient(dim, codebook_size, channel_dim, losses, codebook_dim=codebook_dim)


def optvq(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    commitment: float = 0.25,
    temperature: float = 0.1,
    iterations: int = 5,
) -> VectorQuantizer:
    """Gradient codebook with balanced assignment in training: all codes are used about equally in every batch.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        commitment: weight of the commitment loss.
        temperature: of the transport plan, in standard deviations of the cost.
        iterations: sweeps of balancing.

    Source: arXiv 2412.15195, with its linear map that all codes share. Deviation: nearest codes in evaluation.

    Example:
        >>> optvq(8, 16).assigner
        Sinkhorn(temperature=0.1, iterations=5)
    """
    return _by_gradient(
        dim,
        codebook_size,
        channel_dim,
        [CommitmentLoss(commitment), CodebookLoss()],
        codebook_dim=codebook_dim,
        parametrization=Linear(freeze_basis=False),
        assigner=Sinkhorn(temperature, iterations),
    )


def stablevq(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    codebook_dim: int | None = None,
    commitment: float = 0.25,
    window: int = 20,
) -> VectorQuantizer:
    """A linear map of all codes under the region loss, by which used codes take unused ones along; dynamic estimator.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        codebook_dim: width of the codes, by a learned projection; None, or at least ``dim``: that of ``z``.
        commitment: weight of the commitment loss.
        window: steps without use after which a code is taken along.

    Source: StableVQ (2026), as we have it second-hand. Most of its effect is a constant rate for the codes (1e-3)
    beside one that anneals: give ``codebook_lr`` to the optimizer.

    Example:
        >>> stablevq(8, 16).losses[1]
        RegionLoss(weight=1.0, window=20)
    """
    losses: list[Loss] = [CommitmentLoss(commitment), RegionLoss(window=window)]
    return _by_gradient(
        dim,
        codebook_size,
        channel_dim,
        losses,
        codebook_dim=codebook_dim,
        parametrization=Linear(freeze_basis=False),
        estimator=DynamicStraightThrough(),
    )


def _by_gradient(
    dim: int,
    codebook_size: int,
    channel_dim: int,
    losses: list[Loss],
    *,
    codebook_dim: int | None,
    parametrization: Parametrization | None = None,
    assigner: Sinkhorn | None = None,
    estimator: DynamicStraightThrough | None = None,
) -> VectorQuantizer:
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, parametrization=parametrization, init=NormalInit(), update=GradientUpdate()),
        transform=projection_to(dim, codebook_dim),
        assigner=assigner,
        estimator=estimator,
        losses=losses,
        channel_dim=channel_dim,
    )
