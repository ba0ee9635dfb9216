"""From states, other libraries' and our own, to quantizers, and back."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError, did_you_mean
from straightvq.interop.files import read_state
from straightvq.interop.layouts import dac, encodec, mimi, own, simvq, taming, vqp, vqp_free, vqtorch, vqvae
from straightvq.interop.source import Imported, Source, check_state, listed
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_float, check_int, check_part

_OWNER = "from_state_dict"


@dataclass(frozen=True)
class Layout:
    """What a library calls its entries.

    Attributes:
        marker: a pattern of whole names; an entry that matches says that there is such a quantizer, and the first
            group is its prefix.
        read: makes the quantizer of a source.
        write: the entries of a quantizer, without a prefix.
        is_found: a second look at a state whose names match, with the prefix.
        is_found_alone: whether it is found without being named.
    """

    marker: str
    read: Callable[[Source], Quantizer]
    write: Callable[[Quantizer], dict[str, Tensor]]
    is_found: Callable[[Mapping[str, Tensor], str], bool] = lambda state, prefix: True
    is_found_alone: bool = True

    def prefixes(self, state: Mapping[str, Tensor]) -> list[str]:
        """Of all quantizers of this layout in a state, without those inside others of it."""
        matches = (re.fullmatch(self.marker, name) for name in state)
        found = dict.fromkeys(match[1] for match in matches if match)
        return [prefix for prefix in found if self.is_found(state, prefix)]


def _is_diffusers(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(re.search(r"\b(down|up)_blocks\.", name) for name in state)


def _is_taming(state: Mapping[str, Tensor], prefix: str) -> bool:
    return not _is_diffusers(state, prefix)


def _is_no_level(state: Mapping[str, Tensor], prefix: str) -> bool:
    return not re.search(r"(^|\.)layers\.\d+\.$", prefix)


def _is_no_group(state: Mapping[str, Tensor], prefix: str) -> bool:
    return not re.search(r"(^|\.)rvqs\.\d+\.$", prefix)


LAYOUTS: dict[str, Layout] = {
    own.NAME: Layout(own.MARKER, own.read, own.write),
    vqvae.NAME: Layout(vqvae.MARKER, vqvae.read, vqvae.write),
    vqtorch.PLAIN: Layout(vqtorch.MARKER, vqtorch.read, vqtorch.write),
    vqtorch.GROUP: Layout(vqtorch.MARKER, vqtorch.read_group, vqtorch.write_group, is_found_alone=False),
    vqtorch.RESIDUAL: Layout(vqtorch.MARKER, vqtorch.read_residual, vqtorch.write_residual, is_found_alone=False),
    vqp.PLAIN: Layout(vqp.MARKER, vqp.read, vqp.write, _is_no_level),
    vqp.RESIDUAL: Layout(vqp.MARKER_RESIDUAL, vqp.read_residual, vqp.write_residual, _is_no_group),
    vqp.GROUPED: Layout(vqp.MARKER_GROUPED, vqp.read_grouped, vqp.write_grouped),
    vqp_free.FSQ: Layout(vqp_free.MARKER_FSQ, vqp_free.read_fsq, vqp_free.write_fsq, is_found_alone=False),
    vqp_free.LFQ: Layout(vqp_free.MARKER_LFQ, vqp_free.read_lfq, vqp_free.write_lfq, vqp_free.is_bits),
    vqp_free.BSQ: Layout(
        vqp_free.MARKER_LFQ, vqp_free.read_bsq, vqp_free.write_bsq, vqp_free.is_bits, is_found_alone=False
    ),
    simvq.NAME: Layout(simvq.MARKER, simvq.read, simvq.write),
    taming.TAMING: Layout(taming.MARKER, taming.read, taming.write, _is_taming),
    taming.DIFFUSERS: Layout(taming.MARKER, taming.read, taming.write, _is_diffusers),
    encodec.NAME: Layout(encodec.MARKER, encodec.read, encodec.write),
    dac.NAME: Layout(dac.MARKER, dac.read, dac.write),
    mimi.NAME: Layout(mimi.MARKER, mimi.read, mimi.write),
}

# States that are known, and of which no quantizer of this package can be made.
_REFUSED = {
    r"(.*\bquantize\.)embed\.weight": "a Gumbel quantizer draws its codes by scores, not by distances.",
}


def from_state_dict(
    state: Mapping[str, Tensor],
    layout: str | None = None,
    *,
    prefix: str | None = None,
    channel_dim: int = -1,
    dim: int | None = None,
    num_quantizers: int | None = None,
    shared: bool | None = None,
    levels: Sequence[int] | None = None,
    symmetric: bool | None = None,
    unit_norm: bool | None = None,
    decay: float | None = None,
    lr_scale: float | None = None,
) -> Imported:
    """Makes a quantizer from another library's weights, or from the state of one of our own layers.

    It gives the same indices as the library's for every vector whose two nearest codes differ by more than rounding,
    and decodes them to the same vectors. Moving averages come along, so that training goes on where it stopped.
    docs/interop.md has the layouts, and what is different from the library in training.

    Args:
        state: all entries by name, of the quantizer alone or of a network with one.
        layout: name of the layout; None finds it from names and shapes.
        prefix: what the names of the quantizer's entries begin with, if a network has several.
        channel_dim: axis of ``z`` that holds the channels.
        dim: channels of ``z``, of heads or codebooks side by side without a projection.
        num_quantizers: groups or levels of the layouts ``vqtorch.group`` and ``vqtorch.residual``.
        shared: whether these have one table for all; False.
        levels: of the layout ``vqp.fsq``, which saves none.
        symmetric: whether an FSQ was built with ``preserve_symmetry``; False.
        unit_norm: whether vectors are normalised before the search; None: where all codes have the length 1.
        decay: of the moving averages, in [0, 1); by default the library's.
        lr_scale: ``affine_lr`` of vqtorch, ``lr_scale`` of our `Affine`.

    Raises:
        TypeError, ValueError: for states of no known layout, or of several; entries that are missing, of another shape,
            or of options that cannot be represented; settings that are missing, or that the layout has no use for.

    Example:
        >>> import torch
        >>> state = {"quantize.embedding.weight": torch.randn(16, 4)}
        >>> found = from_state_dict(state)
        >>> found.layout, found.prefix, found.quantizer.codebook_size
        ('taming', 'quantize.', 16)
    """
    settings = {
        "dim": dim, "num_quantizers": num_quantizers, "shared": shared, "levels": levels, "symmetric": symmetric,
        "unit_norm": unit_norm, "decay": decay, "lr_scale": lr_scale,
    }  # fmt: skip
    _check_settings(settings)
    state = check_state(state)
    name, prefix = _find(state, layout, prefix)
    source = Source(name, state, prefix, settings)
    source.set("channel_dim", channel_dim)
    return source.finish(LAYOUTS[name].read(source))


def import_module(layout: str, state: Mapping[str, Tensor], **settings: Any) -> Imported:
    """As `from_state_dict`, for a live module of the library, which knows all its settings; None for one it lacks."""
    source = Source(layout, state, "", {})
    for name, value in settings.items():
        source.set(name, value)
    return source.finish(LAYOUTS[layout].read(source))


def find_quantizers(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Layout and prefix of each quantizer that is recognised in a state: what `from_state_dict` is told of several.

    Levels and groups of our own composites are listed one by one.

    Args:
        state: all entries by name.

    Raises:
        TypeError: for anything else than tensors by name.

    Example:
        >>> import straightvq as svq
        >>> find_quantizers(svq.presets.soundstream(4, 16, num_quantizers=2).state_dict())
        [('straightvq', 'parts.0.'), ('straightvq', 'parts.1.')]
    """
    state = check_state(state)
    return [(name, at) for name, known in LAYOUTS.items() if known.is_found_alone for at in known.prefixes(state)]


