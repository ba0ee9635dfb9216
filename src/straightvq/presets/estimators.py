"""Quantizers whose gradient is not the straight-through estimator's."""

from straightvq.nn import (
    NSVQ,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    DeadCodeReset,
    DiVeQ,
    DynamicStraightThrough,
    EMAUpdate,
    EntropyLoss,
    Gumbel,
    IndexBackpropagation,
    KMeansInit,
    LargestProduct,
    ReinMax,
    RotationTrick,
    SpaceFillingDiVeQ,
    Stochastic,
    VectorQuantizer,
)


def rotation(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    max_gain: float | None = 2.0,
    decay: float = 0.8,
    commitment: float = 0.25,
    patience: int = 20,
) -> VectorQuantizer:
    """Rotation trick: the gradient turns with the code; EMA codebook, k-means init and reset of dead codes.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        max_gain: largest factor by which a gradient grows; None for no limit, as in the paper.
        decay: weight of the old value in the moving average; the authors' 0.8.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.

    Source: arXiv 2410.06424. Deviation: ``max_gain``.

    Example:
        >>> rotation(8, 16).estimator
        RotationTrick(max_gain=2.0)
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit(), update=EMAUpdate(decay), reset=DeadCodeReset(patience)),
        estimator=RotationTrick(max_gain),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def diveq(
    dim: int, codebook_size: int, *, channel_dim: int = -1, noise: float = 0.001, patience: int = 100
) -> VectorQuantizer:
    """DiVeQ: one gradient for vectors and codes, no losses; reset of dead codes.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        noise: standard deviation of what tilts the step, in the units of the vectors; 0 for the detached variant.
        patience: steps without use before a code is reset; the authors replace at every 100th.

    Source: arXiv 2509.26469. Deviations: k-means init; a reset code takes a vector, not the place of a used code.

    Example:
        >>> diveq(8, 16).codes().shape
        torch.Size([16, 8])
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit(), reset=DeadCodeReset(patience)),
        estimator=DiVeQ(noise),
        channel_dim=channel_dim,
    )


def sf_diveq(dim: int, codebook_size: int, *, channel_dim: int = -1, noise: float = 0.001) -> VectorQuantizer:
    """Space-filling DiVeQ: trains on the lines between neighbouring codes, evaluates with codes; no losses, no reset.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        noise: standard deviation of what tilts the steps, in the units of the vectors.

    Source: arXiv 2509.26469, SF-DiVeQ, which trains unquantized first (here: ``svq.bypass``). Deviations: k-means init
    then; evaluation, see `SpaceFillingDiVeQ`.

    Example:
        >>> sf_diveq(8, 16).codes().shape
        torch.Size([16, 8])
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit()),
        estimator=SpaceFillingDiVeQ(noise),
        channel_dim=channel_dim,
    )


def nsvq(dim: int, codebook_size: int, *, channel_dim: int = -1, patience: int = 100) -> VectorQuantizer:
    """NSVQ: in training noise as long as the error takes its place; no losses; reset of dead codes.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        patience: steps without use before a code is reset.

    Source: Vali and Bäckström 2022 (IEEE Access 10). Deviations: k-means init; a reset code takes a vector, not the
    place of a used code.

    Example:
        >>> nsvq(8, 16).codes().shape
        torch.Size([16, 8])
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit(), reset=DeadCodeReset(patience)),
        estimator=NSVQ(),
        channel_dim=channel_dim,
    )


def dynamic_ste(
    dim: int, codebook_size: int, *, channel_dim: int = -1, commitment: float = 0.25, patience: int = 20
) -> VectorQuantizer:
    """Dynamic straight-through estimator: far vectors get a damped gradient; gradient codebook, k-means init, reset.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        commitment: weight of the commitment loss.
        patience: steps without use before a code is reset.

    Source: StableVQ (2026). Its estimator only: the paper's codes pass a shared map, are trained by a region loss, and
    have a constant learning rate of their own (``codebook_lr`` of ``parameter_groups``), from which it reports most of
    its gain.

    Example:
        >>> dynamic_ste(8, 16).estimator
        DynamicStraightThrough()
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit(), reset=DeadCodeReset(patience)),
        estimator=DynamicStraightThrough(),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def gumbel(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    temperature: float = 1.0,
    softness: float = 1.0,
    commitment: float = 0.25,
) -> VectorQuantizer:
    """Codes drawn by distance, with the gradient of the straight-through Gumbel-softmax; gradient codebook.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        temperature: of the draws, in units of a squared distance.
        softness: of the gradient, relative to ``temperature``; the paper's 1 is one softmax for both.
        commitment: weight of the commitment loss.

    Source: arXiv 1611.01144; arXiv 2410.13331 (``softness``). Deviations: logits are distances, not a layer's output;
    commitment and codebook losses instead of the KL term to uniform probabilities.

    Example:
        >>> gumbel(8, 16, temperature=0.5).assigner
        Stochastic(temperature=0.5)
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit()),
        assigner=Stochastic(temperature),
        estimator=Gumbel(softness),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def reinmax(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    temperature: float = 1.0,
    softness: float = 1.0,
    commitment: float = 0.25,
) -> VectorQuantizer:
    """Codes drawn by distance, with the second-order gradient of ReinMax; gradient codebook.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        temperature: of the draws, in units of a squared distance.
        softness: of the gradient, relative to ``temperature``, at least 1.
        commitment: weight of the commitment loss.

    Source: arXiv 2304.08612. Deviations: as ``gumbel``.

    Example:
        >>> reinmax(8, 16).estimator
        ReinMax(temperature=1.0)
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit()),
        assigner=Stochastic(temperature),
        estimator=ReinMax(softness),
        losses=[CommitmentLoss(commitment), CodebookLoss()],
        channel_dim=channel_dim,
    )


def ibq(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    temperature: float = 1.0,
    commitment: float = 2.0,
    codebook: float = 1.25,
    entropy: float = 0.05,
) -> VectorQuantizer:
    """Index backpropagation: the code of the largest inner product, whose gradient reaches all codes; entropy loss.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        temperature: of the inner products in the gradient.
        commitment: weight of the commitment loss: the paper's 1, and 1 of its joint term.
        codebook: weight of the codebook loss: the paper's 0.25, and 1 of its joint term.
        entropy: weight of the entropy loss, without which it is reported to collapse.

    Source: arXiv 2412.02692. Deviations: k-means init; the joint term ``mean((z - code)^2)`` reaches vector and code,
    but not all codes through the index; the entropy is that of distances, at 0.02 as soft as the paper's products at
    0.01.

    Example:
        >>> ibq(8, 16).assigner
        LargestProduct()
    """
    return VectorQuantizer(
        dim,
        Codebook(codebook_size, init=KMeansInit()),
        assigner=LargestProduct(),
        estimator=IndexBackpropagation(temperature),
        losses=[CommitmentLoss(commitment), CodebookLoss(codebook), EntropyLoss(entropy, temperature=0.02)],
        channel_dim=channel_dim,
    )
