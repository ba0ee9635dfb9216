"""The rows of the paper's tables as one function of what is switched on."""

import straightvq as svq
from straightvq.errors import InvalidValueError
from straightvq.nn import Parametrization
from straightvq.nn.part import check_bool


def ablation(
    dim: int,
    codebook_size: int,
    *,
    channel_dim: int = -1,
    lr_scale: float | None = None,
    groups: int = 1,
    running: bool = False,
    sync: float = 0.0,
    fraction: float | None = None,
    patience: int | None = None,
    l2: bool = False,
    kmeans: bool = True,
    commitment: float = 0.25,
) -> svq.VectorQuantizer:
    """Plain VQ with a k-means start, plus any of the paper's methods.

    With the values of `straightvq.presets.vq_ste_pp`, all of them together are that preset. A row of a study differs
    from plain VQ in what it switches on and in nothing else.

    Args:
        dim: channels of ``z``.
        codebook_size: number of codes.
        channel_dim: axis of the channels.
        lr_scale: learning-rate multiplier of learned affine codes; None for codes without a learned map.
        groups: affine groups, learned or running.
        running: affine codes from running statistics.
        sync: weight of the synchronised update, the paper's nu; 0 for none.
        fraction: of the way to the cluster mean, per step of alternated optimisation; None to train the codebook by
            gradient.
        patience: steps without use before a code is replaced; None for no replacement.
        l2: unit-norm embeddings and codes.
        kmeans: start the codes from k-means of the first batch, or from N(0, 1) as the authors' code does.
        commitment: weight of the commitment loss.

    Raises:
        ValueError: for affine codes that are both learned and running, and for values that a part refuses.

    Source: arXiv 2305.08842, the rows of its tables.

    Example:
        >>> ablation(8, 16, lr_scale=2.0, patience=20).codebook.parametrization
        Affine(lr_scale=2.0, groups=1)
    """
    for name, value in (("l2", l2), ("running", running), ("kmeans", kmeans)):
        check_bool("ablation", name, value)
    if running and lr_scale is not None:
        raise InvalidValueError(
            "`ablation`: affine codes are learned (`lr_scale`) or follow running statistics (`running`), not both. "
            f"Got lr_scale={lr_scale}, running=True."
        )
    parts: list[Parametrization] = []
    parts += [svq.RunningAffine(groups=groups)] if running else []
    parts += [svq.Affine(lr_scale, groups)] if lr_scale is not None else []
    parts += [svq.UnitNormCodes()] if l2 else []
    codebook = svq.Codebook(
        codebook_size,
        parametrization=svq.Chain(parts) if len(parts) > 1 else parts[0] if parts else None,
        init=svq.KMeansInit() if kmeans else svq.NormalInit(),
        update=svq.GradientUpdate() if fraction is None else svq.AlternatedUpdate(fraction=fraction),
        reset=None if patience is None else svq.DeadCodeReset(patience),
    )
    return svq.VectorQuantizer(
        dim,
        codebook,
        transform=svq.UnitNorm() if l2 else None,
        estimator=svq.StraightThrough(sync),
        losses=[svq.CommitmentLoss(commitment), svq.CodebookLoss()],
        channel_dim=channel_dim,
    )
