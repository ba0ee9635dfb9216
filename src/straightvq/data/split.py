"""Which pictures belong to which split: drawn from their names, so that it is the same on every machine."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from straightvq.data.sets import Records, Selection, Source

Mask = NDArray[np.bool_]


def share(key: str, seed: int, use: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: files that come or go never move the others."""
    digest = hashlib.blake2b(f"{use}:{seed}:{key}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def divide(
    source: Source, val_fraction: float, num_train: int | None, num_test: int | None, seed: int
) -> dict[str, Records]:
    """The records of each split. A split the source lacks gets ``val_fraction`` of the training one; none overlap.

    Membership is decided picture by picture from a hash of (seed, name), so a split has ``val_fraction`` of the
    pictures only about. ``num_train`` limits training pictures and the validation pictures taken from them together.
    """
    train = source.splits["train"]
    everything = np.ones(len(train), dtype=bool)
    nothing = ~everything
    draws = np.array([share(train.key(i), seed, "split") for i in range(len(train))])
    # Fixed places for the two, so that a test split that turns up later does not reshuffle the validation split.
    places = {"validation": (0.0, val_fraction), "test": (val_fraction, 2 * val_fraction)}
    taken = {name: (low <= draws) & (draws < high) for name, (low, high) in places.items() if name not in source.splits}
    kept = ~np.logical_or.reduce([nothing, *taken.values()])
    if not kept.any():  # a set of one or two pictures: it can at least be trained on
        kept, taken = everything, dict.fromkeys(taken, nothing)
    if num_train is not None:
        chosen = _limit(train, kept | taken.get("validation", nothing), num_train, seed)
        kept = kept & chosen
        if "validation" in taken:
            taken["validation"] = taken["validation"] & chosen
            if not kept.any():
                kept, taken["validation"] = chosen, nothing
    parts = source.splits | {name: Selection(train, np.flatnonzero(mask)) for name, mask in taken.items()}
    parts["train"] = Selection(train, np.flatnonzero(kept))
    if num_test is not None:
        test = parts["test"]
        chosen = _limit(test, np.ones(len(test), dtype=bool), num_test, seed)
        parts["test"] = Selection(test, np.flatnonzero(chosen))
    return parts


def _limit(records: Records, mask: Mask, count: int, seed: int) -> Mask:
    """At most ``count`` of the masked records, drawn by hash: the first ones would often be of a single class."""
    rows = np.flatnonzero(mask)
    draws = np.array([share(records.key(i), seed, "limit") for i in rows.tolist()])
    chosen = np.zeros_like(mask)
    chosen[rows[np.argsort(draws, kind="stable")[:count]]] = True
    return chosen
