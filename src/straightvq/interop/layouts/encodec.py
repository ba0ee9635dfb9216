"""EnCodec, from transformers and from its authors: residual EMA codebooks, ``layers.0.codebook.embed``."""

from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.interop.layouts.vqp import RESIDUAL_STEP, take_maps
from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.tables import (
    check_distance,
    check_no_maps,
    ema_losses,
    layer_of,
    make_layer,
    note_stale,
    smoothed,
    weights_of,
)
from straightvq.nn import Quantizer, ResidualQuantizer

NAME = "encodec"
MARKER = r"(.*\.|)layers\.0\._?codebook\.inited"
_DECAY, _COMMITMENT = 0.99, 1.0


def read(source: Source) -> Quantizer:
    name = "layers.{}._codebook." if source.has("layers.0._codebook.inited") else "layers.{}.codebook."
    levels = []
    for number in range(source.count(name + "embed")):
        at = name.format(number)
        codes = source.take(f"{at}embed", None, None)
        size = source.take(f"{at}cluster_size", len(codes))
        sums = source.take(f"{at}embed_avg", *codes.shape)
        if not bool(source.peek(f"{at}inited").all()):
            raise InvalidValueError(
                f"`from_state_dict`: the codebook at {source.prefix + at!r} must have been started. Got one that waits "
                "for its first batch (inited is 0): there is nothing to bring in."
            )
        source.drop(f"{at}inited", "the codes are there")
        note_stale(source, codes, sums / smoothed(size).clamp(min=1e-30)[:, None])
        maps = take_maps(source, f"layers.{number}.")
        losses, decay = ema_losses(_COMMITMENT), source.decay(_DECAY)
        levels.append(make_layer(source, codes, losses=losses, decay=decay, cluster_size=size, maps=maps))
    source.note("Laplace's smoothing of the weights is left out: codes that nobody uses stay where they are.")
    source.note(RESIDUAL_STEP)
    source.note("codes whose weight falls below 2 are replaced there; here by a `DeadCodeReset`, if you give one.")
    return ResidualQuantizer(levels[0].dim, levels, channel_dim=source.ask("channel_dim", -1))


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    if not isinstance(quantizer, ResidualQuantizer):
        cannot_hold(NAME, f"a ResidualQuantizer is wanted, and this is a {type(quantizer).__name__}.")
    check_no_maps(quantizer, NAME)
    state: dict[str, Tensor] = {}
    for number, level in enumerate(quantizer.levels):
        layer = layer_of(level, NAME)
        check_distance(layer, NAME)
        check_no_maps(layer, NAME)
        codes, size, at = layer.codes(), weights_of(layer), f"layers.{number}.codebook."
        state |= {f"{at}inited": codes.new_ones(1), f"{at}cluster_size": size, f"{at}embed": codes}
        state[f"{at}embed_avg"] = codes * smoothed(size)[:, None]
    return state
