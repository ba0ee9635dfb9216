import numpy as np
import pytest
import torch

from straightvq.data.decode import UnreadableImageError
from straightvq.data.sets import ImageStream, Records, Source, decode_all, divide, share


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


def test_share_is_a_fixed_function_of_its_arguments():
    # Written down once: a changed hash would move test pictures into training sets.
    assert share("cat/1.png", 0, "split") == pytest.approx(0.7764937757271965, abs=1e-12)
    assert share("cat/1.png", 0, "split") != share("cat/1.png", 1, "split")


def test_missing_splits_are_taken_from_training_without_overlap():
    parts = divide(Source({"train": Numbers(1000)}), 0.1, None, None, seed=0)
    rows = {name: set(part[1].tolist()) for name, part in parts.items()}
    assert sorted(rows["train"] | rows["validation"] | rows["test"]) == list(range(1000))
    assert sum(map(len, rows.values())) == 1000
    assert 70 < len(rows["validation"]) < 130
    assert 70 < len(rows["test"]) < 130


def test_new_files_move_no_old_one_and_a_test_split_moves_no_validation_picture():
    small = divide(Source({"train": Numbers(500)}), 0.1, None, None, seed=0)
    large = divide(Source({"train": Numbers(1000)}), 0.1, None, None, seed=0)
    given = divide(Source({"train": Numbers(500), "test": Numbers(9, prefix="t")}), 0.1, None, None, seed=0)
    for name in ("train", "validation", "test"):
        assert small[name][1].tolist() == [i for i in large[name][1].tolist() if i < 500]
    assert given["validation"][1].tolist() == small["validation"][1].tolist()
    assert given["test"][1].tolist() == list(range(9))


def test_limit_counts_training_and_validation_together_and_keeps_the_split():
    whole = divide(Source({"train": Numbers(1000)}), 0.1, None, None, seed=0)
    part = divide(Source({"train": Numbers(1000)}), 0.1, 100, 7, seed=0)
    assert len(part["train"][1]) + len(part["validation"][1]) == 100
    assert len(part["test"][1]) == 7
    for name in ("train", "validation", "test"):
        assert set(part[name][1]) <= set(whole[name][1])
    assert part["train"][1].max() > 500  # spread over the set, which may be sorted by class


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_set_always_leaves_something_to_train_on(count):
    for seed in range(20):
        assert len(divide(Source({"train": Numbers(count)}), 0.49, None, None, seed)["train"][1]) > 0
        assert len(divide(Source({"train": Numbers(count)}), 0.49, 1, None, seed)["train"][1]) > 0


def test_stream_serves_the_next_readable_picture_and_counts():
    stream = ImageStream(Numbers(5, bad=[1, 2, 4]), np.arange(5), size=4, channels=1)
    with pytest.warns(UserWarning, match="n1 cannot be read"):
        batch = stream.__getitems__([0, 1, 3])
    assert batch["label"].tolist() == [0, 3, 3]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 3, 3]
    assert batch["index"].tolist() == [0, 1, 3]
    assert stream[4]["label"] == 0  # after the last comes the first; no second warning
    assert stream.num_substituted == 2
    assert stream.unreadable == {"n1": "it is bad", "n2": "it is bad", "n4": "it is bad"}


def test_stream_raises_where_asked_to_and_where_nothing_is_left():
    with pytest.raises(ValueError, match="n1 cannot be read: it is bad"):
        ImageStream(Numbers(3, bad=[1]), np.arange(3), 4, 1, on_error="raise")[1]
    hopeless = ImageStream(Numbers(2, bad=[0, 1]), np.arange(2), 4, 1)
    with pytest.warns(UserWarning, match="n0"), pytest.raises(ValueError, match="none of the 2 files"):
        hopeless[0]


def test_decoding_all_drops_bad_ones_and_keeps_labels_beside_their_pictures():
    images, unreadable = decode_all(Numbers(6, bad=[0, 3]), np.array([0, 2, 3, 5]), 4, 3, "skip", "train")
    assert images.images.shape == (2, 3, 4, 4)
    assert images.images.dtype == torch.uint8
    assert images.images[:, 0, 0, 0].tolist() == images.labels.tolist() == [2, 5]
    assert list(unreadable) == ["n0", "n3"]
    with pytest.raises(ValueError, match=r'n0 cannot be read.*on_error="skip"'):
        decode_all(Numbers(2, bad=[0]), np.arange(2), 4, 3, "raise", "train")


def test_batch_and_single_items_agree():
    images, _ = decode_all(Numbers(4), np.arange(4), 4, 1, "skip", "train")
    batch = images.__getitems__([3, 1])
    for place, i in enumerate([3, 1]):
        for name, value in images[i].items():
            assert torch.equal(batch[name][place], value)
