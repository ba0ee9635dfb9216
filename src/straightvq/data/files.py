"""Local pictures: folders of image files, and Parquet files in the Hugging Face layout."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from straightvq.data.decode import FILE_LIMIT, FORMATS, UnreadableImageError, decode_image
from straightvq.data.sets import Records, Source
from straightvq.errors import InvalidTypeError, InvalidValueError

SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
IMAGE_COLUMNS = ("image", "img")


class ImageFiles(Records):
    """Image files below one folder; ``paths`` are relative to it, with forward slashes."""

    def __init__(self, root: Path, paths: list[str], labels: list[int]) -> None:
        self.root, self.paths, self.labels = root, paths, np.array(labels, dtype=np.int64)

    def key(self, i: int) -> str:
        return self.paths[i]

    def decode(self, i: int, size: int, channels: int) -> NDArray[np.uint8]:
        return decode_image(_read(self.root / self.paths[i]), size, channels)


def _read(path: Path) -> bytes:
    """The bytes of a plain file of a reasonable size; a pipe or a device might never end."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImageError("not a plain file")
        if found.st_size > FILE_LIMIT:
            raise UnreadableImageError(f"{found.st_size:,} bytes, more than the limit of {FILE_LIMIT:,}")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error


class ParquetRows(Records):
    """Rows of Parquet files of one split, their encoded bytes in memory.

    Args:
        images: Arrow column of binary, or of struct with a field ``bytes``.
        labels: ``(n,)``.
        keys: File name and number of rows of each file, in order.
    """

    def __init__(self, images: Any, labels: NDArray[np.int64], files: list[tuple[str, int]]) -> None:
        self.images, self.labels, self.names = images, labels, [name for name, _ in files]
        self.starts = np.cumsum([0, *(rows for _, rows in files)])

    def key(self, i: int) -> str:
        file = int(np.searchsorted(self.starts, i, side="right")) - 1
        return f"{self.names[file]} row {i - self.starts[file]}"

    def decode(self, i: int, size: int, channels: int) -> NDArray[np.uint8]:
        return decode_image(cell_bytes(self.images[i].as_py()), size, channels)


def cell_bytes(cell: Any) -> bytes:
    """The encoded picture in one cell: bytes, or a dictionary with "bytes"."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise UnreadableImageError("the row holds no bytes")
    return data


def local(path: Path, memory_limit: int) -> Source:
    """What is at ``path``: a Parquet file, a folder with Parquet files, or a folder of images.

    Args:
        path: An existing file or folder.
        memory_limit: Parquet splits whose files are larger than this many bytes are memory-mapped by
            `datasets`.
    """
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise InvalidValueError(
                f"`Images`: `source` must be a folder or a .parquet file. Got the file {str(path)!r}."
            )
        return _parquet([path], memory_limit)
    parquet = [path / name for name in _walk(path) if name.lower().endswith(".parquet")]
    return _parquet(parquet, memory_limit) if parquet else _folder(path)


def _walk(root: Path) -> Iterator[str]:
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


def _folder(root: Path) -> Source:
    """Images below ``root``, by split folders ``train``, ``val`` or ``validation``, ``test`` where there is a
    ``train``; the class is the first subfolder below that."""
    from PIL import Image

    names = list(_walk(root))
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    # Without a suffix only the content can tell; it is tried.
    images = [name for name in names if (suffix := Path(name).suffix.lower()) == "" or suffix in suffixes]
    skipped = {name: "not an image by its suffix" for name in sorted(set(names) - set(images))}
    if not images:
        seen = f"{len(names)} other file(s): {', '.join(names[:5])}" if names else "no file at all"
        raise InvalidValueError(f"`Images`: the folder {str(root)!r} holds no image or Parquet file, but {seen}.")
    by_split = _split_folders(root, images)
    classes = sorted({parts[0] for files in by_split.values() for _, parts in files if len(parts) > 1})
    number = {name: label for label, name in enumerate(classes)}
    splits: dict[str, Records] = {
        split: ImageFiles(
            root,
            [name for name, _ in files],
            [number[parts[0]] if len(parts) > 1 else -1 for _, parts in files],
        )
        for split, files in by_split.items()
    }
    return Source(splits, classes or None, skipped)


def _split_folders(root: Path, images: list[str]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Each split's files, with their path below the split's folder."""
    parts = {name: Path(name).parts for name in images}
    tops = {path[0] for path in parts.values() if len(path) > 1}
    if "train" not in tops:
        if tops & SPLIT_FOLDERS.keys():
            found = ", ".join(sorted(tops & SPLIT_FOLDERS.keys()))
            raise InvalidValueError(f"`Images`: {str(root)!r} has the split folder(s) {found} but no images in train.")
        return {"train": list(parts.items())}
    if {"val", "validation"} <= tops:
        raise InvalidValueError(f"`Images`: {str(root)!r} has both val and validation; keep one of them.")
    result: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for name, path in parts.items():
        split = SPLIT_FOLDERS.get(path[0])
        if split is not None and len(path) > 1:  # anything beside the split folders belongs to no split
            result.setdefault(split, []).append((name, path[1:]))
    return result


