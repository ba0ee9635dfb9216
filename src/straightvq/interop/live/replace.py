"""Swapping the quantizers inside a network of another library's."""

from typing import Any

from torch import nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.interop.live.adapter import Adapter
from straightvq.interop.live.codecs import DacQuantizer, EncodecQuantizer, MimiQuantizer
from straightvq.interop.live.images import VQGANQuantizer, VQVAEQuantizer
from straightvq.interop.live.vqp import FSQ, LFQ, ResidualVQ, SimVQ, VectorQuantize
from straightvq.nn.part import check_choice

# Layout, package, class -> adapter. Classes that people copy into their own files have no package.
_KNOWN: list[tuple[str, str, tuple[str, ...], type[Adapter]]] = [
    ("vqp", "vector_quantize_pytorch", ("VectorQuantize",), VectorQuantize),
    ("vqp.residual", "vector_quantize_pytorch", ("ResidualVQ",), ResidualVQ),
    ("vqp.simvq", "vector_quantize_pytorch", ("SimVQ",), SimVQ),
    ("vqp.fsq", "vector_quantize_pytorch", ("FSQ",), FSQ),
    ("vqp.lfq", "vector_quantize_pytorch", ("LFQ",), LFQ),
    ("diffusers", "diffusers", ("VectorQuantizer",), VQGANQuantizer),
    ("taming", "taming", ("VectorQuantizer2",), VQGANQuantizer),
    ("encodec", "transformers", ("EncodecResidualVectorQuantizer",), EncodecQuantizer),
    ("dac", "transformers", ("DacResidualVectorQuantizer",), DacQuantizer),
    ("mimi", "transformers", ("MimiSplitResidualVectorQuantizer",), MimiQuantizer),
]
_VQVAE = "vqvae"
_CLOSED = "vector_quantize_pytorch"


def replace(model: nn.Module, layout: str | None = None) -> nn.Module:
    """Replaces another library's quantizers inside a network by ours, behind that library's interface.

    Codes, projections, moving averages, decay and loss weights come along; what the network gets from the layer keeps
    its form, its axis and its loss. Call it before the optimizer is made: the parameters are new. Each adapter has our
    quantizer as ``quantizer``, and as ``notes`` what differs in training.

    It knows, by their classes, ``VectorQuantize``, ``ResidualVQ``, ``SimVQ``, ``FSQ`` and ``LFQ`` of
    vector-quantize-pytorch, the quantizers of ``VQModel`` in diffusers, of taming-transformers (``VectorQuantizer2``),
    and of EnCodec, DAC and Mimi in transformers, and the VQ-VAE layer of zalandoresearch wherever it has been copied
    to.

    Args:
        model: a network with such layers, or such a layer itself.
        layout: of the layers to replace, as in `straightvq.interop.from_state_dict`; None for all that are known.

    Returns:
        the network itself, changed in place; of a layer its adapter.

    Raises:
        TypeError, ValueError: if there is nothing to replace, and for options of a layer that have no part here;
            nothing is changed then.

    Example:
        >>> import torch
        >>> class VectorQuantizer(nn.Module):  # as people have copied it
        ...     def __init__(self):
        ...         super().__init__()
        ...         self._embedding, self._commitment_cost = nn.Embedding(32, 8), 0.25
        >>> layer = replace(VectorQuantizer())
        >>> loss, quantized, perplexity, encodings = layer(torch.randn(2, 8, 4, 4))
        >>> type(layer.quantizer).__name__, quantized.shape
        ('VectorQuantizer', torch.Size([2, 8, 4, 4]))
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"`replace`: `model` must be a torch.nn.Module. Got {model!r} ({type(model).__name__}).")
    layouts = [*(known[0] for known in _KNOWN), _VQVAE]
    if layout is not None:
        check_choice("replace", "layout", layout, layouts)
    made: dict[int, Adapter] = {}
    places: list[tuple[nn.Module, str, Adapter]] = []
    adapter = _collect(model, layout, made, places)
    if not made:
        kind = "a known quantizer" if layout is None else f"a quantizer of the layout {layout!r}"
        raise InvalidValueError(
            f"`replace`: `model` must hold {kind}, of {', '.join(map(repr, layouts))}. Got {type(model).__name__}."
        )
    for parent, name, each in places:
        setattr(parent, name, each)
    return adapter or model


def _collect(
    module: nn.Module, layout: str | None, made: dict[int, Adapter], places: list[tuple[nn.Module, str, Adapter]]
) -> Adapter | None:
    """The adapter of a module, once however often it serves; else those of the modules inside, with their places."""
    if id(module) in made:
        return made[id(module)]
    if (kind := _adapter_of(module, layout)) is not None:
        adapter = kind.of(module).train(module.training)
        device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), None)
        made[id(module)] = adapter if device is None else adapter.to(device)
        return made[id(module)]
    if _library(module) == _CLOSED and type(module).__name__ != "GroupedResidualVQ":
        return None  # a class that looks into the layers it holds
    for name, child in module._modules.items():
        if child is not None and (inside := _collect(child, layout, made, places)) is not None:
            places.append((module, name, inside))
    return None


def _library(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _adapter_of(module: Any, layout: str | None) -> type[Adapter] | None:
    package, name = _library(module), type(module).__name__
    for own, library, names, adapter in _KNOWN:
        if layout in (None, own) and package == library and name in names:
            return adapter
    is_copied = isinstance(getattr(module, "_embedding", None), nn.Embedding) and hasattr(module, "_commitment_cost")
    return VQVAEQuantizer if is_copied and layout in (None, _VQVAE) else None
