"""Real pictures that need no download: crops of scikit-learn's two photographs, and its handwritten digits."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from straightvq.data.decode import to_array
from straightvq.data.sets import Records, Selection, Source
from straightvq.errors import InvalidValueError

# Columns of the two photographs, each 427 rows by 640 columns. No pixel is in two splits.
REGIONS = {"train": (0, 352), "validation": (352, 480), "test": (480, 640)}
LARGEST_CROP = 128  # the width of the narrowest region
NUM_TRAIN, NUM_TEST = 4096, 512
DIGITS_TEST = 360  # the last fifth: other writers than the first ones


class PhotoCrops(Records):
    """``count`` squares from one region; places and scales are random and depend on (seed, region, number) only."""

    def __init__(self, photos: list[Image.Image], split: str, count: int, size: int, seed: int) -> None:
        self.photos, self.split = photos, split
        left, right = REGIONS[split]
        # Row i of the table is the same for every `count`: a larger set begins with the smaller one.
        table = np.random.default_rng([seed, left]).random((count, 4))
        self.labels = (table[:, 0] * len(photos)).astype(np.int64)
        largest = min(3 * size, LARGEST_CROP)
        # Log-uniform sides: as many crops between s and 1.1 s at every scale.
        sides = np.floor(size * (largest / size) ** table[:, 1] + 1e-9)
        heights = np.array([photo.height for photo in photos])[self.labels]
        lefts = left + np.floor(table[:, 2] * (right - left - sides + 1))
        tops = np.floor(table[:, 3] * (heights - sides + 1))
        # In pixels, right and bottom excluded.
        self.boxes = np.stack([lefts, tops, lefts + sides, tops + sides], 1).astype(np.int64).tolist()

    def key(self, i: int) -> str:
        return f"{self.split} crop {i}"

    def decode(self, i: int, size: int, channels: int) -> NDArray[np.uint8]:
        # Cropped before it is scaled, so that no filter can reach over the border of the region.
        crop = self.photos[self.labels[i]].crop(self.boxes[i])
        return to_array(crop.resize((size, size), Image.Resampling.BOX), channels)


def photos(
    size: int, num_train: int | None = None, num_test: int | None = None, val_fraction: float = 0.1, seed: int = 0
) -> Source:
    """Crops of scikit-learn's ``china.jpg`` and ``flower.jpg`` (427 x 640 pixels each).

    Training crops come from columns 0-351 of both photographs, validation crops from 352-479, test crops from 480-639:
    no pixel is shared. A crop's side is between ``size`` and ``min(3 * size, 128)`` pixels, averaged down by area to
    ``size``. The label is the photograph: 0 china, 1 flower.

    Args:
        size: Side of a crop in pixels, at most 128.
        num_train: Crops for training and validation together, by default 4,096; ``val_fraction`` of them validate.
        num_test: Crops for testing, by default 512.
        seed: Random seed of places, scales and photographs.

    Example:
        >>> source = photos(size=32, num_train=100, num_test=10)
        >>> {name: len(crops) for name, crops in source.splits.items()}
        {'train': 90, 'validation': 10, 'test': 10}
    """
    from sklearn.datasets import load_sample_images

    if size > LARGEST_CROP:
        raise InvalidValueError(
            f'`Images`: `size` must be at most {LARGEST_CROP} for source "photos", whose regions are that narrow. '
            f"Got {size}."
        )
    images = [Image.fromarray(array) for array in load_sample_images().images]
    num_train = num_train or NUM_TRAIN
    num_validation = min(round(val_fraction * num_train), num_train - 1)
    counts = {"train": num_train - num_validation, "validation": num_validation, "test": num_test or NUM_TEST}
    splits: dict[str, Records] = {name: PhotoCrops(images, name, count, size, seed) for name, count in counts.items()}
    return Source(splits, ["china", "flower"])


class Digits(Records):
    """The 8 x 8 digits, 16 grey levels scaled to 0..255."""

    def __init__(self, grey: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.grey, self.labels = grey, labels.astype(np.int64)

    def key(self, i: int) -> str:
        return f"digit {i}"

    def decode(self, i: int, size: int, channels: int) -> NDArray[np.uint8]:
        return to_array(Image.fromarray(self.grey[i]).resize((size, size), Image.Resampling.BILINEAR), channels)


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits; the last 360 are the test split.

    Example:
        >>> digits().splits["train"].decode(0, size=16, channels=1).shape
        (1, 16, 16)
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    records = Digits(np.rint(data.images * (255 / 16)).astype(np.uint8), data.target)
    train, test = np.split(np.arange(len(records)), [len(records) - DIGITS_TEST])
    return Source({"train": Selection(records, train), "test": Selection(records, test)}, list("0123456789"))
