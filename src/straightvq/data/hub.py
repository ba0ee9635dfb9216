"""Data sets of the Hugging Face Hub."""

import datasets

from straightvq.data.parquet import Columns, mapped_rows
from straightvq.data.sets import SOURCES, Records, Source
from straightvq.errors import InvalidValueError

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


def hub(name: str) -> Source:
    """The data set ``name``, ``owner/name`` on the Hub, downloaded on first use into the cache of `datasets`.

    The image column is the first of type Image, the label column "label" or else the first ClassLabel.

    Raises:
        ValueError: It could not be fetched, or holds no images or no training split.
    """
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
    columns = Columns(images[0], label, list(features[label].names) if label else None)
    splits: dict[str, Records] = {
        SPLITS[split]: mapped_rows(rows, columns, f"{name} {split}")
        for split, rows in fetched.items()
        if split in SPLITS
    }
    return Source(splits, columns.class_names)
