"""Everything that needs the `datasets` package: names on the Hugging Face Hub, and Parquet larger than
memory."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from straightvq.data.decode import decode_image
from straightvq.data.files import cell_bytes
from straightvq.data.sets import Records, Source
from straightvq.errors import InvalidValueError

SOURCES = (
    'Sources are "photos" and "digits" (embedded), a folder of images or of Parquet files, a .parquet file, '
    "or owner/name on the Hugging Face Hub."
)


class ArrowRows(Records):
    """Rows of a memory-mapped `datasets.Dataset` that has a column "image" of encoded bytes."""

    def __init__(self, dataset: Any, labels: NDArray[np.int64], name: str) -> None:
        self.dataset, self.labels, self.name = dataset, labels, name

    def key(self, i: int) -> str:
        return f"{self.name} row {i}"

    def decode(self, i: int, size: int, channels: int) -> NDArray[np.uint8]:
        return decode_image(cell_bytes(self.dataset[i]["image"]), size, channels)


def hub(name: str) -> Source:
    """A data set of the Hugging Face Hub, downloaded on first use into the cache of `datasets`.

    The image column is the first of type Image, the label column "label" or else the first ClassLabel.

    Args:
        name: ``owner/name``.

    Raises:
        ValueError: It could not be fetched, or holds no images or no training split.
    """
    import datasets

    try:
        fetched = datasets.load_dataset(name)
    except Exception as error:  # no network, no such name, no permission: the hub client has an error for each
        raise InvalidValueError(
            f"`Images`: `source` {name!r} is not a local path, and could not be fetched from the Hub "
            f"({type(error).__name__}: {error}). {SOURCES}"
        ) from error
    if "train" not in fetched:
        raise InvalidValueError(f"`Images`: {name!r} has no split 'train'. Got {', '.join(fetched)}.")
    features = fetched["train"].features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise InvalidValueError(f"`Images`: {name!r} has no column of images. Got the columns {', '.join(features)}.")
    classes = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label = "label" if "label" in classes else next(iter(classes), None)
    known = {
        "train": "train",
        "validation": "validation",
        "valid": "validation",
        "val": "validation",
        "test": "test",
    }
    splits: dict[str, Records] = {
        known[split]: _arrow_rows(rows, images[0], label, f"{name} {split}")
        for split, rows in fetched.items()
        if split in known
    }
    return Source(splits, list(features[label].names) if label else None)


def map_parquet(files: list[Path], image: str, label: str | None) -> ArrowRows:
    """Parquet files as a memory-mapped set: Parquet itself has no fast way to a single row.

    The files are written once, unpacked, into the cache of `datasets`.
    """
    import datasets

    columns = [image] if label is None else [image, label]
    try:
        rows = datasets.Dataset.from_parquet([str(file) for file in files], columns=columns)
    except Exception as error:  # `datasets` wraps whatever it met
        raise InvalidValueError(
            f"`Images`: {files[0].parent} holds a damaged Parquet file: {error.__cause__ or error}"
        ) from error
    return _arrow_rows(rows, image, label, files[0].name)


def _arrow_rows(rows: Any, image: str, label: str | None, name: str) -> ArrowRows:
    import datasets

    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))  # bytes: we decode, as for files
    labels = np.full(len(rows), -1, dtype=np.int64)
    if label is not None:
        labels = np.array([-1 if value is None else value for value in rows[label]], dtype=np.int64)
    rows = rows.select_columns([image])
    return ArrowRows(rows if image == "image" else rows.rename_column(image, "image"), labels, name)
