"""`straightvq encode`: a whole data set to tokens."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from straightvq.encoding.codec import NOT_FINITE, Code, Codec
from straightvq.encoding.engine import Engine, hand_out
from straightvq.encoding.folder import ShardFolder
from straightvq.encoding.opening import Origin, as_path
from straightvq.encoding.rows import Rows, read_ahead, spans
from straightvq.errors import InvalidValueError
from straightvq.nn import VectorQuantizer
from straightvq.nn.part import check_int

OWNER = "encode"
COLUMNS = {
    "key": "what names the row in its source",
    "indices": "all codes of the row, flat",
    "shape": "how the codes lie: positions, and levels behind them where there are several",
    "length": "samples of the clip",
    "neighbors": "the nearest codes of each position, nearest first, flat: (*shape, k)",
    "distances": "their distances",
}


def encode(
    run: str | PathLike[str] | None,
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    file: str | PathLike[str] | None = None,
    layout: str | None = None,
    rows_per_shard: int = 10_000,
    nearest: int | None = None,
    readers: int = 0,
    engine: Engine = "here",
    workers: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Encodes all rows of a source, whatever their split, to shards of tokens that say which row each belongs to.

    Writes ``part-00000.parquet`` and so on, shard i with the rows from i times ``rows_per_shard``, in the source's own
    order; ``metadata.json``, with all settings; and ``bad.jsonl``, with key and reason of every row that cannot be
    used, if there is one. The columns are ``key``, ``indices`` (the narrowest unsigned integers, flat), ``shape``, of
    sound ``length`` in samples, and with ``nearest`` also ``neighbors`` and ``distances``.

    May be killed at any time. The same call makes what is missing, by any number of processes: under `torchrun`, or
    with RANK and WORLD_SIZE set, process r makes every shard i with i % WORLD_SIZE == r. Pictures, clips and vectors
    pass what those of the run's validation pass, by the quantizer's evaluation rule.

    Args:
        run: folder of a run (its best checkpoint, or else the last), or one of its checkpoints; None with ``file``.
        source: what the run's data module takes as ``source``: `Images`, `Sound` or `Vectors`.
        out: folder of the results, new or of an earlier call with the same settings.
        file: instead of a run, a file of another library's quantizer, as `straightvq.interop.from_file` takes it; the
            source is then vectors of the quantizer's ``dim``.
        layout: of the file; None finds it.
        rows_per_shard: rows of a shard, at least 1.
        nearest: number of the nearest codes that are written for each position, in [1, codebook_size]; None for none.
            Needs a quantizer with one codebook.
        readers: processes that read and decode beside the network; 0 for a thread.
        engine: "here", or "ray": this process hands out the shards to workers of Ray's, on this machine or the
            cluster that RAY_ADDRESS names, all of which see the same files.
        workers: of Ray's.
        device: "auto", "cpu", "cuda" or "mps".

    Returns:
        What ``metadata.json`` holds. Once all shards are there, ``done`` and ``bad`` count the rows.

    Raises:
        ValueError, TypeError: for values out of range, a run without a quantizer, a source of another kind than the
            run's data, a folder that holds something else or was made with other settings, and if no row can be used.
        OSError: if the disk refuses something; complete shards stay.
    """
    origin = Origin.of(OWNER, run, file, layout, device, as_path(OWNER, "source", source))
    job = EncodeJob(origin, as_path(OWNER, "out", out), rows_per_shard, nearest, readers)
    return hand_out(job, engine, workers)


