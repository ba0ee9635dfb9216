"""From a run, a checkpoint or another library's file to a codec."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from straightvq.checkpoints import fingerprint, load_weights, read_checkpoint
from straightvq.data import Images, Sound, Vectors
from straightvq.data.vectors.standard import Standard
from straightvq.encoding.codec import Codec
from straightvq.encoding.kinds import ClipCodec, PictureCodec, VectorCodec
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.interop import from_file
from straightvq.models import MLPAutoencoder
from straightvq.runs import open_run, pick_device
from straightvq.training import AudioReconstruction, VectorReconstruction
from straightvq.training.base import QuantizedTask

_MEMORY = 64  # MiB of encoded pictures or sound that are read at once; larger tables are mapped
_BATCH = 1024  # vectors at once, where no run says how many


@dataclass(frozen=True)
class Origin:
    """Where a codec comes from, as a command says it.

    Args:
        owner: the command, in messages.
        run: folder of a run, or a checkpoint in it.
        file: instead of a run, a file that `straightvq.interop.from_file` takes.
        layout: of the file; None finds it.
        source: what is to be encoded; None to decode.
        device: "auto", "cpu", "cuda" or "mps".
    """

    owner: str
    run: str | None = None
    file: str | None = None
    layout: str | None = None
    source: str | None = None
    device: str = "auto"

    @classmethod
    def of(cls, owner: str, run: Any, file: Any, layout: Any, device: Any, source: Any = None) -> "Origin":
        """Of arguments that nobody has looked at."""
        given = {"run": run, "file": file, "source": source}
        paths = {name: None if value is None else as_path(owner, name, value) for name, value in given.items()}
        return cls(owner, **paths, layout=layout, device=device)

    def __post_init__(self) -> None:
        if (self.run is None) == (self.file is None):
            got = "both" if self.run is not None else "neither"
            raise InvalidValueError(f"`{self.owner}`: there must be either `run` or `file`. Got {got}.")
        if self.layout is not None and self.file is None:
            raise InvalidValueError(f"`{self.owner}`: `layout` belongs to `file`. Got {self.layout!r} and no file.")

    def open(self) -> tuple[Codec, dict[str, Any]]:
        """The codec, and what is to be remembered of it: the names of its settings and their values."""
        place = _device(self.owner, self.device)
        codec, made = self._from_file() if self.file is not None else self._from_run()
        codec.task.to(place)
        quantizer = codec.quantizer
        return codec, {
            **made,
            "quantizer": type(quantizer).__name__,
            "codebook_sizes": quantizer.codebook_sizes,
            **codec.settings(),
            "batch_size": codec.batch_size,
        }

    def _from_file(self) -> tuple[Codec, dict[str, Any]]:
        found = from_file(str(self.file), self.layout)
        task = VectorReconstruction(MLPAutoencoder(found.quantizer))
        width = found.quantizer.dim
        standard = Standard(torch.zeros(width), torch.ones(width))
        with open(str(self.file), "rb") as content:
            weights = hashlib.file_digest(content, "sha256").hexdigest()
        return VectorCodec(task, _BATCH, standard, self.source), {"layout": found.layout, "weights": weights[:16]}

    def _from_run(self) -> tuple[Codec, dict[str, Any]]:
        run, checkpoint = open_run(Path(str(self.run)), self.owner)
        task = run.build_task()
        if not isinstance(task, QuantizedTask) or task.model.quantizer is None:
            raise InvalidValueError(
                f"`{self.owner}`: {str(run.folder)!r} is a run of {type(task).__name__} without a quantizer of its "
                "own. Pass the run of an autoencoder, a codec or a quantized classifier."
            )
        if not task.quantize:
            raise InvalidValueError(
                f"`{self.owner}`: {str(run.folder)!r} was trained with `quantize: false`, so its codes mean nothing."
            )
        # To decode nothing is read: what is embedded is always there.
        embedded = "vowels" if isinstance(task, AudioReconstruction) else "digits"
        data = run.build_data(source=embedded if self.source is None else self.source)
        load_weights(task, checkpoint, self.owner)
        made = {"task": type(task).__name__, "step": checkpoint.step, "weights": fingerprint(task.model)[:16]}
        if isinstance(data, Images | Sound):
            data.memory_limit_mb = min(data.memory_limit_mb, _MEMORY)
            return (PictureCodec(task, data) if isinstance(data, Images) else ClipCodec(task, data)), made
        if not isinstance(data, Vectors):
            raise InvalidValueError(
                f"`{self.owner}`: the run's data must be Images, Sound or Vectors. Got {type(data).__name__}."
            )
        state = read_checkpoint(checkpoint.path, self.owner).get(type(data).__qualname__)
        if state is None:
            raise InvalidValueError(
                f"`{self.owner}`: {str(checkpoint.path)!r} does not say how its vectors were scaled. Train on Vectors."
            )
        data.load_state_dict(state)
        return VectorCodec(task, data.batch_size, data.standard, self.source, data.column, data.item), made


def as_path(owner: str, name: str, value: Any) -> str:
    """The argument of that name, which is a path, as a text."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidTypeError(f"`{owner}`: `{name}` must be a path. Got {value!r}.")
    return os.fspath(value)


def ranks(owner: str) -> tuple[int, int]:
    """This process's number and that of all, as `torchrun` puts them into RANK and WORLD_SIZE; else 0 of 1."""
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    numbers = [int(text) if text.isdecimal() else -1 for text in texts]
    if not 0 <= numbers[0] < numbers[1]:
        raise InvalidValueError(
            f"`{owner}`: RANK must be an integer in [0, WORLD_SIZE). Got RANK={texts[0]} and WORLD_SIZE={texts[1]}."
        )
    return numbers[0], numbers[1]


def _device(owner: str, name: str) -> torch.device:
    place = pick_device(owner, name, ("cpu", "cuda", "mps"))
    if place.type != "cuda":
        return place
    local = os.environ.get("LOCAL_RANK", "")  # that of the rank among the processes of this machine
    number = int(local) if local.isdecimal() else ranks(owner)[0]
    return torch.device("cuda", number % torch.cuda.device_count())
