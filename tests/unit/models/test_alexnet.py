"""`AlexNet`: its published size, and the variants."""

import pytest
import torch
from tests.unit.models.sizes import count_of

from straightvq.models import AlexNet


def test_full_size_has_the_published_number_of_parameters() -> None:
    assert count_of(AlexNet, num_classes=1000) == 61_100_840


def test_quarter_width_on_small_images_is_the_sum_of_its_layers() -> None:
    shapes = [(16, 3, 3, 3), (48, 16, 5, 5), (96, 48, 3, 3), (64, 96, 3, 3), (64, 64, 3, 3)]
    shapes += [(1024, 64 * 4 * 4), (1024, 1024), (10, 1024)]
    weights = sum(torch.Size(shape).numel() for shape in shapes)
    biases = sum(shape[0] for shape in shapes)
    assert count_of(AlexNet, num_classes=10, width=16, small_images=True) == weights + biases


@pytest.mark.parametrize(
    ("position", "shape"),
    [
        ("conv1", (64, 27, 27)),
        ("conv2", (192, 13, 13)),
        ("conv3", (384, 13, 13)),
        ("conv4", (256, 13, 13)),
        ("conv5", (256, 6, 6)),
    ],
)
def test_features_at_224_pixels_are_the_published_ones(position: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = AlexNet(None, num_classes=10, position=position)
        assert model.encode(torch.empty(1, 3, 224, 224)).shape == (1, *shape)
    assert AlexNet.dim_at(position) == shape[0]


@pytest.mark.parametrize(
    ("small", "size"), [(True, (8, 8)), (True, (16, 40)), (True, (33, 32)), (False, (63, 63)), (False, (64, 90))]
)
def test_images_of_other_sizes(small: bool, size: tuple[int, int]) -> None:
    model = AlexNet(None, num_classes=3, width=2, small_images=small)
    assert model(torch.randn(2, 3, *size)).logits.shape == (2, 3)
    with pytest.raises(ValueError, match=f"at least {8 if small else 63}"):
        model(torch.randn(2, 3, 7 if small else 62, 64))
