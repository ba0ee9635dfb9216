"""Tables of vectors with the names of their rows: read whole, checked, refused with a sentence."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from straightvq.errors import InvalidTypeError, InvalidValueError, NonFiniteError, did_you_mean

OWNER = "Vectors"


@dataclass(frozen=True)
class Table:
    """Vectors and what each is called.

    Attributes:
        vectors: Float32 (n, d), finite, n and d at least 1.
        items: the name of each row, n different ones: texts, or integers where the file has integers or no names.
    """

    vectors: NDArray[np.float32]
    items: list[str] | list[int]


def digits() -> Table:
    """scikit-learn's 1,797 handwritten digits as vectors of their 64 pixels in [0, 1]; items are row numbers."""
    from sklearn.datasets import load_digits

    pixels = load_digits().data / 16
    return Table(pixels.astype(np.float32), list(range(len(pixels))))


def read(path: Path, column: str | None = None, item: str | None = None) -> Table:
    """A .parquet or .npy file, or a folder of files of one of these kinds, one below the other by name.

    Args:
        path: file or folder.
        column: the column of vectors; None for the only one of lists of numbers. Parquet only.
        item: the column of names; None for the first of texts or integers, and row numbers without one. Of .npy files
            the names are row numbers, in a folder behind the file's name.

    Raises:
        ValueError, TypeError: for what is no such file, and for vectors that are empty, of different widths, not
            numbers, or not finite.
    """
    files = find_files(path)
    if files[0].suffix == ".npy":
        for name, value in (("column", column), ("item", item)):
            if value is not None:
                raise InvalidValueError(
                    f"`{OWNER}`: `{name}` belongs to Parquet files; {path.name} is none. Got {value!r}."
                )
        parts = [Table(vectors := _npy(file), list(range(len(vectors)))) for file in files]
    else:
        parts = [_parquet(file, column, item) for file in files]
    _check_widths(files, parts)
    if len(parts) > 1 and (files[0].suffix == ".npy" or all(_is_numbered(part) for part in parts)):
        parts = [
            Table(part.vectors, [f"{file.stem}:{row}" for row in part.items])
            for file, part in zip(files, parts, strict=True)
        ]
    vectors = np.concatenate([part.vectors for part in parts])
    items: list[Any] = [name for part in parts for name in part.items]
    if len({type(name) for name in items}) > 1:
        items = [str(name) for name in items]
    _check(vectors, items, path)
    return Table(vectors, items)


def find_files(path: Path) -> list[Path]:
    if not path.is_dir():
        if path.suffix not in (".parquet", ".npy"):
            raise InvalidValueError(f"`{OWNER}`: `source` must end in .parquet or .npy. Got {str(path)!r}.")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in (".parquet", ".npy") and file.name[0] != ".")
    kinds = {file.suffix for file in found}
    if len(kinds) != 1:
        what = "both" if found else "none"
        raise InvalidValueError(f"`{OWNER}`: the folder {str(path)!r} must hold .parquet or .npy files. Got {what}.")
    return found


def _is_numbered(part: Table) -> bool:
    """Whether its names are no more than row numbers."""
    return part.items == list(range(len(part.items)))


def _npy(file: Path) -> NDArray[np.float32]:
    try:
        array = np.load(file, allow_pickle=False)  # a pickle may run any code
    except (OSError, ValueError, EOFError) as error:
        raise InvalidValueError(f"`{OWNER}`: {file.name} cannot be read as an array of numbers: {error}.") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        shape = getattr(array, "shape", type(array).__name__)
        raise InvalidValueError(f"`{OWNER}`: {file.name} must hold one vector per row, shape (n, d). Got {shape}.")
    if array.dtype.kind not in "fiu":
        raise InvalidTypeError(f"`{OWNER}`: {file.name} must hold real numbers. Got {array.dtype}.")
    return narrowed(array)


