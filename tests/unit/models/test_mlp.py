"""`MLPAutoencoder`: its layers, the quantizer alone, prefixes, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn

import straightvq as svq
from straightvq.models import MLPAutoencoder


def make_model(dim: int = 4, **kwargs: Any) -> MLPAutoencoder:
    torch.manual_seed(0)
    return MLPAutoencoder(svq.presets.straight_residual(dim, 8, num_quantizers=3), **kwargs)


def test_layers_are_those_of_the_list_and_their_reverse() -> None:
    model = make_model(width=10, hidden=[7, 5])
    for part, sizes in ((model.encoder, [10, 7, 5, 4]), (model.decoder, [4, 5, 7, 10])):
        linear = [layer for layer in part if isinstance(layer, nn.Linear)]
        assert [layer.in_features for layer in linear] + [linear[-1].out_features] == sizes
        assert [type(layer) for layer in part] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("hidden", [None, []])
def test_without_layers_it_is_the_quantizer(hidden: Any) -> None:
    model = make_model(hidden=hidden)
    x = torch.randn(50, 4)
    model(x)
    model.eval()
    out = model(x)
    assert torch.equal(out.z, x)
    assert torch.equal(out.reconstruction, model.quantizer(x).quantized)
    assert list(model.encoder_parameters()) == []


def test_skips_start_as_the_identity_and_train() -> None:
    model = make_model(hidden=[6], skip=True)
    x = torch.randn(50, 4)
    out = model(x)
    assert torch.equal(out.z, x)
    assert torch.equal(out.reconstruction, out.quantizer.quantized)
    (out.reconstruction - x).square().sum().backward()
    last = model.decoder.body[-1]
    assert isinstance(last, nn.Linear)
    assert last.weight.grad is not None
    assert last.weight.grad.abs().sum() > 0


def test_indices_and_their_prefixes_decode() -> None:
    model = make_model(width=10, hidden=[7])
    x = torch.randn(20, 10)
    model(x)
    model.eval()
    indices = model.tokenize(x)
    assert torch.equal(model.detokenize(indices), model(x).reconstruction)
    first = model.decode(model.quantizer.levels[0].decode(indices[:, 0]))
    torch.testing.assert_close(model.detokenize(indices[:, :1]), first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_model(width=5), "`width` must be the quantizer's dim 4 with no `hidden` layers. Got 5"),
        (lambda: make_model(width=5, hidden=[6], skip=True), "dim 4 with `skip`. Got 5"),
        (lambda: make_model(hidden=[0]), "`hidden` must be an integer >= 1"),
        (lambda: make_model(hidden="ab"), "`hidden` must be a list of widths"),
        (lambda: make_model(width=0), "`width` must be an integer >= 1"),
        (lambda: make_model(hidden=[3], skip=1), "`skip` must be True or False"),
        (lambda: MLPAutoencoder(svq.presets.ema(4, 8, channel_dim=1)), "must have channel_dim=-1"),
        (lambda: MLPAutoencoder(nn.Linear(2, 2)), "must be an instance of Quantizer"),
        (lambda: make_model()(torch.randn(3, 5)), "(*batch, 4). Got (3, 5); without a network the quantizer's `dim`"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        call()
    assert message in str(refused.value)
