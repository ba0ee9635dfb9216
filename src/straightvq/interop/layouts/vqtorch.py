"""vqtorch: learned affine codes, normalised ones, groups and residual levels: ``codebook.weight``."""

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.tables import (
    check_distance,
    check_no_maps,
    gradient_losses,
    is_unit_norm,
    layer_of,
    make_layer,
)
from straightvq.nn import Affine, Parametrization, ProductQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer
from straightvq.nn.families.composite import Composite
from straightvq.nn.part import check_int

PLAIN = "vqtorch"
GROUP = "vqtorch.group"
RESIDUAL = "vqtorch.residual"
MARKER = r"(?!.*quantizers\.\d+\.)(.*\.|)codebook\.weight"
# The library's split of the commitment loss between its halves.
_BETA = 0.95


def read(source: Source) -> Quantizer:
    (layer,) = _layers(source, 1, source.ask("channel_dim", -1))
    return layer


def read_group(source: Source) -> Quantizer:
    number, layers = _several(source)
    dim, channel_dim = number * layers[0].dim, source.ask("channel_dim", -1)
    if len(layers) < number:
        return ProductQuantizer(dim, layers[0], num_groups=number, channel_dim=channel_dim)
    return ProductQuantizer(dim, layers, channel_dim=channel_dim)


def read_residual(source: Source) -> Quantizer:
    number, layers = _several(source)
    dim, channel_dim = layers[0].dim, source.ask("channel_dim", -1)
    if len(layers) < number:
        return ResidualQuantizer(dim, layers[0], num_quantizers=number, channel_dim=channel_dim)
    return ResidualQuantizer(dim, layers, channel_dim=channel_dim)


def _several(source: Source) -> tuple[int, list[VectorQuantizer]]:
    """How many codes a vector gets, and a layer for each; a single one if they share it."""
    reason = "one table holds the codes of all groups or levels"
    number = check_int("from_state_dict", "num_quantizers", source.require("num_quantizers", reason), 1)
    return number, _layers(source, 1 if source.ask("shared", False) else number)


def _layers(source: Source, number: int, channel_dim: int = -1) -> list[VectorQuantizer]:
    """The table in equal blocks of rows, each as a layer."""
    table = source.take("codebook.weight", None, None)
    source.refuse(r".*running_.*", "running statistics that no layer of the library can be built with.")
    for name in ("affine_transform.scale", "affine_transform.bias"):
        if source.has(name) and source.peek(name).ndim == 3:  # with an axis for the codes of a group
            source.put(name, source.peek(name).flatten(0, 1))
    scale = source.take_if_there("affine_transform.scale", None, table.shape[1])
    is_unit = is_unit_norm(source, table)
    _check_divides(source, "codes", len(table), number)
    if scale is None:
        return [_layer(source, rows, is_unit, None, channel_dim) for rows in table.chunk(number)]
    shift = source.take("affine_transform.bias", *scale.shape)
    if bool(scale.any()) or bool(shift.any()):
        lr_scale = source.require("lr_scale", "the affine map is multiplied by it, and the state does not tell it")
    else:
        lr_scale = source.ask("lr_scale", 1.0)
    if number > 1:
        source.note("the library's levels share one affine map; here each level has its own, which starts as that.")
        scale, shift = (part.repeat(number, 1) if len(part) == 1 else part for part in (scale, shift))
        _check_divides(source, "affine groups", len(scale), number)
    if is_unit:
        source.note("the library keeps the codes at length 1 before the affine map; here their length is left free.")
    blocks = zip(table.chunk(number), scale.chunk(number), shift.chunk(number), strict=True)
    return [_layer(source, rows, is_unit, (lr_scale, s, b), channel_dim) for rows, s, b in blocks]


def _check_divides(source: Source, what: str, total: int, number: int) -> None:
    if total % number:
        raise InvalidValueError(
            f"`from_state_dict`: `num_quantizers` must divide the {total} {what} of the layout {source.layout!r}. "
            f"Got {number}."
        )


def _layer(
    source: Source, rows: Tensor, is_unit: bool, affine: tuple[float, Tensor, Tensor] | None, channel_dim: int
) -> VectorQuantizer:
    part: Parametrization | None = None if affine is None else Affine(affine[0], groups=len(affine[1]))
    losses = gradient_losses(1 - _BETA, _BETA)
    # The map is the identity so far: what is written is the raw table.
    layer = make_layer(source, rows, losses=losses, is_unit=is_unit, parametrization=part, channel_dim=channel_dim)
    if affine is not None and isinstance(part, Affine):
        with torch.no_grad():
            part.scale.copy_(affine[1])
            part.shift.copy_(affine[2])
    return layer


# --- out --------------------------------------------------------------------------------------------------------------


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    layer = layer_of(quantizer, PLAIN)
    check_distance(layer, PLAIN)
    check_no_maps(layer, PLAIN, may_be_unit=True)
    part = layer.codebook.parametrization
    if not isinstance(part, Affine):
        return {"codebook.weight": layer.codes()}
    scale, shift = part.scale.detach().clone(), part.shift.detach().clone()
    raw = layer.codebook.raw.detach().clone()
    return {"codebook.weight": raw, "affine_transform.scale": scale, "affine_transform.bias": shift}


def write_group(quantizer: Quantizer) -> dict[str, Tensor]:
    if not isinstance(quantizer, ProductQuantizer):
        cannot_hold(GROUP, f"a ProductQuantizer is wanted, and this is a {type(quantizer).__name__}.")
    return _write_several(quantizer, quantizer.groups, GROUP)


def write_residual(quantizer: Quantizer) -> dict[str, Tensor]:
    if not isinstance(quantizer, ResidualQuantizer):
        cannot_hold(RESIDUAL, f"a ResidualQuantizer is wanted, and this is a {type(quantizer).__name__}.")
    return _write_several(quantizer, quantizer.levels, RESIDUAL)


def _write_several(quantizer: Composite, parts: list[Quantizer], layout: str) -> dict[str, Tensor]:
    check_no_maps(quantizer, layout)
    states = [write(part) for part in (parts[:1] if quantizer.is_shared else parts)]
    if any(len(state) > 1 for state in states):
        cannot_hold(layout, "it has one affine map for all levels, and these have their own.")
    return {"codebook.weight": torch.cat([state["codebook.weight"] for state in states])}
