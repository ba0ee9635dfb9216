"""`ResNet18`: its published size, and the variants."""

import pytest
import torch
from tests.unit.models.sizes import count_of
from torch import nn

from straightvq.models import ResNet18


def test_published_and_customary_numbers_of_parameters() -> None:
    assert count_of(ResNet18, num_classes=1000) == 11_689_512
    assert count_of(ResNet18, num_classes=10, small_images=True) == 11_173_962


@pytest.mark.parametrize("width", [16, 5])
def test_any_width_is_the_sum_of_its_layers(width: int) -> None:
    def conv(channels: int, out: int, kernel: int) -> int:
        return channels * out * kernel**2 + 2 * out  # no bias, but the normalization's scale and shift

    expected = conv(3, width, 3)
    channels = width
    for stage, out in enumerate([width, 2 * width, 4 * width, 8 * width]):
        expected += conv(channels, out, 3) + 3 * conv(out, out, 3)
        expected += conv(channels, out, 1) if stage else 0
        channels = out
    assert count_of(ResNet18, num_classes=10, small_images=True, width=width) == expected + 10 * channels + 10


@pytest.mark.parametrize(
    ("position", "large", "small"),
    [
        ("stem", (64, 56, 56), (64, 32, 32)),
        ("layer1", (64, 56, 56), (64, 32, 32)),
        ("layer2", (128, 28, 28), (128, 16, 16)),
        ("layer3", (256, 14, 14), (256, 8, 8)),
        ("layer4", (512, 7, 7), (512, 4, 4)),
    ],
)
def test_features_have_the_published_shapes(position: str, large: tuple[int, ...], small: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = ResNet18(None, num_classes=10, position=position).eval()
        assert model.encode(torch.empty(1, 3, 224, 224)).shape == (1, *large)
        model = ResNet18(None, num_classes=10, position=position, small_images=True).eval()
        assert model.encode(torch.empty(1, 3, 32, 32)).shape == (1, *small)
    assert ResNet18.dim_at(position) == large[0]


@pytest.mark.parametrize("small_images", [True, False])
@pytest.mark.parametrize("size", [(17, 23), (64, 32)])
def test_images_of_other_sizes(small_images: bool, size: tuple[int, int]) -> None:
    model = ResNet18(None, num_classes=3, width=2, small_images=small_images)
    assert model(torch.randn(2, 3, *size)).logits.shape == (2, 3)


def test_a_block_with_zero_weights_passes_its_input_through() -> None:
    model = ResNet18(None, num_classes=3, width=4, small_images=True).eval()
    block = model.stages.layer1[0]
    for module in block.body:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    x = torch.rand(1, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_weights_start_with_the_variance_of_their_fan_out() -> None:
    torch.manual_seed(0)
    model = ResNet18(None, num_classes=3, width=16, small_images=True)
    weight = model.stages.layer4[1].body[0].weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
