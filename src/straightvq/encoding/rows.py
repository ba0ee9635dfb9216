"""The rows of a source in their order, each with its key: read piece by piece, ahead of who asks, bad ones apart."""

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from straightvq.data.decode import UnreadableImageError
from straightvq.data.sets import Records
from straightvq.data.vectors.stream import VectorStream

Span = tuple[int, int, int]  # number of the shard, first row, and the row behind the last one
_DEPTH = 4  # pieces that wait


class Loaded(NamedTuple):
    """Rows that were read.

    Attributes:
        shard: where they belong.
        keys: of the good ones.
        values: pixels UInt8 (C, H, W), samples Float32 (n,), or numbers Float32 (d,), of each.
        bad: key and reason of every other one.
    """

    shard: int
    keys: list[str]
    values: list[NDArray[Any]]
    bad: list[tuple[str, str]]


class Rows(ABC):
    """What there is to encode. A row's number and key are the same in every process that looks at the source.

    Attributes:
        digest: a hash that differs where rows have come or gone.
    """

    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, shard: int, start: int, stop: int) -> Loaded:
        """Rows from ``start`` to ``stop``, which is excluded."""


class RecordRows(Rows):
    """Pictures or clips, decoded with the given size and channels."""

    def __init__(self, records: Records, size: int, channels: int) -> None:
        self.records, self.size, self.channels = records, size, channels
        keys = hashlib.sha256()
        for row in range(len(records)):
            keys.update(f"{records.key(row)}\n".encode(errors="surrogateescape"))
        self.digest = keys.hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def read(self, shard: int, start: int, stop: int) -> Loaded:
        loaded = Loaded(shard, [], [], [])
        for row in range(start, stop):
            # Names of files may be no text; a column of texts cannot hold those bytes.
            key = self.records.key(row).encode(errors="backslashreplace").decode()
            try:
                loaded.values.append(self.records.decode(row, self.size, self.channels))
                loaded.keys.append(key)
            except UnreadableImageError as error:
                loaded.bad.append((key, str(error)))
        return loaded


class VectorRows(Rows):
    """Vectors of a stream."""

    def __init__(self, stream: VectorStream) -> None:
        self.stream, self.digest = stream, stream.digest

    def __len__(self) -> int:
        return len(self.stream)

    def read(self, shard: int, start: int, stop: int) -> Loaded:
        names, vectors, reasons = self.stream.read(start, stop)
        good = [row for row in range(len(names)) if row not in reasons]
        bad = [(names[row], why) for row, why in sorted(reasons.items())]
        return Loaded(shard, [names[row] for row in good], [vectors[row] for row in good], bad)


def spans(shards: Iterable[tuple[int, range]], batch: int) -> list[Span]:
    """The batches of some shards, each given by its number and its rows; none has rows of two of them.

    Example:
        >>> spans([(3, range(30, 35))], 2)
        [(3, 30, 32), (3, 32, 34), (3, 34, 35)]
    """
    return [
        (number, start, min(start + batch, rows.stop))
        for number, rows in shards
        for start in range(rows.start, rows.stop, batch)
    ]


def read_ahead(rows: Rows, asked: Sequence[Span], processes: int) -> Generator[Loaded]:
    """All spans in their order, some of them ahead: read by a thread, or by so many processes."""
    if processes:
        yield from DataLoader(_Spans(rows, asked), batch_size=None, num_workers=processes, collate_fn=_as_it_is)
        return
    waiting: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for span in asked:
                waiting.append(thread.submit(rows.read, *span))
                if len(waiting) > _DEPTH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Spans(Dataset[Loaded]):
    def __init__(self, rows: Rows, asked: Sequence[Span]) -> None:
        self.rows, self.asked = rows, asked

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, i: int) -> Loaded:
        return self.rows.read(*self.asked[i])


def _as_it_is(loaded: Any) -> Any:
    return loaded
