"""Mimi, from transformers: a semantic code and acoustic ones of the same vector, added up."""

from torch import Tensor

from straightvq.interop.source import Source, cannot_hold
from straightvq.interop.split import SplitQuantizer
from straightvq.interop.tables import (
    Maps,
    check_distance,
    check_no_maps,
    ema_losses,
    layer_of,
    load_maps,
    make_layer,
    make_transform,
    maps_of,
    weights_of,
)
from straightvq.nn import Quantizer, ResidualQuantizer

NAME = "mimi"
MARKER = r"(.*\.|)semantic_residual_vector_quantizer\.layers\.0\.codebook\.embed_sum"
_BRANCHES = ("semantic_residual_vector_quantizer.", "acoustic_residual_vector_quantizer.")
_DECAY, _COMMITMENT, _EPS = 0.99, 1.0, 1e-5


def read(source: Source) -> Quantizer:
    branches = [_branch(source, at) for at in _BRANCHES]
    source.note("the library's class does not train; losses and decay are those of EnCodec's layers.")
    return SplitQuantizer(branches[0].dim, branches, channel_dim=source.ask("channel_dim", -1))


def _branch(source: Source, at: str) -> ResidualQuantizer:
    levels = []
    for number in range(source.count(at + "layers.{}.codebook.embed_sum")):
        book = f"{at}layers.{number}.codebook."
        sums = source.take(f"{book}embed_sum", None, None)
        size = source.take(f"{book}cluster_usage", len(sums))
        source.drop(f"{book}initialized", "the codes are there")
        codes, decay = sums / size.clamp(min=_EPS)[:, None], source.decay(_DECAY)
        levels.append(make_layer(source, codes, losses=ema_losses(_COMMITMENT), decay=decay, cluster_size=size))
    if not source.has(f"{at}input_proj.weight"):
        return ResidualQuantizer(levels[0].dim, levels)
    down = source.take(f"{at}input_proj.weight", levels[0].dim, None, 1).squeeze(2)
    up = source.take(f"{at}output_proj.weight", down.shape[1], levels[0].dim, 1).squeeze(2)
    source.note("the projections have no bias there; here it starts at 0, and training may move it.")
    maps = Maps(down, None, up, None)
    branch = ResidualQuantizer(down.shape[1], levels, transform=make_transform(maps))
    load_maps(branch.transform, maps)
    return branch


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    if not isinstance(quantizer, SplitQuantizer) or len(quantizer.branches) != len(_BRANCHES):
        cannot_hold(NAME, "a SplitQuantizer of two ResidualQuantizers is wanted.")
    state: dict[str, Tensor] = {}
    for at, branch in zip(_BRANCHES, quantizer.branches, strict=True):
        if not isinstance(branch, ResidualQuantizer):
            cannot_hold(NAME, f"a branch must be a ResidualQuantizer, and this is a {type(branch).__name__}.")
        for number, level in enumerate(branch.levels):
            layer, book = layer_of(level, NAME), f"{at}layers.{number}.codebook."
            check_distance(layer, NAME)
            check_no_maps(layer, NAME)
            size = weights_of(layer).clamp(min=_EPS)
            state |= {f"{book}initialized": size.new_ones(1), f"{book}cluster_usage": size}
            state[f"{book}embed_sum"] = layer.codes() * size[:, None]
        if (maps := maps_of(branch, NAME)) is not None:
            if any(bias is not None and bool(bias.any()) for bias in (maps.down_bias, maps.up_bias)):
                cannot_hold(NAME, "its projections have no bias, and this quantizer's are not zero.")
            state |= {f"{at}input_proj.weight": maps.down[..., None], f"{at}output_proj.weight": maps.up[..., None]}
    return state
