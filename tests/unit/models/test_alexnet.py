"""`AlexNet`: its published size, and the variants."""

import pytest
import torch

from straightvq.models import AlexNet


def count(**kwargs) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AlexNet(None, **kwargs).parameters())


def test_full_size_has_the_published_number_of_parameters() -> None:
    assert count(num_classes=1000) == 61_100_840


def test_quarter_width_on_small_images_is_the_sum_of_its_layers() -> None:
    shapes = [(16, 3, 3, 3), (48, 16, 5, 5), (96, 48, 3, 3), (64, 96, 3, 3), (64, 64, 3, 3)]
    shapes += [(1024, 64 * 4 * 4), (1024, 1024), (10, 1024)]
    weights = sum(torch.Size(shape).numel() for shape in shapes)
    biases = sum(shape[0] for shape in shapes)
    assert count(num_classes=10, width=16, small_images=True) == weights + biases


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


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (33, 32)])
def test_small_images_of_other_sizes(size: tuple[int, int]) -> None:
    model = AlexNet(None, num_classes=3, width=2, small_images=True)
    assert model(torch.randn(2, 3, *size)).logits.shape == (2, 3)
    with pytest.raises(ValueError, match="at least 8"):
        model(torch.randn(2, 3, 7, 8))


@pytest.mark.parametrize("size", [(63, 63), (64, 90)])
def test_large_images_of_other_sizes(size: tuple[int, int]) -> None:
    assert AlexNet(None, num_classes=3, width=2)(torch.randn(1, 3, *size)).logits.shape == (1, 3)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = AlexNet(None, num_classes=3, width=2, small_images=True)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)
