"""vector-quantize-pytorch: ``VectorQuantize``, ``ResidualVQ`` and ``GroupedResidualVQ``, version 1.32."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.tables import (
    Maps,
    check_distance,
    check_no_maps,
    ema_losses,
    gradient_losses,
    is_unit_layer,
    is_unit_norm,
    layer_of,
    load_maps,
    make_layer,
    make_transform,
    maps_of,
    note_stale,
    smoothed,
    weights_of,
)
from straightvq.nn import ProductQuantizer, Quantizer, ResidualQuantizer, RotationTrick, VectorQuantizer
from straightvq.nn.part import check_int

PLAIN = "vqp"
RESIDUAL = "vqp.residual"
GROUPED = "vqp.grouped_residual"
MARKER = r"(.*\.|)_codebook\.initted"
MARKER_RESIDUAL = r"(.*\.|)layers\.0\._codebook\.initted"
MARKER_GROUPED = r"(.*\.|)rvqs\.0\.layers\.0\._codebook\.initted"
_DECAY, _COMMITMENT = 0.8, 1.0

ROTATION = (
    "the library's gradient is that of the rotation trick unless it was told otherwise; here it is straight-through "
    "until you set `quantizer.estimator = RotationTrick(max_gain=None)`."
)
_NO_ROTATION = "the gradient of the levels is straight-through here, and by default that of the rotation trick there."
_SMOOTHING = "Laplace's smoothing of the weights is left out: codes that nobody uses stay where they are."
RESIDUAL_STEP = "in training a level here sees what the codes of the earlier ones leave after their step, there before."
_REFUSED = {
    r"(.*\.)?project_in\.1\..*": "a normalisation behind the projection (layernorm_after_project_in) has no part here.",
    r"(.*\.)?_codebook\.(batch|codebook)_(mean|variance).*": (
        "affine_param cannot be represented: its moving averages are those of mapped vectors."
    ),
    r"(.*\.)?vq_bridge\..*": "a network between table and codes (vq_bridge) has no part here.",
    r"(.*\.)?mlps\..*": "codes that depend on earlier levels (implicit_neural_codebook) cannot be represented.",
}


def read(source: Source) -> Quantizer:
    _refuse(source)
    maps, tables, is_turned = take_maps(source), _tables(source, "_codebook."), source.ask("rotation_trick")
    if is_turned is None:
        source.note(ROTATION)
    width, channel_dim = tables[0].codes.shape[1], source.ask("channel_dim", -1)
    if maps is None and len(tables) == 1:
        told = source.ask("dim")
        if told is None:
            source.note(f"no entry tells the number of heads, taken to be one of width {width}; `dim` tells it.")
        heads = _heads(source, width if told is None else told, width)
    else:
        heads = len(tables) if maps is None else _heads(source, len(maps.down), width)
    if heads == 1:
        return _layer(source, tables[0], maps, channel_dim, is_turned=bool(is_turned))
    layers = [_layer(source, table, is_turned=bool(is_turned)) for table in tables]
    if len(layers) not in (1, heads):
        raise InvalidValueError(
            f"`from_state_dict`: a state of the layout {PLAIN!r} must have one codebook or one for each of its "
            f"{heads} heads. Got {len(layers)}."
        )
    dim = heads * width if maps is None else maps.down.shape[1]
    transform = make_transform(maps)
    if len(layers) == 1:
        product = ProductQuantizer(dim, layers[0], num_groups=heads, transform=transform, channel_dim=channel_dim)
    else:
        product = ProductQuantizer(dim, layers, transform=transform, channel_dim=channel_dim)
    load_maps(product.transform, maps)
    return product


def read_residual(source: Source) -> Quantizer:
    _refuse(source)
    return _residual(source, "", source.ask("channel_dim", -1))


def read_grouped(source: Source) -> Quantizer:
    _refuse(source)
    groups = [
        _residual(source, f"rvqs.{number}.") for number in range(source.count("rvqs.{}.layers.0._codebook.embed"))
    ]
    source.note(
        "indices here are (*batch, levels * groups), the first levels of all groups first; those of the library, "
        "(groups, *batch, levels), become them by `indices.movedim(0, -1).flatten(-2)`."
    )
    return ProductQuantizer(sum(group.dim for group in groups), groups, channel_dim=source.ask("channel_dim", -1))


class _Table(NamedTuple):
    """A codebook of the library: codes, and what they weigh; None where the codebook is learned by gradient."""

    codes: Tensor
    cluster_size: Tensor | None
    is_unit: bool


def _tables(source: Source, at: str) -> list[_Table]:
    """The codebooks of one module, one for each head that has its own."""
    embed = source.take(f"{at}embed", None, None, None)
    heads, size, _ = embed.shape
    weights = source.take(f"{at}cluster_size", heads, size)
    averages = source.take(f"{at}embed_avg", *embed.shape)
    if not bool(source.peek(f"{at}initted").all()):
        raise InvalidValueError(
            f"`from_state_dict`: the codebook at {source.prefix + at!r} must have been started. Got one that waits for "
            "its first batch (initted is False): there is nothing to bring in."
        )
    source.drop(f"{at}initted", "the codes are there")
    is_unit = is_unit_norm(source, *embed)
    means = F.normalize(averages, dim=-1) if is_unit else averages / smoothed(weights)[..., None]
    # Averages that nothing has moved, beside codes that something has.
    is_idle = bool((weights == 1).all()) and not torch.allclose(means, embed, rtol=1e-3, atol=1e-6)
    if source.ask("by_gradient", is_idle):
        return [_Table(codes, None, is_unit) for codes in embed]
    for codes, own in zip(embed, means, strict=True):
        note_stale(source, codes, own)
    # A code on the sphere weighs as much as its sum of vectors is long: its next step is then the library's.
    weights = averages.norm(dim=-1) if is_unit else weights
    return [_Table(codes, weight, is_unit) for codes, weight in zip(embed, weights, strict=True)]


def _layer(
    source: Source, table: _Table, maps: Maps | None = None, channel_dim: int = -1, *, is_turned: bool = False
) -> VectorQuantizer:
    by_gradient = table.cluster_size is None
    if by_gradient:
        source.note("a codebook learned by gradient: the library's one term counts here twice, once for each side.")
    else:
        source.note(_SMOOTHING)
    return make_layer(
        source,
        table.codes,
        losses=gradient_losses(_COMMITMENT) if by_gradient else ema_losses(_COMMITMENT),
        decay=None if by_gradient else source.decay(_DECAY),
        cluster_size=table.cluster_size,
        maps=maps,
        is_unit=table.is_unit,
        estimator=RotationTrick(max_gain=None) if is_turned else None,
        channel_dim=channel_dim,
    )


def _residual(source: Source, at: str, channel_dim: int = -1) -> ResidualQuantizer:
    maps = take_maps(source, at)
    number = source.count(at + "layers.{}._codebook.embed")
    tables = [table for level in range(number) for table in _tables(source, f"{at}layers.{level}._codebook.")]
    if len(tables) > number:
        raise InvalidValueError("`from_state_dict`: levels with several heads cannot be represented.")
    dim = tables[0].codes.shape[1] if maps is None else maps.down.shape[1]
    transform = make_transform(maps)
    source.note(RESIDUAL_STEP)
    source.note(_NO_ROTATION)
    if number > 1:
        source.note(f"the library passes the gradient of the task once per level, {number} times in all; here once.")
    if number > 1 and all(torch.equal(table.codes, tables[0].codes) for table in tables):
        source.note("levels that share their codes: the library lets the averages decay once per level, here per step.")
        level = _layer(source, tables[0])
        out = ResidualQuantizer(dim, level, num_quantizers=number, transform=transform, channel_dim=channel_dim)
    else:
        levels = [_layer(source, table) for table in tables]
        out = ResidualQuantizer(dim, levels, transform=transform, channel_dim=channel_dim)
    load_maps(out.transform, maps)
    return out


def take_maps(source: Source, at: str = "") -> Maps | None:
    """``project_in`` and ``project_out``, if they are there."""
    if not source.has(f"{at}project_in.weight"):
        return None
    down = source.take(f"{at}project_in.weight", None, None)
    down_bias = source.take_if_there(f"{at}project_in.bias", len(down))
    up = source.take(f"{at}project_out.weight", down.shape[1], len(down))
    return Maps(down, down_bias, up, source.take_if_there(f"{at}project_out.bias", len(up)))


def _heads(source: Source, channels: object, width: int) -> int:
    channels = check_int("from_state_dict", "dim", channels, 1)
    if channels % width:
        raise InvalidValueError(
            f"`from_state_dict`: `dim` must be a multiple of the width {width} of the codes at {source.prefix!r}. "
            f"Got {channels}."
        )
    return channels // width


def _refuse(source: Source) -> None:
    for pattern, reason in _REFUSED.items():
        source.refuse(pattern, reason)


# --- out --------------------------------------------------------------------------------------------------------------


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    if isinstance(quantizer, ProductQuantizer):
        layers = [layer_of(group, PLAIN) for group in (quantizer.parts if quantizer.is_shared else quantizer.groups)]
        if any(layer.dim != layers[0].dim or layer.codebook_size != layers[0].codebook_size for layer in layers):
            cannot_hold(PLAIN, "its heads are of one size.")
        return _write_maps(maps_of(quantizer, PLAIN)) | _write_tables(layers, PLAIN)
    layer = layer_of(quantizer, PLAIN)
    return _write_maps(maps_of(layer, PLAIN, may_be_unit=True)) | _write_tables([layer], PLAIN, own_maps=True)


def write_residual(quantizer: Quantizer) -> dict[str, Tensor]:
    if not isinstance(quantizer, ResidualQuantizer):
        cannot_hold(RESIDUAL, f"a ResidualQuantizer is wanted, and this is a {type(quantizer).__name__}.")
    state = _write_maps(maps_of(quantizer, RESIDUAL))
    for number, level in enumerate(quantizer.levels):
        table = _write_tables([layer_of(level, RESIDUAL)], RESIDUAL)
        state |= {f"layers.{number}.{name}": value for name, value in table.items()}
    return state


def write_grouped(quantizer: Quantizer) -> dict[str, Tensor]:
    if not isinstance(quantizer, ProductQuantizer) or maps_of(quantizer, GROUPED) is not None or quantizer.is_shared:
        cannot_hold(GROUPED, "a ProductQuantizer of ResidualQuantizers is wanted, without a projection around them.")
    groups = enumerate(quantizer.groups)
    return {f"rvqs.{i}.{name}": value for i, group in groups for name, value in write_residual(group).items()}


def _write_tables(layers: list[VectorQuantizer], layout: str, *, own_maps: bool = False) -> dict[str, Tensor]:
    for layer in layers:
        check_distance(layer, layout)
        if not own_maps:
            check_no_maps(layer, layout, may_be_unit=True)
    if len({is_unit_layer(layer) for layer in layers}) > 1:
        cannot_hold(layout, "all heads are normalised, or none.")
    embed = torch.stack([layer.codes() for layer in layers])
    weights = torch.stack([weights_of(layer) for layer in layers])
    averages = embed * (weights if is_unit_layer(layers[0]) else smoothed(weights))[..., None]
    return {
        "_codebook.initted": torch.tensor(True),
        "_codebook.cluster_size": weights,
        "_codebook.embed_avg": averages,
        "_codebook.embed": embed,
    }


def _write_maps(maps: Maps | None) -> dict[str, Tensor]:
    return {} if maps is None else write_maps(maps)


def write_maps(maps: Maps) -> dict[str, Tensor]:
    state = {"project_in.weight": maps.down, "project_in.bias": maps.down_bias}
    state |= {"project_out.weight": maps.up, "project_out.bias": maps.up_bias}
    return {name: value for name, value in state.items() if value is not None}
