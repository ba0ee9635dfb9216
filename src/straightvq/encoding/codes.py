"""What `straightvq encode` has written, read for decoding."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from straightvq.encoding.folder import identity, read_footer, read_metadata, shard_file
from straightvq.errors import InvalidValueError
from straightvq.nn import Quantizer

OWNER = "decode"


class Shard(NamedTuple):
    """The rows of a shard: key, indices Int64 (*positions, levels if there are any), and length in samples or None."""

    keys: list[str]
    indices: list[NDArray[np.int64]]
    lengths: list[int | None]


class CodesFolder:
    """A folder of codes, complete.

    Attributes:
        settings: with which it was made.
        id: of these settings.
        sizes: rows of each shard.

    Raises:
        ValueError: for another folder, and for shards that are missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = read_metadata(path, OWNER) if path.is_dir() else None
        if metadata is None or metadata["settings"].get("made_by") != "straightvq encode":
            raise InvalidValueError(
                f"`{OWNER}`: `codes` must be a folder that `straightvq encode` made. Got {str(path)!r}."
            )
        self.settings: dict[str, Any] = metadata["settings"]
        self.id = identity(self.settings)
        rows, size = self.settings["rows"], self.settings["rows_per_shard"]
        self.sizes = [self._good(n, min(size, rows - start)) for n, start in enumerate(range(0, rows, size))]

    def _good(self, number: int, rows: int) -> int:
        made_with, good, bad = read_footer(shard_file(self.path, number)) or ("", 0, [])
        if made_with != self.id or good + len(bad) != rows:
            raise InvalidValueError(
                f"`{OWNER}`: {str(shard_file(self.path, number))!r} is missing, damaged, or of other settings than "
                "metadata.json says. The `straightvq encode` that made it makes it anew."
            )
        return good

    def read(self, number: int, quantizer: Quantizer) -> Shard:
        """A shard. A ValueError refuses indices that are none of the quantizer's."""
        file = shard_file(self.path, number)
        try:
            table = pq.read_table(file, partitioning=None)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise InvalidValueError(f"`{OWNER}`: {str(file)!r} is a damaged Parquet file: {error}") from error
        keys, shapes = table.column("key").to_pylist(), table.column("shape").to_pylist()
        lists = table.column("indices").combine_chunks()
        ends = lists.offsets.to_numpy()
        flat = lists.values.to_numpy().astype(np.int64)
        indices = []
        for key, shape, start, end in zip(keys, shapes, ends, ends[1:], strict=False):
            own = flat[start:end]
            if len(own) != math.prod(shape) or not _are_of(own, shape, quantizer):
                sizes = ", ".join(map(str, dict.fromkeys(quantizer.codebook_sizes)))
                raise InvalidValueError(
                    f"`{OWNER}`: the indices of {key!r} in {file.name} are none of {type(quantizer).__name__} with "
                    f"{quantizer.num_quantizers} code(s) of {sizes}. Got {len(own)} of shape {tuple(shape)}, up to "
                    f"{int(own.max(initial=-1))}."
                )
            indices.append(own.reshape(shape))
        has_lengths = "length" in table.column_names
        return Shard(keys, indices, table.column("length").to_pylist() if has_lengths else [None] * len(keys))


def _are_of(flat: NDArray[np.int64], shape: list[int], quantizer: Quantizer) -> bool:
    if not quantizer.is_composite:
        return bool(((flat >= 0) & (flat < quantizer.codebook_size)).all())
    if not shape or shape[-1] != quantizer.num_quantizers:
        return False
    levels = flat.reshape(-1, shape[-1])
    return bool(((levels >= 0) & (levels < np.array(quantizer.codebook_sizes))).all())