@dataclass(frozen=True)
class EncodeJob:
    """What to encode, and to where; the arguments are those of `encode`."""

    origin: Origin
    out: str
    rows_per_shard: int
    nearest: int | None
    readers: int

    def __post_init__(self) -> None:
        check_int(OWNER, "rows_per_shard", self.rows_per_shard, 1)
        check_int(OWNER, "readers", self.readers, 0)
        if self.nearest is not None:
            check_int(OWNER, "nearest", self.nearest, 1)

    @property
    def owner(self) -> str:
        return OWNER

    def open(self, device: str | None = None) -> "Encoding":
        origin = self.origin if device is None else dataclasses.replace(self.origin, device=device)
        codec, made = origin.open()
        _check_nearest(codec, self.nearest)
        rows = codec.rows()
        count, size = len(rows), self.rows_per_shard
        place = Path(str(origin.source)).expanduser()
        settings = {
            **made,
            "source": str(place.resolve()) if place.exists() else origin.source,
            "rows": count,
            "keys": rows.digest[:16],
            "rows_per_shard": size,
            "nearest": self.nearest,
        }
        notes = {
            "encoded_from": origin.run or origin.file,
            "decode": f"straightvq decode --{'run' if origin.run else 'file'} {origin.run or origin.file} "
            f"--codes {self.out} --out FOLDER",
            "columns": _columns(codec, self.nearest),
        }
        sizes = [min(size, count - start) for start in range(0, count, size)]
        return Encoding(codec, rows, ShardFolder(Path(self.out), OWNER, settings, sizes, notes), self)


class Encoding:
    """Makes the shards of a job; see `straightvq.encoding.engine.Work`."""

    def __init__(self, codec: Codec, rows: Rows, folder: ShardFolder, job: EncodeJob) -> None:
        self.codec, self.rows, self.folder, self.job = codec, rows, folder, job
        self.kind = codec.kind

    def do(self, numbers: Sequence[int], tell: Callable[[int], object]) -> None:
        size = self.job.rows_per_shard
        shards = [(number, range(number * size, number * size + self.folder.sizes[number])) for number in numbers]
        # One stream over all shards: the next one is read while the network is at this one.
        pieces = read_ahead(self.rows, spans(shards, self.codec.batch_size), self.job.readers)
        with contextlib.closing(pieces):
            for number, own in itertools.groupby(pieces, key=lambda piece: piece.shard):
                keys: list[str] = []
                codes: list[Code] = []
                bad: list[tuple[str, str]] = []
                for piece in own:
                    bad += piece.bad
                    for key, code in zip(piece.keys, self.codec.encode(piece.values, self.job.nearest), strict=True):
                        if code is None:
                            bad.append((key, NOT_FINITE))
                        else:
                            keys.append(key)
                            codes.append(code)
                    tell(len(piece.keys) + len(piece.bad))
                self.folder.write(number, self._table(keys, codes), bad)

    def _table(self, keys: list[str], codes: list[Code]) -> pa.Table:
        # What holds the largest code holds all.
        kind = np.min_scalar_type(max(self.codec.quantizer.codebook_sizes) - 1)
        columns = {
            "key": pa.array(keys, pa.string()),
            "indices": _lists((code.indices for code in codes), kind),
            "shape": _lists((np.array(code.indices.shape) for code in codes), np.dtype(np.int32)),
        }
        names = _columns(self.codec, self.job.nearest)
        if "length" in names:
            columns["length"] = pa.array([code.length for code in codes], pa.int64())
        if "neighbors" in names:
            columns["neighbors"] = _lists((code.neighbors for code in codes), kind)
            columns["distances"] = _lists((code.distances for code in codes), np.dtype(np.float32))
        return pa.table(columns)


def _columns(codec: Codec, nearest: int | None) -> dict[str, str]:
    """Names and meanings of the columns."""
    without = set() if codec.is_ragged else {"length"}
    without |= {"neighbors", "distances"} if nearest is None else set()
    return {name: text for name, text in COLUMNS.items() if name not in without}


def _lists(rows: Iterable[Any], kind: np.dtype[Any]) -> pa.Array:
    """Arrays of any shapes as a column of flat lists."""
    flat = [np.ravel(row).astype(kind) for row in rows]
    ends = np.cumsum([0, *map(len, flat)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.concatenate([np.zeros(0, kind), *flat])))


def _check_nearest(codec: Codec, nearest: int | None) -> None:
    if nearest is None:
        return
    quantizer = codec.quantizer
    if not isinstance(quantizer, VectorQuantizer):
        raise InvalidValueError(
            f"`{OWNER}`: `nearest` needs a quantizer with one codebook. Got {type(quantizer).__name__}."
        )
    if nearest > quantizer.codebook_size:
        raise InvalidValueError(
            f"`{OWNER}`: `nearest` must be at most the codebook_size {quantizer.codebook_size}. Got {nearest}."
        )
