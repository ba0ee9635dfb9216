"""Vectors of files of any size, piece by piece: rows that cannot be used are told, and stop nothing."""

import bisect
import contextlib
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from straightvq.data.vectors.read import OWNER, choose_names, choose_vectors, digits, find_files, narrowed
from straightvq.errors import InvalidTypeError, InvalidValueError

_BLOCK = 1024  # rows that are unpacked at once
_BUFFER = 1 << 20  # bytes that are read at once


class Piece(NamedTuple):
    """Some rows in their order.

    Attributes:
        names: of each, n texts.
        vectors: Float32 (n, d); any numbers in rows that cannot be used.
        reasons: why a row cannot be used, by place.
    """

    names: list[str]
    vectors: NDArray[np.float32]
    reasons: dict[int, str]


class VectorStream(ABC):
    """Vectors that are read when they are asked for; names as in `straightvq.data.vectors.read`.

    Attributes:
        width: numbers of a vector.
        digest: a hash of names and sizes of the files, not of their numbers.
    """

    width: int
    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, start: int, stop: int) -> Piece:
        """Rows from ``start`` to ``stop``, which is excluded. Going forward is cheap."""


def open_stream(source: str, column: str | None = None, item: str | None = None) -> VectorStream:
    """The vectors of ``source``, as `Vectors` takes it; nothing but sizes and the first row is read.

    Raises:
        ValueError, TypeError: for what is no such file, and for files without a row.

    Example:
        >>> stream = open_stream("digits")
        >>> len(stream), stream.width, stream.read(3, 5).names
        (1797, 64, ['3', '4'])
    """
    if source == "digits":
        return ArrayStream([("", digits().vectors)], "digits")
    files = find_files(Path(source).expanduser())
    parts = " ".join(f"{file.name} {file.stat().st_size}" for file in files)
    if files[0].suffix == ".npy":
        return ArrayStream([(f"{file.stem}:" if len(files) > 1 else "", _mapped(file)) for file in files], parts)
    return TableStream(files, column, item, parts)


