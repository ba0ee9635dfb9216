"""DAC, from transformers and from its authors: narrow residual codes, ``quantizers.0.codebook.weight``."""

from torch import Tensor

from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.tables import Maps, check_distance, gradient_losses, layer_of, make_layer, maps_of
from straightvq.nn import Nearest, Quantizer, ResidualQuantizer

NAME = "dac"
MARKER = r"(.*\.|)quantizers\.0\.codebook\.weight"
_COMMITMENT = 0.25
# Of weight norm, in torch's older and newer form: length and direction.
_NORMED = [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]


def read(source: Source) -> Quantizer:
    levels = []
    for number in range(source.count("quantizers.{}.codebook.weight")):
        at = f"quantizers.{number}."
        codes = source.take(f"{at}codebook.weight", None, None)
        width = codes.shape[1]
        down, down_bias = _convolution(source, f"{at}in_proj.", width, None)
        up, up_bias = _convolution(source, f"{at}out_proj.", down.shape[1], width)
        maps = Maps(down, down_bias, up, up_bias)
        losses, nearest = gradient_losses(_COMMITMENT), Nearest("cosine")
        levels.append(make_layer(source, codes, losses=losses, maps=maps, assigner=nearest))
    source.note("the library leaves the weights 0.25 and 1 of the two terms to the training script; here they are set.")
    channel_dim = source.ask("channel_dim", -1)
    return ResidualQuantizer(levels[0].dim, levels, gradient="per_level", channel_dim=channel_dim)


def _convolution(source: Source, at: str, out: int, width: int | None) -> tuple[Tensor, Tensor]:
    """Weight (out, width) and bias of a convolution of width 1; weight norm is multiplied out."""
    for length_name, direction_name in _NORMED:
        if source.has(at + length_name):
            direction = source.take(at + direction_name, out, width, 1)
            length = source.take(at + length_name, out, 1, 1)
            source.put(f"{at}weight", length * direction / direction.flatten(1).norm(dim=1)[:, None, None])
            source.note("weight norm of the projections is multiplied out: the same map, another path in training.")
    return source.take(f"{at}weight", out, width, 1).squeeze(2), source.take(f"{at}bias", out)


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    if not isinstance(quantizer, ResidualQuantizer) or maps_of(quantizer, NAME) is not None:
        cannot_hold(NAME, "a ResidualQuantizer is wanted whose levels have projections of their own.")
    state: dict[str, Tensor] = {}
    for number, level in enumerate(quantizer.levels):
        layer, at = layer_of(level, NAME), f"quantizers.{number}."
        check_distance(layer, NAME, "cosine")
        maps = maps_of(layer, NAME)
        if maps is None or maps.down_bias is None or maps.up_bias is None:
            cannot_hold(NAME, f"level {number} must have the transform Projection.")
        state |= {f"{at}codebook.weight": layer.codes()}
        state |= {f"{at}in_proj.weight": maps.down[..., None], f"{at}in_proj.bias": maps.down_bias}
        state |= {f"{at}out_proj.weight": maps.up[..., None], f"{at}out_proj.bias": maps.up_bias}
    return state