def from_file(path: str | Path, layout: str | None = None, **settings: Any) -> Imported:
    """`from_state_dict` of a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file; runs no code of it.

    Args:
        path: the file.
        layout: as in `from_state_dict`, and so are all settings.
        settings: those of `from_state_dict`, by name.

    Raises:
        TypeError, ValueError, ImportError: as `read_state` and `from_state_dict` do.
    """
    return from_state_dict(read_state(path), layout, **settings)


def to_state_dict(quantizer: Quantizer, layout: str) -> dict[str, Tensor]:
    """The entries of a quantizer under the names of another library, without a prefix.

    Codes are the effective ones, moving averages are code times weight. Estimator, losses and resets are settings of
    the library's class, which no layout saves.

    Args:
        quantizer: ours.
        layout: name of the layout.

    Raises:
        TypeError, ValueError: for what the layout cannot hold, and for an unknown one.

    Example:
        >>> import straightvq as svq
        >>> sorted(to_state_dict(svq.presets.ema(4, 16), "vqvae"))
        ['_ema_cluster_size', '_ema_w', '_embedding.weight']
    """
    check_part("to_state_dict", "quantizer", quantizer, Quantizer)
    state = LAYOUTS[_known("to_state_dict", layout)].write(quantizer)
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def _known(owner: str, layout: Any) -> str:
    if not isinstance(layout, str):
        raise InvalidTypeError(f"`{owner}`: `layout` must be the name of a layout. Got {layout!r}.")
    if layout not in LAYOUTS:
        raise InvalidValueError(
            f"`{owner}`: `layout` must be one of {', '.join(map(repr, LAYOUTS))}. Got {layout!r}."
            f"{did_you_mean(layout, list(LAYOUTS))}"
        )
    return layout


