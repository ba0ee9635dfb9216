"""Local pictures: a folder of image files, or of Parquet files."""

import mimetypes
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from straightvq.data.decode import FILE_LIMIT, UnreadableImageError, decode_image, has_image_header
from straightvq.data.sets import Records, Source
from straightvq.errors import InvalidValueError

SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_KINDS = mimetypes.MimeTypes().types_map  # by suffix; Python's own tables, since those of the machine differ elsewhere


def read_bytes(path: Path) -> bytes:
    """What is in a plain file of a size that a picture or a clip may have; raises `UnreadableImageError`."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device might never end
            raise UnreadableImageError("not a plain file")
        if found.st_size > FILE_LIMIT:
            raise UnreadableImageError(f"{found.st_size:,} bytes, more than the limit of {FILE_LIMIT:,}")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error


class ImageFiles(Records):
    """Image files below one folder; ``paths`` are relative to it, with forward slashes."""

    def __init__(self, root: Path, paths: list[str], labels: list[int]) -> None:
        self.root, self.paths, self.labels = root, paths, np.array(labels, dtype=np.int64)

    def key(self, i: int) -> str:
        return self.paths[i]

    def decode(self, i: int, size: int, channels: int) -> NDArray[Any]:
        return decode_image(read_bytes(self.root / self.paths[i]), size, channels)


def local(path: Path, memory_limit: int) -> Source:
    """What is at ``path``, an existing file or folder: a Parquet file, Parquet files in a folder, or image files.

    Parquet splits whose files are larger than ``memory_limit`` bytes are memory-mapped by `datasets`.
    """
    names = [path.name] if path.is_file() else list(walk(path))
    root = path.parent if path.is_file() else path
    tables = [root / name for name in names if name.lower().endswith(".parquet")]
    if tables:
        from straightvq.data.parquet import read_parquet

        return read_parquet(tables, memory_limit)
    if path.is_file():
        raise InvalidValueError(f"`Images`: `source` must be a folder or a .parquet file. Got the file {str(path)!r}.")
    images = [Path(name) for name in names if _claims_to_be_image(path / name)]
    if not images:
        seen = f"{len(names)} other file(s): {', '.join(names[:5])}" if names else "no file at all"
        raise InvalidValueError(f"`Images`: the folder {str(path)!r} holds no image or Parquet file, but {seen}.")
    return folder_source(path, images, ImageFiles, "Images")


def walk(root: Path) -> Iterator[str]:
    """Files below ``root``, relative, sorted; hidden ones left out, linked folders followed once."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would never end
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def folder_source(
    root: Path, images: list[Path], records: Callable[[Path, list[str], list[int]], Records], owner: str
) -> Source:
    """Files below ``root`` by split and class: the class is the first subfolder, below the split's if there are any."""
    found = {image.parts[0] for image in images if len(image.parts) > 1} & SPLIT_FOLDERS.keys()
    if found and "train" not in found:
        present = ", ".join(sorted(found))
        raise InvalidValueError(
            f"`{owner}`: {str(root)!r} has the split folder(s) {present} but no {owner.lower()} in train."
        )
    if {"train", "val", "validation"} <= found:
        raise InvalidValueError(f"`{owner}`: {str(root)!r} has both val and validation; keep one of them.")
    by_split: dict[str, list[Path]] = {}
    for image in images:
        if not found or image.parts[0] in found:  # anything beside the split folders belongs to no split
            by_split.setdefault(SPLIT_FOLDERS[image.parts[0]] if found else "train", []).append(image)
    depth = 1 if found else 0  # of the class's folder
    class_of = {image: image.parts[depth] for files in by_split.values() for image in files if image.parts[depth + 1 :]}
    classes = sorted(set(class_of.values()))
    number = {name: label for label, name in enumerate(classes)}
    splits: dict[str, Records] = {}
    for split, files in by_split.items():
        labels = [number[class_of[image]] if image in class_of else -1 for image in files]
        splits[split] = records(root, [image.as_posix() for image in files], labels)
    return Source(splits, classes or None, owner)


def _claims_to_be_image(path: Path) -> bool:
    """By its suffix; where there is none, as in LICENSE and in the pictures of some archives, by its first bytes.

    A suffix counts if Pillow or Python calls it an image's: of formats that are not read, each file is then named.
    """
    suffix = path.suffix.lower()
    if not suffix:
        return path.is_file() and has_image_header(path)
    kind = Image.MIME.get(Image.registered_extensions().get(suffix, ""), "")
    return any(kind.startswith("image/") for kind in (kind, *(table.get(suffix, "") for table in _KINDS)))
