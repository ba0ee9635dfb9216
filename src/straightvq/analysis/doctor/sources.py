"""Where a quantizer comes from: a run, a saved folder, a checkpoint, or a file of tensors, whoever wrote it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from straightvq.analysis.probe import count_examples, test_batches
from straightvq.checkpoints import KEPT
from straightvq.configuration import innermost
from straightvq.data.vectors.read import read
from straightvq.diagnostics.task import HasHead
from straightvq.errors import InvalidValueError
from straightvq.hub.card import quantizers
from straightvq.hub.folder import CONFIG, WEIGHTS, load
from straightvq.interop import find_quantizers, from_state_dict, read_state
from straightvq.nn import Quantizer
from straightvq.runs import CONFIG as RUN_CONFIG
from straightvq.runs import Checkpoint, RunFolder, load_weights

OWNER = "doctor"
_FILES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
_BATCH = 8192  # vectors at a time


@dataclass
class Source:
    """What was found at a place.

    Attributes:
        what: in words.
        module: with the quantizers in it.
        notes: what is known beside it, in sentences.
        inputs: data of its own, if it has some, and ``run``, what is called with each of them.
        data: in words, what they are.
    """

    what: str
    module: nn.Module
    notes: list[str] = field(default_factory=list)
    inputs: Iterable[Any] = ()
    run: Callable[[Any], Any] = lambda _: None
    data: str = ""


def find(place: Path, num_examples: int, lr_scale: float | None) -> Source:
    """Reads whatever is there, without running code of the files; ``lr_scale`` is that of `from_state_dict`.

    Raises:
        ValueError: for what is none of these, and for files that are damaged or of another kind.
    """
    if (place / RUN_CONFIG).is_file():
        folder = RunFolder(place, OWNER)
        return _run(folder, folder.checkpoint(), num_examples)
    if (place / CONFIG).is_file() or (place.name == WEIGHTS and place.with_name(CONFIG).is_file()):
        module = load(place if place.is_dir() else place.parent)
        return Source(f"{type(module).__name__}, saved by save_pretrained", module)
    if not place.exists() or place.is_dir() or place.suffix not in _FILES:
        kinds = ", ".join(_FILES)
        got = (
            "nothing there" if not place.exists() else "a folder of other things" if place.is_dir() else "another file"
        )
        raise InvalidValueError(
            f"`{OWNER}`: {str(place)!r} must be the folder of a run, one that save_pretrained wrote, or a file in "
            f"{kinds}. Got {got}."
        )
    home = place.parent.parent if place.parent.name == KEPT else place.parent
    if place.suffix == ".ckpt" and (home / RUN_CONFIG).is_file():
        return _run(RunFolder(home, OWNER), Checkpoint.at(place, OWNER), num_examples)
    return _tensors(read_state(place), lr_scale)


def _tensors(state: dict[str, Tensor], lr_scale: float | None) -> Source:
    """Every quantizer of a known layout, each under the name that it has in the state."""
    places = find_quantizers(state)
    if len(places) < 2:
        imported = from_state_dict(state, lr_scale=lr_scale)
        what = f"{type(imported.quantizer).__name__}, read as the layout {imported.layout!r} at {imported.prefix!r}"
        return Source(what, imported.quantizer, list(imported.notes))
    network = nn.Module()
    found = [from_state_dict(state, layout, prefix=prefix, lr_scale=lr_scale) for layout, prefix in places]
    for each in found:
        _put(network, each.prefix.removesuffix("."), each.quantizer)
    layouts = ", ".join(map(repr, dict.fromkeys(each.layout for each in found)))
    what = f"{len(found)} quantizers, read as the layout {layouts}"
    return Source(what, network, list(dict.fromkeys(note for each in found for note in each.notes)))


def _put(network: nn.Module, path: str, quantizer: Quantizer) -> None:
    """Puts it at that path, with empty modules on the way."""
    *homes, last = path.split(".")
    for name in homes:
        if name not in dict(network.named_children()):
            setattr(network, name, nn.Module())
        network = network.get_submodule(name)
    setattr(network, last, quantizer)


def _run(folder: RunFolder, checkpoint: Checkpoint, num_examples: int) -> Source:
    """The task of a run with the weights of a checkpoint, and the first examples of its test set, if they are there."""
    step = f"{', '.join(checkpoint.names)}, step {checkpoint.step:,}"
    notes, batches = [], []
    try:
        task, data = folder.build()
        batches = test_batches(data, num_examples, torch.device("cpu"))
    except (ValueError, TypeError, OSError, ImportError) as error:
        task = folder.build_task()
        notes.append(f"its own data could not be read, pass --data: {innermost(error)}")
    load_weights(task, checkpoint, OWNER)
    found = quantizers(task)
    if batches and isinstance(task, HasHead) and len(found) == 1:
        latent, quantizer = task.latent, found[0]
        what = f"the first {sum(map(count_examples, batches)):,} examples of its test set"
        return Source(f"{type(task).__name__} ({step})", task, notes, batches, lambda b: quantizer(latent(b)), what)
    return Source(f"{type(task).__name__} ({step})", task, notes)


def with_vectors(source: Source, place: Path) -> Source:
    """The same with the vectors of a file or folder in place of its own data: embeddings, as the quantizer gets them.

    Raises:
        ValueError: for files that are none of vectors, vectors of another width, and several quantizers side by side.
    """
    found: list[Quantizer] = quantizers(source.module)
    if len(found) != 1:
        raise InvalidValueError(f"`{OWNER}`: `data` needs one quantizer that takes it. Got {len(found)}.")
    (quantizer,) = found
    vectors = torch.from_numpy(read(place).vectors)
    if vectors.shape[1] != quantizer.dim:
        raise InvalidValueError(
            f"`{OWNER}`: `data` must be embeddings of the width {quantizer.dim}, as the quantizer gets them. "
            f"Got {vectors.shape[1]} numbers in a row."
        )
    source.inputs, source.run = vectors.split(_BATCH), lambda rows: quantizer(_placed(rows, quantizer.channel_dim))
    source.data = f"the {len(vectors):,} vectors of {place.name}"
    return source


def _placed(rows: Tensor, channel_dim: int) -> Tensor:
    """Vectors (n, dim) with the channels on that axis, behind as many others as it takes."""
    axes = max(2, channel_dim + 1, -channel_dim)
    return rows.reshape(len(rows), *[1] * (axes - 2), rows.shape[1]).movedim(-1, channel_dim)