def _find(state: Mapping[str, Tensor], layout: str | None, prefix: str | None) -> tuple[str, str]:
    """The layout and the prefix of the one quantizer of a state."""
    if prefix is not None and not isinstance(prefix, str):
        raise InvalidTypeError(f"`{_OWNER}`: `prefix` must be a string. Got {prefix!r}.")
    for name in state:
        for pattern, reason in _REFUSED.items():
            if layout is None and re.fullmatch(pattern, name):
                raise InvalidValueError(f"`{_OWNER}`: {reason} Got the entry {name!r}.")
    if layout is None:
        found = find_quantizers(state)
    else:
        name = _known(_OWNER, layout)
        found = [(name, place) for place in LAYOUTS[name].prefixes(state)]
    if prefix is not None:
        found = [(name, place) for name, place in found if place == prefix]
    if len(found) == 1:
        return found[0]
    if layout == vqp_free.FSQ and not found:
        return layout, prefix or ""  # without a projection it saves nothing at all
    what = "a quantizer of a known layout" if layout is None else f"a quantizer of the layout {layout!r}"
    if not found:
        where = "" if prefix is None else f" at {prefix!r}"
        raise InvalidValueError(
            f"`{_OWNER}`: `state` must hold {what}{where}. Got {len(state)} entries: {listed(state)}."
        )
    several = ", ".join(f"{name!r} at {place!r}" for name, place in found[:6])
    raise InvalidValueError(
        f"`{_OWNER}`: `state` must hold one quantizer, or `prefix` and `layout` say which. Got {several}."
    )


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if value is None:
            continue
        if name in ("dim", "num_quantizers"):
            check_int(_OWNER, name, value, 1)
        elif name in ("shared", "symmetric", "unit_norm"):
            check_bool(_OWNER, name, value)
        elif name == "decay":
            check_float(_OWNER, name, value, minimum=0, maximum=1, open_maximum=True)
        elif name == "lr_scale":
            check_float(_OWNER, name, value, minimum=0, open_minimum=True)
        elif not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise InvalidTypeError(f"`{_OWNER}`: `levels` must be a list of integers >= 2. Got {value!r}.")
