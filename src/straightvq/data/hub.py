"""Data sets of the Hugging Face Hub."""

import datasets

from straightvq.data.parquet import PICTURES, Columns, Medium, mapped_rows
from straightvq.data.sets import SOURCES, Records, Source
from straightvq.errors import InvalidValueError

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


def hub(name: str, medium: Medium = PICTURES, sources: str = SOURCES) -> Source:
    """The data set ``name``, ``owner/name`` on the Hub, downloaded on first use into the cache of `datasets`.

    The column is the first of the medium's type, Image or Audio; the label column is "label", else the first
    ClassLabel.

    Raises:
        ValueError: It could not be fetched, or lacks such a column or a training split.
    """
    try:
        fetched = datasets.load_dataset(name)
    except Exception as error:  # no network, no such name, no permission: the hub client has an error for each
        raise InvalidValueError(
            f"`{medium.owner}`: `source` {name!r} is not a local path, and could not be fetched from the Hub "
            f"({type(error).__name__}: {error}). {sources}"
        ) from error
    if "train" not in fetched:
        raise InvalidValueError(f"`{medium.owner}`: {name!r} has no split 'train'. Got {', '.join(fetched)}.")
    features = fetched["train"].features
    contents = [column for column, kind in features.items() if isinstance(kind, getattr(datasets, medium.feature))]
    if not contents:
        raise InvalidValueError(
            f"`{medium.owner}`: {name!r} has no column of {medium.feature.lower()}s. "
            f"Got the columns {', '.join(features)}."
        )
    classes = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label = "label" if "label" in classes else next(iter(classes), None)
    columns = Columns(contents[0], label, list(features[label].names) if label else None)
    splits: dict[str, Records] = {
        SPLITS[split]: mapped_rows(rows, columns, [(f"{name} {split}", len(rows))], medium)
        for split, rows in fetched.items()
        if split in SPLITS
    }
    return Source(splits, columns.class_names, medium.owner)
