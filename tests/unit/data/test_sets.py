import numpy as np
import pytest
import torch

from straightvq.data.sets import ImageStream, Joined, Selection

from .conftest import Numbers


def test_stream_serves_the_next_readable_picture_and_counts():
    stream = ImageStream(Numbers(5, bad=[1, 2, 4]), size=4, channels=1)
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
        ImageStream(Numbers(3, bad=[1]), 4, 1, on_error="raise")[1]
    hopeless = ImageStream(Numbers(2, bad=[0, 1]), 4, 1)
    with pytest.warns(UserWarning, match="n0"), pytest.raises(ValueError, match="none of the 2 files"):
        hopeless[0]


def test_decoding_all_drops_bad_ones_and_keeps_labels_beside_their_pictures():
    chosen = Selection(Numbers(6, bad=[0, 3]), np.array([0, 2, 3, 5]))
    stream = ImageStream(chosen, 4, 3)
    batch = stream.decode_all("train").tensors
    assert batch["image"].shape == (2, 3, 4, 4)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"][:, 0, 0, 0].tolist() == batch["label"].tolist() == [2, 5]
    assert list(stream.unreadable) == ["n0", "n3"]
    with pytest.raises(ValueError, match=r'n0 cannot be read.*on_error="skip"'):
        ImageStream(Numbers(2, bad=[0]), 4, 3, "raise").decode_all("train")


def test_batch_and_single_items_agree():
    images = ImageStream(Numbers(4), 4, 1).decode_all("train")
    batch = images.__getitems__([3, 1])
    for place, i in enumerate([3, 1]):
        for name, value in images[i].items():
            assert torch.equal(batch[name][place], value)


def test_joined_records_follow_one_another():
    joined = Joined([Numbers(2, prefix="a"), Numbers(0, prefix="b"), Numbers(3, bad=[1], prefix="c")])
    assert len(joined) == 5
    assert [joined.key(i) for i in range(5)] == ["a0", "a1", "c0", "c1", "c2"]
    assert joined.labels.tolist() == [0, 1, 0, 1, 2]
    assert joined.decode(4, 4, 1).max() == 2
    with pytest.raises(ValueError, match="it is bad"):
        joined.decode(3, 4, 1)
