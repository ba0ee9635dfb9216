"""The VQ-VAE files of zalandoresearch and all that copied them, with the names of sonnet: ``_embedding.weight``."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.interop.source import Source, check_state, listed
from straightvq.interop.tables import (
    check_distance,
    check_no_maps,
    ema_losses,
    gradient_losses,
    layer_of,
    make_layer,
    note_stale,
    weights_of,
)
from straightvq.nn import EMAUpdate, Quantizer
from straightvq.nn.part import check_float

NAME = "vqvae"
MARKER = r"(.*\.|)_embedding\.weight"
_COMMITMENT = 0.25


def read(source: Source) -> Quantizer:
    codes = source.take("_embedding.weight", None, None)
    channel_dim = source.ask("channel_dim", -1)
    size = source.take_if_there("_ema_cluster_size", len(codes))
    if size is None:
        return make_layer(source, codes, losses=gradient_losses(_COMMITMENT), channel_dim=channel_dim)
    sums = source.take("_ema_w", *codes.shape)
    note_stale(source, codes, sums / size.clamp(min=torch.finfo(size.dtype).tiny)[:, None])
    source.note("Laplace's smoothing of the weights is left out: codes that nobody uses stay where they are.")
    decay = source.decay(0.99)
    losses = ema_losses(_COMMITMENT)
    return make_layer(source, codes, losses=losses, decay=decay, cluster_size=size, channel_dim=channel_dim)


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    layer = layer_of(quantizer, NAME)
    check_distance(layer, NAME)
    check_no_maps(layer, NAME)
    state = {"_embedding.weight": layer.codes()}
    if isinstance(layer.codebook.update, EMAUpdate):
        size = weights_of(layer)
        state |= {"_ema_cluster_size": size, "_ema_w": layer.codes() * size[:, None]}
    return state


# --- the network around it --------------------------------------------------------------------------------------------

# Names of the layout's layers -> places in ``VQVAENet``, those in front of the residual blocks.
_ENCODER = {"_encoder._conv_1": 1, "_encoder._conv_2": 3, "_encoder._conv_3": 5}
_DECODER = {"_decoder._conv_1": 0}


def network_weights(state: Mapping[str, Tensor], half_range: float = 0.5) -> dict[str, Tensor]:
    """The encoder's and decoder's weights of such a file, under the names of `straightvq.models.VQVAENet`.

    Weight norm is multiplied out. That network must have ``rectified_skip=True``: the layout rectifies in place, so
    that the shortcut of its residual blocks is rectified too.

    Args:
        state: all entries of the file.
        half_range: how pictures were scaled for it: 0.5 for ``x - 0.5``, 1 for [-1, 1]. No entry tells. The first and
            the last layer take the factor, so that the network is given pictures in [0, 1] and gives such.

    Raises:
        TypeError, ValueError: for other states.

    Example:
        >>> state = {"_pre_vq_conv.weight": torch.ones(4, 8, 1, 1), "_pre_vq_conv.bias": torch.zeros(4)}
        >>> sorted(network_weights(state))
        ['encoder.7.bias', 'encoder.7.weight']
    """
    check_float("network_weights", "half_range", half_range, minimum=0, open_minimum=True)
    plain = _without_weight_norm(check_state(state))
    numbers = [int(m[1]) for name in plain if (m := re.search(r"_encoder.*_layers\.(\d+)\._block", name))]
    blocks = 1 + max(numbers, default=-1)
    places = {name: f"encoder.{place}" for name, place in _ENCODER.items()}
    places["_pre_vq_conv"] = f"encoder.{7 + blocks}"
    places |= {name: f"decoder.{place}" for name, place in _DECODER.items()}
    for number in range(blocks):
        for inside in (1, 3):
            block = f"_residual_stack._layers.{number}._block.{inside}"
            places[f"_encoder.{block}"] = f"encoder.{6 + number}.body.{inside}"
            places[f"_decoder.{block}"] = f"decoder.{1 + number}.body.{inside}"
    places |= {"_decoder._conv_trans_1": f"decoder.{2 + blocks}", "_decoder._conv_trans_2": f"decoder.{4 + blocks}"}
    weights = {}
    for name, place in places.items():
        if f"{name}.weight" not in plain:
            continue
        weight = weights[f"{place}.weight"] = plain[f"{name}.weight"]
        wide = weight.shape[1] if "_conv_trans_" in name else weight.shape[0]
        weights[f"{place}.bias"] = plain.get(f"{name}.bias", weight.new_zeros(wide))
    if not weights:
        raise InvalidValueError(
            f"`network_weights`: `state` must have entries such as '_pre_vq_conv.weight'. Got {listed(state)}."
        )
    # Inside the network pictures are x - 0.5.
    scales = {"encoder.1.weight": 2 * half_range}
    scales |= {f"decoder.{4 + blocks}.{kind}": 0.5 / half_range for kind in ("weight", "bias")}
    for name in scales.keys() & weights.keys():
        weights[name] = scales[name] * weights[name]
    return weights


def _without_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weight = g v / ||v||``, the norm over all axes but the first, for pairs ``weight_g``, ``weight_v``."""
    plain = {name: value for name, value in state.items() if not re.search(r"\.weight_[gv]$", name)}
    for name, length in state.items():
        if name.endswith(".weight_g"):
            direction = state.get(name.removesuffix("_g") + "_v")
            if direction is None or len(direction) != length.numel():
                raise InvalidValueError(
                    f"`network_weights`: {name!r} must have its direction beside it, weight_v, with as many rows as it "
                    f"has entries, {length.numel()}. Got {'none' if direction is None else tuple(direction.shape)}."
                )
            norm = direction.flatten(1).norm(dim=1).view(length.shape)
            plain[name.removesuffix("_g")] = length * direction / norm
    return plain
