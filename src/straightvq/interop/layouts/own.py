"""Our own layers without a description beside them: a bare state dict, or the checkpoint of a network with one."""

import re

from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.interop.source import Source
from straightvq.interop.tables import is_unit_norm, layer_of
from straightvq.interop.transforms import Steps
from straightvq.nn import (
    Affine,
    AlternatedUpdate,
    AnchoredReset,
    Chain,
    Codebook,
    DeadCodeReset,
    Direct,
    EMAUpdate,
    GradientUpdate,
    Linear,
    Parametrization,
    Projection,
    Quantizer,
    Reset,
    RunningAffine,
    Transform,
    UnitNorm,
    UnitNormCodes,
    Update,
    VectorQuantizer,
)

NAME = "straightvq"
MARKER = r"(.*\.|)codebook\.raw"
_MAP = "codebook.parametrization."
_STEPS = "transform.parts.0."
_MEMORY = 100.0  # of an update that counts; any gives the same codes
_MOMENTUM = 0.9


def read(source: Source) -> Quantizer:
    raw = source.take("codebook.raw", None, None)
    parametrization, is_unit = _parametrization(source, raw)
    transform, dim = _transform(source, raw.shape[1], is_unit)
    book = Codebook(len(raw), parametrization=parametrization, update=_update(source), reset=_reset(source))
    layer = VectorQuantizer(dim, book, transform=transform, channel_dim=source.ask("channel_dim", -1)).to(raw.dtype)
    state = layer.state_dict()
    for name, value in state.items():
        if name.startswith("clock."):
            source.drop(name, "random draws start over.")
        else:
            state[name] = raw if name == "codebook.raw" else source.take(name, *value.shape)
    layer.load_state_dict(state)
    for name in source.names("losses."):
        source.drop(name, "a loss with a memory has settings that no entry tells.")
    source.note(
        "a state tells the parts that have entries, and no settings: assigner, estimator, losses, init and an update "
        "without entries are the defaults here. To train on, build the layer as it was built and use load_state_dict."
    )
    if not (state["codebook.is_ready"] > 0 or state["codebook.filled"].any()):
        source.note("it has not been trained: an init that waits for data replaces the codes in the first batch.")
    if whole := re.fullmatch(r"((?:.*\.|)parts\.)\d+\.", source.prefix):
        source.note(
            f"the quantizers at {whole[1]!r} are parts of a composite; no entry tells whether they are residual levels "
            "or groups of channels."
        )
    return layer


def write(quantizer: Quantizer) -> dict[str, Tensor]:
    return dict(layer_of(quantizer, NAME).state_dict())


def _parametrization(source: Source, raw: Tensor) -> tuple[Parametrization, bool]:
    """What maps the raw table, and whether vectors are normalised like the codes that it gives."""
    if not source.names(_MAP):
        is_unit = is_unit_norm(source, raw)
        return UnitNormCodes() if is_unit else Direct(), is_unit
    if not source.names(f"{_MAP}parts."):
        return _map(source, _MAP), False
    number = 0
    parts: list[Parametrization] = []
    while source.names(f"{_MAP}parts.{number}."):
        parts.append(_map(source, f"{_MAP}parts.{number}."))
        number += 1
    # The one that comes last and has no entries.
    is_unit = bool(source.ask("unit_norm", number == 1))
    return Chain([*parts, *([UnitNormCodes()] if is_unit else [])]), is_unit


def _map(source: Source, at: str) -> Parametrization:
    """One that is known by the names of its entries."""
    names = {name.removeprefix(at) for name in source.names(at)}
    if names == {"scale", "shift"}:
        scale = source.peek(f"{at}scale")
        reason = "the codes are multiplied by it, and a state does not tell it (preset vq_ste_pp: 2)"
        is_started = bool(scale.any()) or bool(source.peek(f"{at}shift").any())
        lr_scale = source.require("lr_scale", reason) if is_started else source.ask("lr_scale", 1.0)
        return Affine(lr_scale, groups=len(scale) if scale.ndim else 1)
    if names in ({"weight"}, {"weight", "shift"}):
        return Linear(freeze_basis=False, bias="shift" in names)
    if "mean_z" in names:
        mean = source.peek(f"{at}mean_z")
        return RunningAffine(groups=len(mean) if mean.ndim else 1)
    raise InvalidValueError(
        f"`from_state_dict`: the parametrization at {source.prefix + at!r} must be Affine, RunningAffine, Linear or a "
        "Chain of them: of others no entry tells the settings. Build the layer as it was built and use "
        f"load_state_dict, or save it with save_pretrained. Got {', '.join(sorted(names)[:4])}."
    )


def _transform(source: Source, width: int, is_unit: bool) -> tuple[Transform | None, int]:
    """With the channels of ``z``."""
    if source.has(f"{_STEPS}down.weight"):
        steps = Steps([Projection(width), UnitNorm()])
        return steps, _columns(source, f"{_STEPS}down.weight")
    if source.has("transform.down.weight"):
        return Projection(width), _columns(source, "transform.down.weight")
    return UnitNorm() if is_unit else None, width


def _columns(source: Source, name: str) -> int:
    weight = source.peek(name)
    return weight.shape[1] if weight.ndim == 2 else 1


def _update(source: Source) -> Update:
    if source.has("codebook.update.cluster_size"):
        return EMAUpdate(source.decay(0.99))
    momentum = _MOMENTUM if source.has("codebook.update.velocity") else 0.0
    if source.has("codebook.update.seen"):
        return AlternatedUpdate(memory=_MEMORY, momentum=momentum)
    return AlternatedUpdate(momentum=momentum) if momentum else GradientUpdate()


def _reset(source: Source) -> Reset | None:
    if source.has("codebook.reset.usage"):
        return AnchoredReset()
    return DeadCodeReset() if source.has("codebook.reset.idle") else None
