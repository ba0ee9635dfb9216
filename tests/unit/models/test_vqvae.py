"""`VQVAENet`: the published layers and the range of its pixels."""

from typing import Any

import torch
from tests.unit.models.sizes import conv, count
from torch import nn

import straightvq as svq
from straightvq.models import VQVAENet


def make_model(dim: int = 8, **kwargs: Any) -> VQVAENet:
    torch.manual_seed(0)
    return VQVAENet(svq.presets.vq_vae(dim, 16, channel_dim=1), **kwargs)


def test_default_is_the_sum_of_the_published_layers() -> None:
    block = conv(128, 32, 3) + conv(32, 128, 1)
    encoder = conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 128, 3) + 2 * block + conv(128, 64, 1)
    decoder = conv(64, 128, 3) + 2 * block + conv(128, 64, 4) + conv(64, 3, 4)
    model = make_model(64)
    assert (count(model.encoder), count(model.decoder)) == (encoder, decoder)
    assert encoder + decoder == 662_723


def test_pixels_are_centred_inside() -> None:
    model = make_model(hidden=8, residual=4).eval()
    seen: list[torch.Tensor] = []
    model.encoder[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.encode(torch.tensor([0.0, 1.0]).repeat(1, 3, 4, 2))
    assert seen[0].unique().tolist() == [-0.5, 0.5]
    for p in model.decoder.parameters():
        nn.init.zeros_(p)
    assert torch.equal(model.decode(torch.randn(1, 8, 2, 2)), torch.full((1, 3, 8, 8), 0.5))
