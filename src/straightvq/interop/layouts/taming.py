"""VQGAN: taming-transformers and its descendants, and the ``VQModel`` of diffusers: ``quantize.embedding.weight``."""

from torch import Tensor

from straightvq.interop.source import Source
from straightvq.interop.tables import (
    check_distance,
    check_no_maps,
    ema_losses,
    gradient_losses,
    is_unit_norm,
    layer_of,
    make_layer,
    weights_of,
)
from straightvq.nn import EMAUpdate, Quantizer

TAMING = "taming"
DIFFUSERS = "diffusers"
MARKER = r"(.*\bquantize\.|)embedding\.weight"
_BETA = 0.25


def read(source: Source) -> Quantizer:
    source.refuse(r"used", "remapped indices cannot be represented: they stand for a subset of the codes.")
    codes = source.take("embedding.weight", None, None)
    channel_dim = source.ask("channel_dim", -1)
    size = source.take_if_there("embedding.cluster_size", len(codes))
    is_unit = is_unit_norm(source, codes)
    if size is not None:
        source.drop("embedding.embed_avg", "it is the code times its weight")
        decay, losses = source.decay(0.99), ema_losses(_BETA)
        return make_layer(
            source, codes, losses=losses, decay=decay, cluster_size=size, is_unit=is_unit, channel_dim=channel_dim
        )
    source.note(
        "the library weighs the codebook's term with beta = 0.25 and the commitment with 1, the other way round than "
        "the paper (legacy=True, its default), and so does this layer. For the paper's weights set "
        "`losses[0].coefficient = 0.25` and `losses[1].coefficient = 1`."
    )
    losses = gradient_losses(1.0, _BETA)
    return make_layer(source, codes, losses=losses, is_unit=is_unit, channel_dim=channel_dim)


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    layer = layer_of(quantizer, TAMING)
    check_distance(layer, TAMING)
    check_no_maps(layer, TAMING, may_be_unit=True)
    state = {"embedding.weight": layer.codes()}
    if isinstance(layer.codebook.update, EMAUpdate):
        size = weights_of(layer)
        state |= {"embedding.cluster_size": size, "embedding.embed_avg": layer.codes() * size[:, None]}
    return state
