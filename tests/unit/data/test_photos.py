from itertools import pairwise

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from straightvq.data.photos import REGIONS, digits, photos


def test_regions_share_no_column_and_crops_stay_inside_theirs():
    spans = sorted(REGIONS.values())
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
    source = photos(size=32, num_train=400, num_test=200)
    for split, crops in source.splits.items():
        boxes = np.array(crops.boxes)
        assert boxes[:, 0].min() >= REGIONS[split][0]
        assert boxes[:, 2].max() <= REGIONS[split][1]
        assert boxes[:, 1].min() >= 0
        assert boxes[:, 3].max() <= 427


def test_crop_of_the_size_itself_is_the_photograph():
    source = photos(size=128, num_train=4, num_test=4)  # no room for larger squares
    crops = source.splits["test"]
    left, top, right, bottom = crops.boxes[0]
    photo = load_sample_images().images[crops.labels[0]]
    np.testing.assert_array_equal(crops.decode(0, 128, 3), photo[top:bottom, left:right].transpose(2, 0, 1))


def test_larger_squares_are_averaged_by_area():
    crops = photos(size=16, num_train=200, num_test=1).splits["train"]
    i = next(
        i for i, (left, _, right, _) in enumerate(crops.boxes) if right - left == 32
    )  # every pixel is the mean of 2 x 2
    left, top, right, bottom = crops.boxes[i]
    square = load_sample_images().images[crops.labels[i]][top:bottom, left:right].astype(float)
    means = square.reshape(16, 2, 16, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(crops.decode(i, 16, 3), means, atol=1)


def test_crops_depend_on_the_seed_only_and_a_larger_set_begins_with_the_smaller():
    first, again, more, other = (
        photos(size=32, num_train=n, num_test=8, seed=seed).splits["test" if n == 8 else "train"]
        for n, seed in ((40, 0), (40, 0), (80, 0), (40, 1))
    )
    assert first.boxes == again.boxes == more.boxes[: len(first)] != other.boxes


def test_scales_and_both_photographs_occur():
    crops = photos(size=32).splits["train"]
    sides = [right - left for left, _, right, _ in crops.boxes]
    assert min(sides) == 32
    assert max(sides) > 90
    assert 0.4 < crops.labels.mean() < 0.6


def test_photo_size_beyond_the_narrowest_region_is_refused():
    with pytest.raises(ValueError, match="`size` must be at most 128"):
        photos(size=129)


def test_digits_split_is_fixed_and_scaled_to_full_range():
    source = digits()
    train, test = source.splits["train"], source.splits["test"]
    assert (len(train), len(test)) == (1437, 360)
    assert train.decode(0, 8, 1)[0, 0, 2:4].tolist() == [80, 207]  # levels 5 and 13, times 255 / 16
    assert set(test.labels.tolist()) == set(range(10))
    assert len({train.key(i) for i in range(len(train))} | {test.key(i) for i in range(len(test))}) == 1797
