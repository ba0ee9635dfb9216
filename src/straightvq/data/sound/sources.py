"""Encoded sound in folders, in Parquet files of the Hugging Face layout, and on the Hub."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from straightvq.data.files import folder_source, read_bytes, walk
from straightvq.data.sets import Records, Source
from straightvq.data.sound.decode import claims_to_be_sound, decode_sound
from straightvq.errors import InvalidValueError

SOURCES = (
    'Sources are "vowels" (made on the spot), a folder of sound files or of Parquet files, a .parquet file, or '
    "owner/name on the Hugging Face Hub."
)


class SoundFiles(Records):
    """Sound files below one folder; ``paths`` are relative to it, with forward slashes."""

    def __init__(self, root: Path, paths: list[str], labels: list[int]) -> None:
        self.root, self.paths, self.labels = root, paths, np.array(labels, dtype=np.int64)

    def key(self, i: int) -> str:
        return self.paths[i]

    def decode(self, i: int, size: int, channels: int) -> NDArray[Any]:
        return decode_sound(read_bytes(self.root / self.paths[i]), size)


def local_sound(path: Path, memory_limit: int) -> Source:
    """What is at ``path``, an existing file or folder: a Parquet file, Parquet files in a folder, or sound files.

    Parquet splits whose files are larger than ``memory_limit`` bytes are memory-mapped by `datasets`.
    """
    names = [path.name] if path.is_file() else list(walk(path))
    root = path.parent if path.is_file() else path
    tables = [root / name for name in names if name.lower().endswith(".parquet")]
    if tables:
        from straightvq.data.parquet import read_parquet

        return read_parquet(tables, memory_limit, _medium())
    if path.is_file():
        raise InvalidValueError(f"`Sound`: `source` must be a folder or a .parquet file. Got the file {str(path)!r}.")
    clips = [Path(name) for name in names if claims_to_be_sound(path / name)]
    if not clips:
        seen = f"{len(names)} other file(s): {', '.join(names[:5])}" if names else "no file at all"
        raise InvalidValueError(f"`Sound`: the folder {str(path)!r} holds no sound or Parquet file, but {seen}.")
    return folder_source(path, clips, SoundFiles, "Sound")


def hub_sound(name: str) -> Source:
    """The data set ``owner/name`` on the Hub; its clips are those of the first column of type Audio."""
    from straightvq.data.hub import hub

    return hub(name, _medium(), SOURCES)


def _medium() -> Any:
    from straightvq.data.parquet import Medium

    return Medium(_decode_row, "Sound", "sound", "Audio", ("audio",))


def _decode_row(data: bytes, size: int, channels: int) -> NDArray[Any]:
    return decode_sound(data, size)
