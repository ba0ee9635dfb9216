"""The codec for sound: shapes, padding, refusals, and that it can be trained."""

import copy
import math

import pytest
import torch

import straightvq as svq
from straightvq.models import AudioCodec
from straightvq.models.sound.codec import Snake

HOP = 12


def codec(quantizer=None, **options):
    torch.manual_seed(0)
    quantizer = quantizer or svq.presets.straight_residual(6, 8, num_quantizers=3, channel_dim=1)
    return AudioCodec(quantizer, **{"hidden": 3, "strides": (3, 4), "dilations": (1, 2), **options})


def trained(model):
    """After a step on noise, so that codes and weights are no start values."""
    optimizer = torch.optim.AdamW(svq.parameter_groups(model, 1e-2, 0.0))
    for _ in range(3):
        out = model(torch.randn(4, 1, 20 * HOP))
        (out.reconstruction.square().mean() + out.quantizer.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_snake_and_its_gradients_by_hand():
    layer = Snake(2)
    with torch.no_grad():
        layer.frequency.copy_(torch.tensor([[1.0], [2.0]]))
    x = torch.tensor([[[0.0, 1.0], [0.5, -1.0]]], requires_grad=True)
    y = layer(x)
    expected = [[0.0, 1 + math.sin(1) ** 2], [0.5 + math.sin(1) ** 2 / 2, -1 + math.sin(2) ** 2 / 2]]
    torch.testing.assert_close(y[0], torch.tensor(expected))
    y.sum().backward()
    # d/dx = 1 + sin(2 a x)
    torch.testing.assert_close(x.grad[0], torch.tensor([[1.0, 1 + math.sin(2)], [1 + math.sin(2), 1 - math.sin(4)]]))


@pytest.mark.parametrize("activation", ["snake", "elu"])
@pytest.mark.parametrize("strides", [(2,), (3, 4), (5, 2, 3)])
@pytest.mark.parametrize("samples", [1, 59, 60, 61])
def test_any_length_comes_back(activation, strides, samples):
    model = codec(strides=strides, activation=activation)
    out = model(torch.randn(2, 1, samples))
    frames = -(-samples // math.prod(strides))
    assert out.reconstruction.shape == (2, 1, samples)
    assert out.z.shape == (2, 6, frames)
    assert out.quantizer.indices.shape == (2, frames, 3)
    assert out.reconstruction.abs().max() <= 1


@pytest.mark.parametrize(
    "quantizer",
    [
        svq.presets.straight(6, 8, channel_dim=1),
        svq.presets.soundstream(6, 8, num_quantizers=2, channel_dim=1),
        svq.presets.dac(6, 8, num_quantizers=2, codebook_dim=3, channel_dim=1),
        svq.presets.fsq(6, [5, 3], channel_dim=1)
        if hasattr(svq.presets, "fsq")
        else svq.presets.ema(6, 8, channel_dim=1),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_padding_and_company_change_nothing(quantizer):
    model = trained(codec(copy.deepcopy(quantizer)))
    lengths = [5 * HOP, 1, 2 * HOP + 1, 4 * HOP - 1]
    clips = [torch.randn(1, 1, n) for n in lengths]
    batch = torch.full((4, 1, 6 * HOP + 5), 7.0)  # what stands behind the end is not looked at
    for row, clip in zip(batch, clips, strict=True):
        row[:, : clip.shape[-1]] = clip[0]
    out = model(batch, torch.tensor(lengths))
    for i, clip in enumerate(clips):
        alone, frames, n = model(clip), -(-lengths[i] // HOP), lengths[i]
        assert (out.quantizer.indices[i, :frames] == alone.quantizer.indices[0]).all()
        assert (out.quantizer.indices[i, frames:] == -1).all()
        torch.testing.assert_close(out.z[i, :, :frames], alone.z[0], atol=1e-5, rtol=1e-4)
        assert (out.z[i, :, frames:] == 0).all()
        torch.testing.assert_close(out.reconstruction[i, :, :n], alone.reconstruction[0], atol=1e-5, rtol=1e-4)
        assert (out.reconstruction[i, :, n:] == 0).all()
    frames = torch.tensor([-(-n // HOP) for n in lengths])
    losses = torch.stack([model(clip).quantizer.loss for clip in clips])
    torch.testing.assert_close(out.quantizer.loss, (losses * frames).sum() / frames.sum())


def test_padding_gets_no_gradient():
    model = trained(codec())
    x = torch.randn(2, 1, 3 * HOP, requires_grad=True)
    length = torch.tensor([3 * HOP, HOP + 2])
    out = model(x, length)
    (out.reconstruction.square().sum() + out.quantizer.loss).backward()
    assert (x.grad[1, :, HOP + 2 :] == 0).all()
    assert (x.grad[1, :, : HOP + 2] != 0).any()


def test_indices_and_their_first_levels_give_clips():
    model = trained(codec())
    x, length = torch.randn(2, 1, 4 * HOP), torch.tensor([4 * HOP, 2 * HOP])
    indices = model.tokenize(x, length)
    out = model(x, length)
    assert (indices == out.quantizer.indices).all()
    torch.testing.assert_close(model.detokenize(indices), out.reconstruction)
    first = model.detokenize(indices[..., :1])
    assert first.shape == x.shape
    assert not torch.equal(first, out.reconstruction)


def test_a_codec_in_half_precision_gives_its_levels_too():
    model = trained(codec()).bfloat16()
    x, length = torch.randn(2, 1, 4 * HOP).bfloat16(), torch.tensor([4 * HOP, HOP])
    out = model(x, length)
    assert out.reconstruction.dtype == torch.bfloat16
    torch.testing.assert_close(model.detokenize(out.quantizer.indices), out.reconstruction, rtol=0.05, atol=0.05)


def test_training_teaches_it_to_repeat_a_tone():
    torch.manual_seed(0)
    model = codec(hidden=8)
    optimizer = torch.optim.AdamW(svq.parameter_groups(model, 5e-3, 0.0))
    x = 0.5 * torch.sin(0.3 * torch.arange(20 * HOP) + torch.rand(8, 1) * 6)[:, None]
    errors = []
    for _ in range(60):
        out = model(x)
        error = (out.reconstruction - x).abs().mean()
        errors.append(error.item())
        (10 * error + out.quantizer.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert errors[-1] < errors[0] / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "`hidden` must be an integer >= 1"),
        ({"strides": ()}, "`strides` must be at least one number"),
        ({"strides": (2, 1)}, "`strides` must be an integer >= 2"),
        ({"dilations": (0,)}, "`dilations` must be an integer >= 1"),
        ({"activation": "relu"}, "`activation` must be"),
        ({"quantizer": svq.presets.straight(6, 8)}, "`quantizer` must have channel_dim=1"),
        ({"quantizer": 3}, "`quantizer`"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match="`AudioCodec`") as caught:
        codec(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("x", "length", "message"),
    [
        (torch.zeros(2, 100), None, "`x` must have the shape"),
        (torch.zeros(2, 2, 100), None, "`x` must have the shape"),
        (torch.zeros(2, 1, 0), None, "`x` must have the shape"),
        (torch.zeros(2, 1, 100), torch.tensor([1]), "`length` must hold 2 integers"),
        (torch.zeros(2, 1, 100), torch.tensor([1.0, 2.0]), "`length` must hold 2 integers"),
    ],
)
def test_bad_clips_are_refused(x, length, message):
    with pytest.raises(ValueError, match=message):
        codec()(x, length)