def _parquet(paths: list[Path], memory_limit: int) -> Source:
    """Parquet files by split: the file's name, else its folder's, begins with train, val or test; else
    training."""
    by_split: dict[str, list[Path]] = {}
    for path in sorted(paths):
        by_split.setdefault(_parquet_split(path), []).append(path)
    if "train" not in by_split:
        if len(by_split) > 1 or len(paths) > 1:
            names = ", ".join(path.name for path in paths[:5])
            raise InvalidValueError(f"`Images`: there must be a Parquet file named train*. Got {names}.")
        by_split = {"train": paths}  # one file, named on purpose: all there is
    class_names: list[str] | None = None
    splits: dict[str, Records] = {}
    for split, files in by_split.items():
        image, label, label_names = _columns(files)
        class_names = class_names or label_names
        if sum(file.stat().st_size for file in files) > memory_limit:
            from straightvq.data.hub import map_parquet

            splits[split] = map_parquet(files, image, label)
        else:
            splits[split] = _read_parquet(files, image, label)
    return Source(splits, class_names)


def _parquet_split(path: Path) -> str:
    for name in (path.name.lower(), path.parent.name.lower()):
        for prefix, split in (("train", "train"), ("val", "validation"), ("test", "test")):
            if name.startswith(prefix):
                return split
    return "train"


def _columns(files: list[Path]) -> tuple[str, str | None, list[str] | None]:
    """Names of the image and label columns, the same in every file, and the class names of the first file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[tuple[str, str | None]] = []
    for file in files:
        try:
            schema = pq.read_schema(file)
            names = schema.names
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
            raise InvalidValueError(f"`Images`: {file.name} is not a readable Parquet file: {error}") from error
        image = next((name for name in IMAGE_COLUMNS if name in names), "")
        if not image:
            raise InvalidValueError(
                f"`Images`: {file.name} must have a column 'image' with encoded pictures. "
                f"Got the columns {', '.join(names) or 'none'}."
            )
        kind = schema.field(image).type
        inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
            raise InvalidTypeError(
                f"`Images`: column {image!r} of {file.name} must be binary or struct<bytes, path>. Got {kind}."
            )
        label = "label" if "label" in names else None
        if label and not pa.types.is_integer(schema.field(label).type):
            raise InvalidTypeError(
                f"`Images`: column 'label' of {file.name} must be integer. Got {schema.field(label).type}."
            )
        found.append((image, label))
        if found[-1] != found[0]:
            raise InvalidValueError(
                f"`Images`: the Parquet files of one split must have the same columns. {files[0].name} has "
                f"{_listed(found[0])}, {file.name} has {_listed(found[-1])}."
            )
    return *found[0], _class_names(pq.read_schema(files[0]).metadata or {})


def _listed(columns: tuple[str, str | None]) -> str:
    return " and ".join(repr(name) for name in columns if name)


def _class_names(metadata: dict[bytes, bytes]) -> list[str] | None:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):  # no such metadata, or another program's
        return None


def _read_parquet(files: list[Path], image: str, label: str | None) -> ParquetRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [image] if label is None else [image, label]
    try:
        # `partitioning=None`: a folder named "a=b" is no column.
        tables = [pq.read_table(file, columns=columns, partitioning=None) for file in files]
        columns_read = [table.column(image) for table in tables]
        images = pa.chunked_array([c for column in columns_read for c in column.chunks], columns_read[0].type)
        labels = np.full(len(images), -1, dtype=np.int64)
        if label is not None:
            values = [table.column(label).cast(pa.int64()).fill_null(-1).to_numpy() for table in tables]
            labels = np.concatenate(values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"`Images`: {files[0].parent} holds a damaged Parquet file: {error}") from error
    return ParquetRows(images, labels, [(file.name, table.num_rows) for file, table in zip(files, tables, strict=True)])
