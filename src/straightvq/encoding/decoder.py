"""`straightvq decode`: tokens back to pictures, sound or vectors."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from straightvq.encoding.codec import Codec, FileCodec
from straightvq.encoding.codes import OWNER, CodesFolder, Shard
from straightvq.encoding.engine import Engine, hand_out
from straightvq.encoding.folder import ShardFolder
from straightvq.encoding.opening import Origin, as_path
from straightvq.errors import InvalidValueError
from straightvq.io import flush_files
from straightvq.nn import ResidualQuantizer
from straightvq.nn.part import check_int

FILES = "files"
"""Subfolder of the pictures or clips."""


def decode(
    run: str | PathLike[str] | None,
    codes: str | PathLike[str],
    out: str | PathLike[str],
    *,
    file: str | PathLike[str] | None = None,
    layout: str | None = None,
    levels: int | None = None,
    engine: Engine = "here",
    workers: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Decodes a folder of `encode`: to PNG or WAV files named by key, or to vectors.

    Writes ``part-00000.parquet`` and so on, a shard for each of the codes: ``key`` and ``file``, a path below the
    folder ``files``, or ``key`` and ``vector``, in the units of the source. May be killed at any time and taken up by
    any number of processes, as `encode`.

    Args:
        run: folder of a run, or one of its checkpoints: the network that has encoded; None with ``file``.
        codes: folder that `encode` made, complete.
        out: folder of the results, new or of an earlier call with the same settings.
        file: instead of a run, a file of another library's quantizer.
        layout: of the file; None finds it.
        levels: of a residual quantizer, how many of its levels are used, from the first; None for all.
        engine: "here" or "ray", as in `encode`.
        workers: of Ray's.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        What ``metadata.json`` holds.

    Raises:
        ValueError, TypeError: for values out of range, codes of another network, or such that are not complete, a
            network that has no way back, and folders as in `encode`.
        OSError: if the disk refuses something; complete shards stay.
    """
    origin = Origin.of(OWNER, run, file, layout, device)
    job = DecodeJob(origin, as_path(OWNER, "codes", codes), as_path(OWNER, "out", out), levels)
    return hand_out(job, engine, workers)


@dataclass(frozen=True)
class DecodeJob:
    """What to decode, and to where; the arguments are those of `decode`."""

    origin: Origin
    codes: str
    out: str
    levels: int | None

    def __post_init__(self) -> None:
        if self.levels is not None:
            check_int(OWNER, "levels", self.levels, 1)

    @property
    def owner(self) -> str:
        return OWNER

    def open(self, device: str | None = None) -> "Decoding":
        origin = self.origin if device is None else dataclasses.replace(self.origin, device=device)
        codes = CodesFolder(Path(self.codes))
        codec, made = origin.open()
        codec.check_decodes()
        _check_origin(codes.settings, made)
        _check_levels(codec, self.levels)
        settings = {**made, "codes": codes.id, "levels": self.levels}
        notes = {"decoded_from": self.codes}
        return Decoding(codec, codes, ShardFolder(Path(self.out), OWNER, settings, codes.sizes, notes), self.levels)


class Decoding:
    """Makes the shards of a job; see `straightvq.encoding.engine.Work`."""

    def __init__(self, codec: Codec, codes: CodesFolder, folder: ShardFolder, levels: int | None) -> None:
        self.codec, self.codes, self.folder, self.levels = codec, codes, folder, levels
        self.kind = codec.kind

    def do(self, numbers: Sequence[int], tell: Callable[[int], object]) -> None:
        for number in numbers:
            shard = self.codes.read(number, self.codec.quantizer)
            values: list[Any] = []  # vectors, or the names of files
            for part in self._batches(shard):
                indices = part.indices if self.levels is None else [own[..., : self.levels] for own in part.indices]
                restored = self.codec.restore(indices, part.lengths)
                values += self._save(part.keys, restored) if isinstance(self.codec, FileCodec) else restored
                tell(len(part.keys))
            if isinstance(self.codec, FileCodec):
                flush_files()
            self.folder.write(number, self._table(shard.keys, values), [])

    def _batches(self, shard: Shard) -> Iterator[Shard]:
        """Rows that go through the network together: of one shape, where they have no lengths of their own."""
        size = self.codec.batch_size
        for _, own in itertools.groupby(
            zip(*shard, strict=True), key=lambda row: None if self.codec.is_ragged else row[1].shape
        ):
            rows = list(own)
            for start in range(0, len(rows), size):
                keys, indices, lengths = zip(*rows[start : start + size], strict=True)
                yield Shard(list(keys), list(indices), list(lengths))

    def _save(self, keys: list[str], values: list[NDArray[Any]]) -> list[str]:
        assert isinstance(self.codec, FileCodec)
        names = [file_name(key, self.codec.suffix) for key in keys]
        for name, value in zip(names, values, strict=True):
            path = self.folder.path / FILES / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # A kill may leave half of it: until the shard is there, it is written again.
            path.write_bytes(self.codec.packed(value))
        return names

    def _table(self, keys: list[str], values: list[Any]) -> pa.Table:
        named = pa.array(keys, pa.string())
        if isinstance(self.codec, FileCodec):
            if twice := next((name for name, count in Counter(values).items() if count > 1), None):
                raise InvalidValueError(f"`{OWNER}`: each row needs a file of its own. Got {twice!r} for several keys.")
            return pa.table({"key": named, "file": pa.array(values, pa.string())})
        width = self.codec.settings()["width"]
        flat = np.concatenate([np.zeros(0, np.float32), *values])
        return pa.table({"key": named, "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), width)})


def file_name(key: str, suffix: str) -> str:
    """The relative path of what a key is decoded to. A ValueError refuses keys that lead out of the folder.

    Example:
        >>> file_name("cats/0.png", ".png"), file_name("cats/0.jpg", ".png"), file_name("digit 3", ".png")
        ('cats/0.png', 'cats/0.jpg.png', 'digit 3.png')
    """
    path = PurePath(key)
    if not path.parts or ".." in path.parts or path.anchor or "\0" in key:
        raise InvalidValueError(f"`{OWNER}`: a key must be a name or a path within a folder. Got {key!r}.")
    return key if key.endswith(suffix) else f"{key}{suffix}"


def _check_origin(codes: dict[str, Any], made: dict[str, Any]) -> None:
    """Refuses codes that another network has made."""
    names = ("weights", "step", "quantizer", "codebook_sizes")
    if codes.get("weights") != made["weights"]:
        theirs, ours = (", ".join(f"{name} {each.get(name)}" for name in names) for each in (codes, made))
        raise InvalidValueError(
            f"`{OWNER}`: the codes must be those of the same network. They were made by {theirs}. Got {ours}."
        )


def _check_levels(codec: Codec, levels: int | None) -> None:
    if levels is None:
        return
    quantizer = codec.quantizer
    if not isinstance(quantizer, ResidualQuantizer):
        raise InvalidValueError(f"`{OWNER}`: `levels` needs a ResidualQuantizer. Got {type(quantizer).__name__}.")
    if levels > quantizer.num_quantizers:
        raise InvalidValueError(
            f"`{OWNER}`: `levels` must be at most the quantizer's {quantizer.num_quantizers}. Got {levels}."
        )
