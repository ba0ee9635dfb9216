"""Encoded pictures, or sound, in Parquet files of the Hugging Face layout, read into memory or mapped from disk."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from straightvq.data.decode import UnreadableImageError, decode_image
from straightvq.data.sets import Records, Source
from straightvq.errors import InvalidTypeError, InvalidValueError

PREFIXES = {"train": "train", "val": "validation", "test": "test"}
DAMAGES = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last for names of columns


@dataclass(frozen=True)
class Medium:
    """What the cells of a table hold: pictures, unless something else is said."""

    decode: Callable[[bytes, int, int], NDArray[Any]] = decode_image
    owner: str = "Images"  # in messages
    content: str = "pictures"
    feature: str = "Image"  # its type in `datasets`
    columns: tuple[str, ...] = ("image", "img")  # names that the column may have


PICTURES = Medium()


class EncodedRows(Records):
    """Rows of tables, an encoded picture or clip in each.

    ``cells``: column of bytes, or of dictionaries with "bytes", of Arrow or a mapped one of `datasets`. ``parts``: name
    and number of rows of each table, in order.
    """

    def __init__(self, cells: Any, labels: NDArray[np.int64], parts: list[tuple[str, int]], medium: Medium) -> None:
        self.medium = medium
        self.cells, self.labels, self.names = cells, labels, [name for name, _ in parts]
        self.starts = np.cumsum([0, *(rows for _, rows in parts)])

    def key(self, i: int) -> str:
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return f"{self.names[part]} row {i - self.starts[part]}"

    def decode(self, i: int, size: int, channels: int) -> NDArray[Any]:
        cell = self.cells[i]
        cell = cell.as_py() if isinstance(cell, pa.Scalar) else cell
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise UnreadableImageError("the row holds no bytes")
        return self.medium.decode(data, size, channels)


@dataclass(frozen=True)
class Columns:
    """Names of the column of pictures or clips, of that of labels, if there is one, and of the classes, if any."""

    content: str
    label: str | None
    class_names: list[str] | None = field(default=None, compare=False)

    def used(self) -> list[str]:
        return [self.content] if self.label is None else [self.content, self.label]


def read_parquet(paths: list[Path], memory_limit: int, medium: Medium = PICTURES) -> Source:
    """Parquet files by split: the file's name, else its folder's, begins with train, val or test; else training.

    Splits whose files have more than ``memory_limit`` bytes are memory-mapped.
    """
    by_split: dict[str, list[Path]] = {}
    for path in sorted(paths):
        names = (path.name.lower(), path.parent.name.lower())
        splits = [split for name in names for prefix, split in PREFIXES.items() if name.startswith(prefix)]
        by_split.setdefault(splits[0] if splits else "train", []).append(path)
    if len(paths) == 1:
        by_split = {"train": paths}  # named on purpose: all there is
    if "train" not in by_split:
        found = ", ".join(path.name for path in paths[:5])
        raise InvalidValueError(f"`{medium.owner}`: there must be a Parquet file named train*. Got {found}.")
    columns = {split: _common_columns(files, medium) for split, files in by_split.items()}
    called = _names(paths)
    records: dict[str, Records] = {}
    for split, files in by_split.items():
        is_large = sum(file.stat().st_size for file in files) > memory_limit
        records[split] = (_map if is_large else _read)({called[file]: file for file in files}, columns[split], medium)
    class_names = next((each.class_names for each in columns.values() if each.class_names), None)
    return Source(records, class_names, medium.owner)


def _names(paths: list[Path]) -> dict[Path, str]:
    """What to call each file: its name, or, where two have the same, its path below the folder they share."""
    if len({path.name for path in paths}) == len(paths):
        return {path: path.name for path in paths}
    root = os.path.commonpath([path.parent for path in paths])
    return {path: path.relative_to(root).as_posix() for path in paths}


def _common_columns(files: list[Path], medium: Medium) -> Columns:
    first, *others = (_columns(file, medium) for file in files)
    for file, other in zip(files[1:], others, strict=True):
        if other != first:
            listed, others_listed = (" and ".join(map(repr, columns.used())) for columns in (first, other))
            raise InvalidValueError(
                f"`{medium.owner}`: the Parquet files of one split must have the same columns. {files[0].name} has "
                f"{listed}, {file.name} has {others_listed}."
            )
    return first


def _columns(file: Path, medium: Medium) -> Columns:
    try:
        schema = pq.read_schema(file)
        kinds = dict(zip(schema.names, schema.types, strict=True))
    except DAMAGES as error:
        raise InvalidValueError(f"`{medium.owner}`: {file.name} is not a readable Parquet file: {error}") from error
    content = next((name for name in medium.columns if name in kinds), None)
    if content is None:
        raise InvalidValueError(
            f"`{medium.owner}`: {file.name} must have a column {medium.columns[0]!r} with encoded {medium.content}. "
            f"Got the columns {', '.join(kinds) or 'none'}."
        )
    kind = kinds[content]
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InvalidTypeError(
            f"`{medium.owner}`: column {content!r} of {file.name} must be binary or struct<bytes, path>. Got {kind}."
        )
    if not pa.types.is_integer(kinds.get("label", pa.int64())):
        raise InvalidTypeError(
            f"`{medium.owner}`: column 'label' of {file.name} must be integer. Got {kinds['label']}."
        )
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        class_names = [str(name) for name in names]
    except (KeyError, TypeError, ValueError):  # no such metadata, or another program's
        class_names = None
    return Columns(content, "label" if "label" in kinds else None, class_names)


def _read(files: dict[str, Path], columns: Columns, medium: Medium) -> EncodedRows:
    try:
        # `partitioning=None`: a folder named "a=b" is no column.
        tables = [pq.read_table(file, columns=columns.used(), partitioning=None) for file in files.values()]
        chunks = [chunk for table in tables for chunk in table.column(columns.content).chunks]
        cells = pa.chunked_array(chunks, tables[0].schema.field(columns.content).type)
        labels = np.concatenate([_labels(table, columns) for table in tables])
    except DAMAGES as error:
        raise InvalidValueError(f"`{medium.owner}`: {_folder(files)} holds a damaged Parquet file: {error}") from error
    return EncodedRows(cells, labels, list(zip(files, map(len, tables), strict=True)), medium)


def _map(files: dict[str, Path], columns: Columns, medium: Medium) -> EncodedRows:
    """Mapped from an unpacked copy in the cache of `datasets`: Parquet itself has no fast way to a single row."""
    import datasets

    try:
        rows = datasets.Dataset.from_parquet([str(file) for file in files.values()], columns=columns.used())
        parts = [(name, pq.read_metadata(file).num_rows) for name, file in files.items()]
    except Exception as error:  # `datasets` wraps whatever it met
        cause = error.__cause__ or error
        raise InvalidValueError(f"`{medium.owner}`: {_folder(files)} holds a damaged Parquet file: {cause}") from error
    return mapped_rows(rows, columns, parts, medium)


def _folder(files: dict[str, Path]) -> Path:
    return next(iter(files.values())).parent


def mapped_rows(rows: Any, columns: Columns, parts: list[tuple[str, int]], medium: Medium = PICTURES) -> EncodedRows:
    """The rows of a `datasets.Dataset`, which stay on disk; ``parts``: name and number of rows of each of its files."""
    import datasets

    labels = _labels(rows.select_columns(columns.label or columns.content).with_format("arrow")[:], columns)
    feature = getattr(datasets, medium.feature)
    if isinstance(rows.features[columns.content], feature):
        rows = rows.cast_column(columns.content, feature(decode=False))  # bytes: we decode, as for files
    return EncodedRows(rows.select_columns(columns.content)[columns.content], labels, parts, medium)


def _labels(table: Any, columns: Columns) -> NDArray[np.int64]:
    """Int64 ``(n,)`` of an Arrow table, -1 where there is none."""
    if columns.label is None:
        return np.full(len(table), -1, dtype=np.int64)
    return table.column(columns.label).cast(pa.int64()).fill_null(-1).to_numpy()