def _parquet(file: Path, column: str | None, item: str | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    damages = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last for names of columns
    try:
        schema = pq.read_schema(file)
        kinds = dict(zip(schema.names, schema.types, strict=True))
    except damages as error:
        raise InvalidValueError(f"`{OWNER}`: {file.name} is not a readable Parquet file: {error}") from error
    column = choose_vectors(file, kinds, column)
    item = choose_names(file, kinds, column, item)
    try:
        # `partitioning=None`: a folder named "a=b" is no column.
        table = pq.read_table(file, columns=[column, *([item] if item else [])], partitioning=None)
        table.validate(full=True)
        cells = table.column(column).combine_chunks()
    except damages as error:
        raise InvalidValueError(f"`{OWNER}`: {file.name} is a damaged Parquet file: {error}") from error
    vectors = _matrix(file, column, cells)
    if item is None:
        return Table(vectors, list(range(len(vectors))))
    names = table.column(item)
    if names.null_count:
        raise InvalidValueError(
            f"`{OWNER}`: column {item!r} of {file.name} must name every row. Got {names.null_count} without."
        )
    return Table(vectors, names.to_pylist())


def choose_vectors(file: Path, kinds: dict[str, Any], column: str | None) -> str:
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
    if column is not None:
        if column not in kinds:
            hint = did_you_mean(column, list(kinds))
            raise InvalidValueError(f"`{OWNER}`: {file.name} has no column {column!r}.{hint} Got the columns {listed}.")
        if not _is_vectors(kinds[column]):
            raise InvalidTypeError(
                f"`{OWNER}`: column {column!r} of {file.name} must hold lists of numbers. Got {kinds[column]}."
            )
        return column
    found = [name for name, kind in kinds.items() if _is_vectors(kind)]
    if len(found) != 1:
        what = "none of lists of numbers" if not found else f"{' and '.join(map(repr, found))}: pass `column`"
        raise InvalidValueError(
            f"`{OWNER}`: {file.name} must have one column of vectors. Got {what}. Its columns are {listed}."
        )
    return found[0]


def choose_names(file: Path, kinds: dict[str, Any], column: str, item: str | None) -> str | None:
    if item is None:
        return next((name for name, kind in kinds.items() if name != column and _is_name(kind)), None)
    if item not in kinds:
        hint = did_you_mean(item, list(kinds))
        raise InvalidValueError(f"`{OWNER}`: {file.name} has no column {item!r}.{hint} Got {', '.join(kinds)}.")
    if not _is_name(kinds[item]):
        raise InvalidTypeError(
            f"`{OWNER}`: column {item!r} of {file.name} must be texts or integers. Got {kinds[item]}."
        )
    return item


def _is_name(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_vectors(kind: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))


def _matrix(file: Path, column: str, cells: Any) -> NDArray[np.float32]:
    import pyarrow as pa

    where = f"`{OWNER}`: column {column!r} of {file.name}"
    if cells.null_count:
        raise InvalidValueError(f"{where} must hold a vector in every row. Got {cells.null_count} rows without.")
    if not len(cells):
        return np.zeros((0, 1), dtype=np.float32)
    if not pa.types.is_fixed_size_list(cells.type):
        widths = Counter(cells.value_lengths().to_pylist())
        if len(widths) > 1:
            usual = widths.most_common(1)[0][0]
            row = next(row for row, width in enumerate(cells.value_lengths().to_pylist()) if width != usual)
            got = f"{usual}, and {len(cells[row])} in row {row}"
            raise InvalidValueError(f"{where} must hold vectors of one width. Got {got}.")
    flat = cells.flatten()
    if flat.null_count:
        raise NonFiniteError(f"{where} must hold finite numbers. Got {flat.null_count} empty ones.")
    return narrowed(flat.to_numpy(zero_copy_only=False).reshape(len(cells), -1))


def narrowed(array: NDArray[Any]) -> NDArray[np.float32]:
    """As float32; what that cannot hold becomes infinite, and is refused with the infinite ones."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def _check_widths(files: list[Path], parts: list[Table]) -> None:
    for file, part in zip(files, parts, strict=True):
        if len(part.vectors) and part.vectors.shape[1] != parts[0].vectors.shape[1]:
            raise InvalidValueError(
                f"`{OWNER}`: the files of one folder must hold vectors of one width. {files[0].name} has "
                f"{parts[0].vectors.shape[1]} numbers in a row, {file.name} has {part.vectors.shape[1]}."
            )


def _check(vectors: NDArray[np.float32], items: list[Any], path: Path) -> None:
    if 0 in vectors.shape:
        raise InvalidValueError(
            f"`{OWNER}`: {str(path)!r} must hold at least one vector. Got the shape {vectors.shape}."
        )
    bad = ~np.isfinite(vectors).all(1)
    if bad.any():
        first = items[int(bad.argmax())]
        raise NonFiniteError(
            f"`{OWNER}`: the vectors of {str(path)!r} must be finite in float32. Got {int(bad.sum())} rows with NaN or "
            f"infinite values, the first of item {first!r}."
        )
    if len(set(items)) < len(items):
        twice, count = Counter(items).most_common(1)[0]
        raise InvalidValueError(
            f"`{OWNER}`: the items of {str(path)!r} must have different names. Got {twice!r} {count} times."
        )
