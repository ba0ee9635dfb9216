"""vector-quantize-pytorch without a table: ``FSQ`` and ``LFQ``, the latter on the sphere too, version 1.32."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.interop.layouts.vqp import take_maps, write_maps
from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.tables import Maps, load_maps, maps_of
from straightvq.interop.transforms import Reversed
from straightvq.nn import (
    BinarySphericalQuantizer,
    CommitmentLoss,
    EntropyLoss,
    FiniteScalarQuantizer,
    Identity,
    LookupFreeQuantizer,
    Loss,
    ProductQuantizer,
    Projection,
    Quantizer,
    Transform,
)
from straightvq.nn.families.binary import SignQuantizer
from straightvq.nn.families.finite_scalar import Form
from straightvq.nn.part import check_int

FSQ = "vqp.fsq"
LFQ = "vqp.lfq"
BSQ = "vqp.bsq"
MARKER_FSQ = r"(.*\.|)project_in\.weight"
MARKER_LFQ = r"(.*\.|)mask"
_ENTROPY, _TEMPERATURE = 0.1, 0.01
_ROTATED = "a fixed rotation in front of the grid (orthogonal_rotation) has no part here."


def is_bits(state: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether the entry ``mask`` is that of LFQ: the values of the bits, the highest first."""
    mask = state[prefix + "mask"]
    return mask.ndim == 1 and len(mask) > 0 and mask.tolist() == _bit_values(len(mask))


def _bit_values(bits: int) -> list[int]:
    return [1 << place for place in reversed(range(bits))]


def read_fsq(source: Source) -> Quantizer:
    source.refuse("orthogonal_rot", _ROTATED)
    levels = list(source.require("levels", "the library does not save them"))
    form: Form = "symmetric" if source.ask("symmetric", False) else "atanh"
    source.note("noise_dropout draws for each coordinate there; here `noise` draws for each vector.")

    def make(dim: int, transform: Transform | None, channel_dim: int) -> Quantizer:
        return FiniteScalarQuantizer(dim, levels, form=form, transform=transform, channel_dim=channel_dim)

    return _side_by_side(source, take_maps(source), len(levels), make)


def read_lfq(source: Source) -> Quantizer:
    source.note(
        "a state of LFQ does not tell codebook_scale, which is taken to be 1, nor spherical: for that the layout is "
        f"{BSQ!r}."
    )
    source.note("the sign of 0 is +1 here, and -1 there.")

    def make(dim: int, transform: Transform | None, channel_dim: int) -> Quantizer:
        return LookupFreeQuantizer(dim, bits, transform=transform, losses=_losses(source), channel_dim=channel_dim)

    bits, maps = _read_bits(source)
    return _side_by_side(source, maps, bits, make, is_reversed=True)


def read_bsq(source: Source) -> Quantizer:
    source.note("the sign of 0 is +1 here, and -1 there.")

    def make(dim: int, transform: Transform | None, channel_dim: int) -> Quantizer:
        return BinarySphericalQuantizer(dim, bits, transform=transform, losses=_losses(source), channel_dim=channel_dim)

    bits, maps = _read_bits(source)
    return _side_by_side(source, maps, bits, make, is_reversed=True)


def _losses(source: Source) -> list[Loss]:
    commitment = source.ask("commitment", 0.0)
    entropy = EntropyLoss(_ENTROPY, temperature=_TEMPERATURE)
    return [entropy, CommitmentLoss(commitment)] if commitment else [entropy]


def _read_bits(source: Source) -> tuple[int, Maps | None]:
    source.refuse("orthogonal_rot", _ROTATED)
    bits = len(source.peek("mask"))
    source.drop("mask", "the values of the bits are known")
    maps = take_maps(source)
    return bits, None if maps is None else _reverse(maps, bits)


def _side_by_side(
    source: Source,
    maps: Maps | None,
    width: int,
    make: Callable[[int, Transform | None, int], Quantizer],
    *,
    is_reversed: bool = False,
) -> Quantizer:
    """One quantizer of ``width`` channels, or several of them beside each other, behind the projection."""
    channels = len(maps.down) if maps else check_int("from_state_dict", "dim", source.ask("dim", width), 1)
    channel_dim, number = source.ask("channel_dim", -1), channels // width
    if channels % width or number == 0:
        raise InvalidValueError(
            f"`from_state_dict`: the channels of a state of the layout {source.layout!r} must be a multiple of "
            f"{width}, one for each level or bit. Got {channels}."
        )
    inner = Reversed() if is_reversed and maps is None else None
    outer = None if maps is None else Projection(channels)
    dim = channels if maps is None else maps.down.shape[1]
    if number == 1:
        quantizer = make(dim, inner or outer, channel_dim)
    else:
        group = make(width, inner, -1)
        quantizer = ProductQuantizer(dim, group, num_groups=number, transform=outer, channel_dim=channel_dim)
    if maps is not None:
        quantizer.to(maps.down.dtype)
        load_maps(quantizer.transform, maps)
    return quantizer


def _reverse(maps: Maps, bits: int) -> Maps:
    """The maps to and from channels in reverse, within each group of ``bits``."""

    def flip(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, bits)).flip(1).flatten(0, 1)

    if len(maps.down) % bits:
        return maps  # refused as soon as the layer is made
    bias = None if maps.down_bias is None else flip(maps.down_bias)
    return Maps(flip(maps.down), bias, flip(maps.up.T).T, maps.up_bias)


# --- out --------------------------------------------------------------------------------------------------------------


def write_fsq(quantizer: Quantizer) -> dict[str, Tensor]:
    part, maps = _inside(quantizer, FSQ)
    if not isinstance(part, FiniteScalarQuantizer) or part.form == "paper" or part.scale != 1 or part.clamp:
        cannot_hold(FSQ, "a FiniteScalarQuantizer is wanted, of the form 'atanh' or 'symmetric' and of scale 1.")
    return {} if maps is None else write_maps(maps)


def write_lfq(quantizer: Quantizer) -> dict[str, Tensor]:
    part, maps = _inside(quantizer, LFQ)
    if not isinstance(part, LookupFreeQuantizer):
        cannot_hold(LFQ, f"a LookupFreeQuantizer is wanted, and this is a {type(part).__name__}.")
    return _write_bits(part, maps, LFQ)


def write_bsq(quantizer: Quantizer) -> dict[str, Tensor]:
    part, maps = _inside(quantizer, BSQ)
    if not isinstance(part, BinarySphericalQuantizer):
        cannot_hold(BSQ, f"a BinarySphericalQuantizer is wanted, and this is a {type(part).__name__}.")
    return _write_bits(part, maps, BSQ)


def _inside(quantizer: Quantizer, layout: str) -> tuple[Quantizer, Maps | None]:
    """The quantizer, or the one that all groups of a product share, and the projection in front of it."""
    if not isinstance(quantizer, ProductQuantizer):
        maps = None if isinstance(quantizer.transform, Reversed) else maps_of(quantizer, layout)
        return quantizer, maps
    group = quantizer.groups[0]
    if not quantizer.is_shared or not isinstance(group.transform, (Reversed, Identity)):
        cannot_hold(layout, "several codebooks are one quantizer, shared by all groups.")
    return group, maps_of(quantizer, layout)


def _write_bits(part: SignQuantizer, maps: Maps | None, layout: str) -> dict[str, Tensor]:
    if maps is None and not isinstance(part.transform, Reversed):
        cannot_hold(layout, "its first channel is the highest bit: the layer needs the transform Reversed().")
    state = {"mask": torch.tensor(_bit_values(part.bits))}
    return state if maps is None else state | write_maps(_reverse(maps, part.bits))
