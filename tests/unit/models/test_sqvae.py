"""`SQVAENet`: the published layers, and what batch normalization does."""

from typing import Any

import pytest
import torch
from tests.unit.models.sizes import conv, count
from torch import nn

import straightvq as svq
from straightvq.models import SQVAENet


def make_model(dim: int = 8, **kwargs: Any) -> SQVAENet:
    torch.manual_seed(0)
    return SQVAENet(svq.presets.vq_vae(dim, 16, channel_dim=1), **kwargs)


BLOCK = conv(64, 64, 3) + conv(64, 64, 1) + 4 * 64  # a normalization has two parameters per channel
DOWN = conv(3, 32, 4) + 64 + conv(32, 64, 4) + 128 + conv(64, 64, 3)
UP = conv(64, 64, 3) + 128 + conv(64, 32, 4) + 64 + conv(32, 3, 4)


@pytest.mark.parametrize(
    ("variant", "expected"), [("net_32", DOWN + 128 + (2 + 2) * BLOCK + UP), ("net_64", DOWN + (6 + 5) * BLOCK + UP)]
)
def test_64_channels_are_the_sum_of_the_published_layers(variant: str, expected: int) -> None:
    assert expected == {"net_32": 308_483, "net_64": 597_763}[variant]
    model = make_model(64, variant=variant)
    assert count(model.encoder, model.decoder) == expected


def test_published_resolutions() -> None:
    with torch.no_grad():
        assert make_model(64).encode(torch.rand(1, 3, 32, 32)).shape == (1, 64, 8, 8)
        assert make_model(64, variant="net_64").encode(torch.rand(1, 3, 128, 128)).shape == (1, 64, 32, 32)


def test_embeddings_are_free_of_sign_and_images_between_0_and_1() -> None:
    out = make_model(variant="net_64", blocks=1)(torch.rand(4, 3, 16, 16))
    assert out.z.min() < 0 < out.z.max()
    assert 0 < out.reconstruction.min() < out.reconstruction.max() < 1


def test_training_depends_on_the_batch_and_evaluation_on_its_averages() -> None:
    model = make_model()
    x = torch.rand(4, 3, 16, 16)
    assert not torch.allclose(model.encode(x)[:1], model.encode(x[:1]))
    averages = [m.running_mean.clone() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.encode(x)
    moved = [m.running_mean for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(not torch.equal(a, b) for a, b in zip(averages, moved, strict=True))
    model.eval()
    torch.testing.assert_close(model.encode(x)[:1], model.encode(x[:1]))
