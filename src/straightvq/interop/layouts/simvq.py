"""vector-quantize-pytorch's ``SimVQ``, version 1.32: a fixed table behind one learned linear map."""

import torch
from torch import Tensor

from straightvq.interop.layouts.vqp import ROTATION
from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.tables import check_distance, check_no_maps, gradient_losses, layer_of, make_layer
from straightvq.nn import Linear, Quantizer

NAME = "vqp.simvq"
MARKER = r"(.*\.|)frozen_codebook"
_COMMITMENT = 0.25


def read(source: Source) -> Quantizer:
    source.refuse(r"code_transform\.\d.*", "a network in the place of the one linear map has no part here.")
    table = source.take("frozen_codebook", None, None)
    # The map to codes of another width than the table's has no inverse.
    weight = source.take("code_transform.weight", table.shape[1], table.shape[1])
    shift = source.take_if_there("code_transform.bias", len(weight))
    source.note(ROTATION)
    part = Linear(bias=shift is not None)
    losses, channel_dim = gradient_losses(_COMMITMENT), source.ask("channel_dim", -1)
    # The map is the identity so far: what is written is the fixed table.
    layer = make_layer(source, table, losses=losses, parametrization=part, channel_dim=channel_dim)
    with torch.no_grad():
        part.weight.copy_(weight)
        if shift is not None and part.shift is not None:
            part.shift.copy_(shift)
    return layer


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    layer = layer_of(quantizer, NAME)
    check_distance(layer, NAME)
    check_no_maps(layer, NAME)
    part = layer.codebook.parametrization
    if not isinstance(part, Linear) or not part.freeze_basis:
        cannot_hold(NAME, f"its table is fixed, behind a Linear() map; this one is behind {type(part).__name__}.")
    state = {"frozen_codebook": layer.codebook.raw, "code_transform.weight": part.weight}
    return state if part.shift is None else state | {"code_transform.bias": part.shift}
