"""A folder that holds one module: config.json, model.safetensors, README.md."""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.hub.card import Notes, card
from straightvq.hub.describe import build, describe
from straightvq.hub.states import differences, listed
from straightvq.io import replacing, write_text
from straightvq.version import __version__

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)
_VERSION = "straightvq_version"
_OWNER = "from_pretrained"
_MOST_BYTES = 1 << 24  # of a config.json
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def save(module: nn.Module, folder: str | os.PathLike[str], notes: Notes | None = None) -> Path:
    """Writes the three files, each whole or not at all; see `straightvq.hub.pretrained.Pretrained`.

    Args:
        module: one that its public arguments describe.
        folder: made if it is missing; files of the same names are replaced.
        notes: what the card says beside what the module is.

    Raises:
        TypeError, ValueError: for a module that could not be made again from its arguments; nothing is written then.
        OSError: if the disk refuses.
    """
    with needing("save_pretrained"):
        from safetensors.torch import save as as_bytes
    state = _state(module)
    tree = json.loads(json.dumps(describe(module), allow_nan=False))
    _check_twin(module, tree)
    target = Path(folder)
    with replacing(target / WEIGHTS) as unfinished:
        unfinished.write_bytes(as_bytes(state, metadata={"format": "pt"}))  # whose own writer hides errors of the disk
    write_text(target / CONFIG, json.dumps({_VERSION: __version__, **tree}, indent=2) + "\n")
    write_text(target / CARD, card(module, notes or Notes(target.resolve().name)))
    if notes is not None and notes.picture is not None:
        with replacing(target / notes.picture.name) as unfinished:
            unfinished.write_bytes(notes.picture.read_bytes())
    return target


def load(folder: Path) -> nn.Module:
    """The module of such a folder, on the CPU and in evaluation mode.

    Raises:
        ValueError: for a folder without the files, and for files that are damaged, of another kind, or do not belong
            together.
        ImportError: without the package safetensors.
    """
    with needing(_OWNER):
        from safetensors import safe_open
        from safetensors.torch import load_file
    tree = _read_config(folder / CONFIG)
    written_by = tree.pop(_VERSION, "an unknown version")
    file = folder / WEIGHTS
    if not file.is_file():
        pickles = sorted(each.name for each in folder.iterdir() if each.suffix in _PICKLES)
        hint = f" {listed(pickles)} may run code when it is read, and is not." if pickles else ""
        raise InvalidValueError(f"`{_OWNER}`: {str(folder)!r} has no {WEIGHTS}.{hint}")
    try:
        with safe_open(file, framework="pt") as content:
            shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
    except Exception as error:  # its exception has no public base, and a damaged file may raise others
        raise InvalidValueError(
            f"`{_OWNER}`: {str(file)!r} must be a safetensors file. It is damaged, or none."
        ) from error

    def refuse(what: str, cause: Exception | None = None) -> NoReturn:
        versions = f"was written by straightvq {written_by}, this is {__version__}"
        raise InvalidValueError(f"`{_OWNER}`: {str(folder)!r} {versions}: {what}") from cause

    def made(make: Callable[[Any], Any]) -> nn.Module:
        try:
            module = make(tree)
        except Exception as error:  # whatever a constructor does with the arguments of a file
            refuse(f"{CONFIG} describes nothing that can be made: {error}", error)
        if not isinstance(module, nn.Module):
            refuse(f"{CONFIG} must describe a module. Got {type(module).__name__}.")
        return module

    # Without memory first: a description of more codes than there are weights takes none.
    twin = made(_twin)
    if found := differences(twin, {n: torch.empty(s, device="meta") for n, s in shapes.items()}):
        refuse(f"{WEIGHTS} is of another module than {CONFIG} describes: it {found}.")
    module = made(_new)
    state = load_file(file)
    _take_dtypes(module, state, refuse)
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        refuse(f"{WEIGHTS} does not fit what {CONFIG} describes: {error}", error)
    return module.eval()


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InvalidValueError(
            f"`{_OWNER}`: {str(file.parent)!r} has no {CONFIG}: it was not made by save_pretrained."
        )
    if file.stat().st_size > _MOST_BYTES:
        raise InvalidValueError(f"`{_OWNER}`: {str(file)!r} must be smaller than {_MOST_BYTES:,} bytes.")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # texts that are no UTF-8 or no JSON, and nesting without end
        raise InvalidValueError(f"`{_OWNER}`: {str(file)!r} is not readable as JSON.") from error
    if not isinstance(tree, dict):
        raise InvalidValueError(f"`{_OWNER}`: {str(file)!r} must describe a module. Got {type(tree).__name__}.")
    return tree


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Every entry by itself on the CPU: parts that share memory share it again after loading."""
    state: Mapping[str, Any] = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.is_meta:
            what = "one without data" if isinstance(value, Tensor) else type(value).__name__
            raise InvalidTypeError(f"`save_pretrained`: the state must be tensors. Got {what} at {name!r}.")
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def _new(tree: Any) -> Any:
    """What a config describes, on the CPU; torch's random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return build(tree)


def _twin(tree: Any) -> Any:
    """The same without memory, and without the warnings of its constructors."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(tree)


def _check_twin(module: nn.Module, tree: Any) -> None:
    """Refuses a module that differs from one that is made of its arguments, as one that was changed by hand may."""
    twin = _twin(tree)
    found = differences(twin, module.state_dict())
    trained, again = ({name for name, _ in each.named_parameters()} for each in (module, twin))
    if not found and trained != again:
        found = f"has {listed(sorted(trained ^ again))} trained in one of the two alone"
    if found:
        raise InvalidValueError(
            f"`save_pretrained`: {type(module).__name__} must be as its arguments make it, and was changed after "
            f"that: beside the state of a new one, its own {found}. Save its state_dict() instead."
        )


def _take_dtypes(module: nn.Module, state: Mapping[str, Tensor], refuse: Any) -> None:
    """Gives the module the precision of the state, where that is allowed: codes stay at float32 or better."""
    for name, own in module.state_dict(keep_vars=True).items():
        if own.is_floating_point() != state[name].is_floating_point():
            refuse(f"{WEIGHTS} must hold {name} as {own.dtype}. Got {state[name].dtype}.")
        if own.is_floating_point() and own.dtype != state[name].dtype:
            own.data = own.data.to(state[name].dtype)
    module.to("cpu")  # quantizers undo what goes too far


@contextmanager
def needing(owner: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(f'`{owner}`: {error}. `pip install "straightvq[hub]"` brings what it needs.') from error
