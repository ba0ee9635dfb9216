"""Layers around tables that exist already, and the tables of layers for other libraries."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.transforms import Steps
from straightvq.nn import (
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    EMAUpdate,
    Estimator,
    GradientUpdate,
    Identity,
    Loss,
    Nearest,
    Parametrization,
    Projection,
    Quantizer,
    Transform,
    UnitNorm,
    UnitNormCodes,
    VectorQuantizer,
)

# A row counts as of length 1 within this; float16 files are that coarse.
_UNIT = 2e-3
# Moving averages count as those of the table within this share of the code's length.
_SAME = 1e-2


class Maps(NamedTuple):
    """Two linear maps: weight (codebook_dim, dim) and bias of the one, weight (dim, codebook_dim) and bias back."""

    down: Tensor
    down_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None


def make_layer(
    source: Source,
    codes: Tensor,
    *,
    losses: Sequence[Loss],
    decay: float | None = None,
    cluster_size: Tensor | None = None,
    maps: Maps | None = None,
    is_unit: bool = False,
    assigner: Nearest | None = None,
    estimator: Estimator | None = None,
    parametrization: Parametrization | None = None,
    channel_dim: int = -1,
) -> VectorQuantizer:
    """A layer with these codes. With ``decay`` it is an EMA codebook, whose codes weigh ``cluster_size`` vectors."""
    if parametrization is None and is_unit:
        parametrization = UnitNormCodes()
    update = GradientUpdate() if decay is None else EMAUpdate(decay)
    if codes.shape[0] < 2:
        raise InvalidValueError(
            f"`from_state_dict`: the codebook at {source.prefix!r} must have at least 2 codes. Got {codes.shape[0]}."
        )
    layer = VectorQuantizer(
        codes.shape[1] if maps is None else maps.down.shape[1],
        Codebook(codes.shape[0], parametrization=parametrization, update=update),
        transform=make_transform(maps, is_unit=is_unit),
        assigner=assigner,
        estimator=estimator,
        losses=list(losses),
        channel_dim=channel_dim,
    )
    layer.to(codes.dtype)
    load_maps(layer.transform, maps)
    layer.set_codes(codes)
    if cluster_size is not None and isinstance(update, EMAUpdate):
        if not bool((cluster_size >= 0).all()) or not bool(torch.isfinite(cluster_size).all()):
            raise InvalidValueError(
                f"`from_state_dict`: the weights of the codes at {source.prefix!r} must be finite and at least 0. "
                f"Got values from {cluster_size.min():.3g} to {cluster_size.max():.3g}."
            )
        update.cluster_size.copy_(cluster_size)
    return layer


def ema_losses(commitment: float) -> list[Loss]:
    return [CommitmentLoss(commitment)]


def gradient_losses(commitment: float, codebook: float = 1.0) -> list[Loss]:
    return [CommitmentLoss(commitment), CodebookLoss(codebook)]


def make_transform(maps: Maps | None, *, is_unit: bool = False) -> Transform:
    parts: list[Transform] = [] if maps is None else [Projection(maps.down.shape[0])]
    parts += [UnitNorm()] if is_unit else []
    if not parts:
        return Identity()
    return parts[0] if len(parts) == 1 else Steps(parts)


@torch.no_grad()
def load_maps(transform: Transform, maps: Maps | None) -> None:
    """Writes the maps into the projection of a bound transform that ``make_transform`` made."""
    projection = projection_of(transform)
    if maps is None or projection is None:
        return
    transform.to(maps.down.dtype)
    for layer, weight, bias in (
        (projection.down, maps.down, maps.down_bias),
        (projection.up, maps.up, maps.up_bias),
    ):
        if layer.weight.shape != weight.shape:
            raise InvalidValueError(
                f"`from_state_dict`: the projections must fit together: one of {tuple(layer.weight.shape)} is wanted. "
                f"Got {tuple(weight.shape)}."
            )
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def is_unit_norm(source: Source, *tables: Tensor) -> bool:
    """Whether vectors are to be normalised: as told, else where all codes have the length 1."""
    told = source.ask("unit_norm")
    if told is not None:
        return bool(told)
    return all(bool((table.norm(dim=-1) - 1).abs().max() < _UNIT) for table in tables)


def note_stale(source: Source, codes: Tensor, averages: Tensor) -> None:
    """Notes rows that are not their own moving average: the library's next step would move them there."""
    gap = (codes - averages).norm(dim=1)
    stale = int((gap > _SAME * codes.norm(dim=1).clamp(min=1e-6)).sum())
    if stale:
        source.note(
            f"{stale} of {len(codes)} codes at {source.prefix!r} are not their own moving averages. The library's next "
            "step would move them there at once; here they stay where the forward has them."
        )


# --- out --------------------------------------------------------------------------------------------------------------


def projection_of(transform: nn.Module) -> Projection | None:
    """The projection in a transform: itself, or the first of several steps."""
    if isinstance(transform, Steps):
        transform = transform.parts[0]
    return transform if isinstance(transform, Projection) else None


def maps_of(quantizer: Quantizer, layout: str, *, may_be_unit: bool = False) -> Maps | None:
    """The projection of a quantizer; refuses other transforms, but for a normalisation where that is said."""
    transform: nn.Module = quantizer.transform
    projection = projection_of(transform)
    rest = list(transform.parts) if isinstance(transform, Steps) else [transform]
    rest = [part for part in rest if part is not projection and not isinstance(part, Identity)]
    if [type(part) for part in rest] not in ([], *([[UnitNorm]] if may_be_unit else [])):
        cannot_hold(layout, f"it has no entries for the transform {type(transform).__name__}.")
    if projection is None:
        return None
    values = projection.down.weight, projection.down.bias, projection.up.weight, projection.up.bias
    return Maps(*(value.detach().clone() for value in values))


def check_no_maps(quantizer: Quantizer, layout: str, *, may_be_unit: bool = False) -> None:
    """Refuses a quantizer with a transform, but for a normalisation where that is said."""
    if maps_of(quantizer, layout, may_be_unit=may_be_unit) is not None:
        cannot_hold(layout, "it has no entries for a projection.")


def layer_of(quantizer: object, layout: str) -> VectorQuantizer:
    if not isinstance(quantizer, VectorQuantizer):
        cannot_hold(layout, f"a VectorQuantizer is wanted, and this is a {type(quantizer).__name__}.")
    return quantizer


def is_unit_layer(layer: VectorQuantizer) -> bool:
    """Whether vectors are normalised before the search."""
    return any(isinstance(part, UnitNorm) for part in layer.transform.modules())


def check_distance(layer: VectorQuantizer, layout: str, distance: str = "euclidean") -> None:
    if type(layer.assigner) is not Nearest or layer.assigner.distance != distance:
        cannot_hold(layout, f"it searches by the {distance} distance, and this layer with {layer.assigner}.")


def weights_of(layer: VectorQuantizer) -> Tensor:
    """How many vectors each code weighs; 1 where the layer keeps no averages."""
    update = layer.codebook.update
    if isinstance(update, EMAUpdate):
        return update.cluster_size.clone()
    return torch.ones(layer.codebook_size, dtype=layer.codes().dtype)


def smoothed(weights: Tensor, eps: float = 1e-5) -> Tensor:
    """Laplace's smoothing over the last axis, by which other libraries divide: the total stays."""
    total = weights.sum(-1, keepdim=True)
    return (weights + eps) / (total + weights.shape[-1] * eps) * total