class ArrayStream(VectorStream):
    """Rows of arrays (n, d), mapped from disk or in memory, each with a prefix for the names."""

    def __init__(self, parts: Sequence[tuple[str, NDArray[Any]]], digest: str) -> None:
        self.parts, self.digest = parts, _hash(digest)
        self.width = parts[0][1].shape[1]
        for _, array in parts:
            if array.shape[1] != self.width:
                raise InvalidValueError(
                    f"`{OWNER}`: the files of one folder must hold vectors of one width. Got {self.width} and "
                    f"{array.shape[1]}."
                )
        self.ends = list(itertools.accumulate(len(array) for _, array in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, start: int, stop: int) -> Piece:
        names: list[str] = []
        pieces: list[NDArray[np.float32]] = []
        for (prefix, array), end in zip(self.parts, self.ends, strict=True):
            first = end - len(array)
            low, high = max(start, first) - first, min(stop, end) - first
            if low < high:
                names += [f"{prefix}{row}" for row in range(low, high)]
                pieces.append(narrowed(array[low:high]))
        vectors = np.concatenate(pieces)
        return Piece(names, vectors, _not_finite(vectors))


class TableStream(VectorStream):
    """A column of lists of numbers in Parquet files, one below the other, read forward in blocks.

    Rows whose list is missing, of another length than the first one, or not finite cannot be used.
    """

    def __init__(self, files: list[Path], column: str | None, item: str | None, digest: str) -> None:
        import pyarrow.parquet as pq

        self.files = files
        self.columns: list[tuple[str, str | None]] = []  # of vectors and of names, in each file
        self.groups: list[tuple[int, int, int]] = []  # first row, number of the file, number of the group in it
        self.firsts: list[int] = []  # rows before each file
        self.rows = 0
        for number, file in enumerate(files):
            with _reading(file), pq.ParquetFile(file) as table:
                schema, metadata = table.schema_arrow, table.metadata
            kinds = dict(zip(schema.names, schema.types, strict=True))
            chosen = choose_vectors(file, kinds, column)
            self.columns.append((chosen, choose_names(file, kinds, chosen, item)))
            self.firsts.append(self.rows)
            for group in range(metadata.num_row_groups):
                self.groups.append((self.rows, number, group))
                self.rows += metadata.row_group(group).num_rows
        self._position = 0
        self._blocks: Iterator[tuple[int, Any]] | None = None
        self._left: tuple[int, Any] | None = None  # what of the last block has not been asked for
        self.digest = _hash(f"{digest} {self.rows} {self.columns}")
        self.width = self._first_width()

    def __len__(self) -> int:
        return self.rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": None, "_left": None}  # another process opens the files for itself

    def read(self, start: int, stop: int) -> Piece:
        pieces = []
        for first, number, block in self._between(start, stop):
            names, lists = self._columns_of(number, first, block)
            pieces.append((names, *self._vectors(lists)))
        names = [name for own, _, _ in pieces for name in own]
        vectors = np.concatenate([own for _, own, _ in pieces])
        places = itertools.accumulate((len(own) for own, _, _ in pieces), initial=0)
        reasons = {
            place + row: why for place, (_, _, own) in zip(places, pieces, strict=False) for row, why in own.items()
        }
        return Piece(names, vectors, _not_finite(vectors) | reasons)

    def _first_width(self) -> int:
        blocks = self._from(0, 1) if self.rows else iter(())
        for number, block in blocks:
            for cell in block.column(self.columns[number][0]):
                if cell.is_valid and len(cell):
                    return len(cell)
        raise InvalidValueError(f"`{OWNER}`: {self.files[0].parent} must hold at least one vector. Got none.")

    def _between(self, start: int, stop: int) -> Iterator[tuple[int, int, Any]]:
        """The blocks of these rows: number of the first row, number of the file, and an Arrow record batch."""
        group = bisect.bisect_right(self.groups, start, key=lambda found: found[0]) - 1
        if self._blocks is None or start < self._position or self.groups[group][0] > self._position:
            self._position, self._blocks, self._left = self.groups[group][0], self._from(group), None
        while start < stop:
            number, block = self._left or next(self._blocks)
            end = self._position + len(block)
            if end > start:
                low, high = start - self._position, min(stop, end) - self._position
                yield start, number, block.slice(low, high - low)
                start = self._position + high
            if end > stop:
                self._left = number, block
                return
            self._position, self._left = end, None

    def _from(self, group: int, rows: int = _BLOCK) -> Iterator[tuple[int, Any]]:
        import pyarrow.parquet as pq

        for number, found in itertools.groupby(self.groups[group:], key=lambda each: each[1]):
            file, columns = self.files[number], [name for name in self.columns[number] if name is not None]
            numbers = [each[2] for each in found]
            with _reading(file), pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as table:
                for block in table.iter_batches(rows, row_groups=numbers, columns=columns):
                    yield number, block

    def _columns_of(self, number: int, first: int, block: Any) -> tuple[list[str], Any]:
        column, item = self.columns[number]
        prefix = f"{self.files[number].stem}:" if len(self.files) > 1 else ""
        numbered = [f"{prefix}{first - self.firsts[number] + row}" for row in range(len(block))]
        if item is None:
            return numbered, block.column(column)
        given = block.column(item).to_pylist()
        names = [place if name is None else str(name) for place, name in zip(numbered, given, strict=True)]
        return names, block.column(column)

    def _vectors(self, lists: Any) -> tuple[NDArray[np.float32], dict[int, str]]:
        import pyarrow.compute as pc

        is_null = lists.is_null().to_numpy(zero_copy_only=False)
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        lengths = np.where(is_null, 0, lengths)
        numbers = narrowed(lists.flatten().to_numpy(zero_copy_only=False))  # an empty number becomes NaN
        vectors = np.zeros((len(lists), self.width), dtype=np.float32)
        fits = lengths == self.width
        places = (np.cumsum(lengths) - lengths)[fits]
        vectors[fits] = numbers[places[:, None] + np.arange(self.width)]
        reasons = {int(row): f"{lengths[row]} numbers instead of {self.width}" for row in np.flatnonzero(~fits)}
        return vectors, reasons | {int(row): "no vector" for row in np.flatnonzero(is_null)}


def _mapped(file: Path) -> NDArray[Any]:
    """An array (n, d) of a .npy file, n and d at least 1, which stays on disk."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)  # a pickle may run any code
    except (OSError, ValueError, EOFError) as error:
        raise InvalidValueError(f"`{OWNER}`: {file.name} cannot be read as an array of numbers: {error}.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or 0 in array.shape:
        shape = getattr(array, "shape", type(array).__name__)
        raise InvalidValueError(f"`{OWNER}`: {file.name} must hold one vector per row, shape (n, d). Got {shape}.")
    if array.dtype.kind not in "fiu":
        raise InvalidTypeError(f"`{OWNER}`: {file.name} must hold real numbers. Got {array.dtype}.")
    return array


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what Arrow raises for a damaged file into a sentence."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
        raise InvalidValueError(f"`{OWNER}`: {file.name} is a damaged Parquet file: {error}") from error


def _not_finite(vectors: NDArray[np.float32]) -> dict[int, str]:
    bad = ~np.isfinite(vectors).all(1)
    return {int(row): "NaN or infinite numbers" for row in np.flatnonzero(bad)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
