"""Small pictures made on the spot."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from straightvq.data.decode import UnreadableImageError
from straightvq.data.sets import Records


def saved(image, kind="PNG", **options):
    """Bytes of an image, or of an array of pixels."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def encoded(value=128, size=(10, 8), mode="RGB", kind="PNG"):
    """Bytes of a picture of one colour; ``size`` is (width, height)."""
    return saved(Image.new(mode, size, value), kind)


def noise_jpeg(size=64):
    return saved(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8), "JPEG")


def grey(value):
    return encoded((value, value, value))


def huge_png(width, height):
    """A header that announces width x height, with next to no data behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_parquet(path, images, labels=None, column="image", as_struct=True, metadata=None):
    cells = [{"bytes": data, "path": None} for data in images] if as_struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if as_struct else pa.binary()
    columns = {column: pa.array(cells, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


class Numbers(Records):
    """Picture i is full of i; some cannot be read."""

    def __init__(self, count, bad=(), prefix="n"):
        self.labels, self.bad, self.prefix = np.arange(count), set(bad), prefix

    def key(self, i):
        return f"{self.prefix}{i}"

    def decode(self, i, size, channels):
        if i in self.bad:
            raise UnreadableImageError("it is bad")
        return np.full((channels, size, size), i, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes ``a`` and ``b``, 20 grey pictures each; picture i of a has value i, of b 100 + i."""
    root = tmp_path / "pictures"
    for name, start in (("a", 0), ("b", 100)):
        (root / name).mkdir(parents=True)
        for i in range(20):
            (root / name / f"{i:02}.png").write_bytes(grey(start + i))
    return root
