"""Reading other people's files: tensors only, never code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError

# Under which training scripts put the tensors.
_INSIDE = ("state_dict", "model_state_dict", "model")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file, onto the CPU.

    No code of the file is run. Where a training script has put the tensors one level down, as ``state_dict``,
    ``model_state_dict`` or ``model``, they are taken from there, and what is no tensor is left out.

    Raises:
        TypeError, ValueError: for a path that is none, a file that is missing, damaged or of another kind, and one
            that holds other objects than tensors and plain values.
        ImportError: for a ``.safetensors`` file without the package of that name.

    Example:
        >>> torch.save({"epoch": 3, "model": {"_embedding.weight": torch.ones(4, 2)}}, "a.pth")
        >>> list(read_state("a.pth"))
        ['_embedding.weight']
    """
    if not isinstance(path, (str, Path)):
        raise InvalidTypeError(f"`from_file`: `path` must be the path of a file. Got {path!r}.")
    file = Path(path)
    if not file.is_file():
        raise InvalidValueError(f"`from_file`: there is no file {str(file)!r}.")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise InvalidValueError(
            f"`from_file`: {str(file)!r} must hold a dict of tensors by name. Got {type(content).__name__}."
        )
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises for damaged files is not documented
        raise InvalidValueError(
            f"`from_file`: {str(file)!r} must be a file of torch.save with tensors and plain values alone. It is "
            "damaged, or holds other objects, which are not loaded: whoever trusts it can load it and pass its "
            "tensors to from_state_dict."
        ) from error


def _read_safetensors(file: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError("`from_file`: safetensors files need `pip install safetensors`.") from error
    try:
        return load_file(file)
    except Exception as error:  # its exception has no public base, and a damaged file may raise others
        raise InvalidValueError(
            f"`from_file`: {str(file)!r} must be a safetensors file. It is damaged, or another kind of file."
        ) from error
