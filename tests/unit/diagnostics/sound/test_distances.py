"""Distances between clips against loops in NumPy."""

import math

import numpy as np
import pytest
import torch

from straightvq.diagnostics.sound import MelDistance, mel_filters, waveform_distance

SIZES = {"windows": (16, 32), "num_mels": (3, 4)}


def naive_filters(rate, window, count):
    """Slaney's triangles, one at a time."""

    def hertz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = rate / 2
    most = top * 3 / 200 if top < 1000 else 15 + 27 * math.log(top / 1000, 6.4)
    edges = [hertz(most * i / (count + 1)) for i in range(count + 2)]
    table = np.zeros((count, window // 2 + 1))
    for row in range(count):
        low, middle, high = edges[row : row + 3]
        for k in range(window // 2 + 1):
            f = k * rate / window
            if low < f <= middle:
                table[row, k] = (f - low) / (middle - low)
            elif middle < f < high:
                table[row, k] = (high - f) / (high - middle)
        table[row] *= 2 / (high - low)
    return table


def naive_distance(x, y, rate, windows, num_mels):
    """Of two whole clips (n,), frame by frame."""
    found = []
    for window, count in zip(windows, num_mels, strict=True):
        hop, filters = window // 4, naive_filters(rate, window, count)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        frames = []
        for start in range(0, len(x), hop):
            bands = []
            for clip in (x, y):
                around = np.concatenate([np.zeros(window // 2), clip, np.zeros(window)])
                bands.append(filters @ np.abs(np.fft.rfft(around[start : start + window] * hann)))
            x_bands, y_bands = (np.log10(np.maximum(band, 1e-5)) for band in bands)
            frames.append(np.abs(x_bands - y_bands).mean())
        found.append(np.mean(frames))
    return np.mean(found)


@pytest.mark.parametrize(("rate", "window", "count"), [(8000, 64, 8), (8000, 1024, 64), (16000, 256, 20), (800, 32, 3)])
def test_filters_are_the_naive_ones(rate, window, count):
    np.testing.assert_allclose(mel_filters(rate, window, count), naive_filters(rate, window, count), atol=1e-12)


def test_filters_are_those_of_librosa():
    """`librosa.filters.mel(sr=8000, n_fft=32, n_mels=3)`, librosa 0.11, rounded to seven places."""
    expected = np.zeros((3, 17))
    expected[0, 1:5] = 0.0007144, 0.0014288, 0.0012233, 0.0005349
    expected[1, 3:9] = 0.000337, 0.000851, 0.00118, 0.0008647, 0.0005494, 0.0002341
    expected[2, 5:11] = 4.01e-05, 0.0002198, 0.0003996, 0.0005794, 0.0006875, 0.0005893
    expected[2, 11:16] = 0.0004911, 0.0003929, 0.0002947, 0.0001964, 9.82e-05
    np.testing.assert_allclose(mel_filters(8000, 32, 3), expected, atol=6e-8)


def test_filters_without_a_bin_are_refused():
    with pytest.raises(ValueError, match=r"`num_mels` must be so few .* window of 32 samples at 8000 Hz. Got 40"):
        mel_filters(8000, 32, 40)


@pytest.mark.parametrize("lengths", [(50,), (50, 7, 1, 33), (1, 1)])
def test_distances_of_a_padded_batch_are_those_of_the_clips(lengths):
    torch.manual_seed(0)
    x, y = torch.randn(2, len(lengths), 1, max(lengths), dtype=torch.float64)
    distance = MelDistance(8000, **SIZES)
    distance.double()
    for window, count in zip(*SIZES.values(), strict=True):
        getattr(distance, f"filters_{window}").copy_(torch.from_numpy(mel_filters(8000, window, count)))
        getattr(distance, f"window_{window}").copy_(torch.hann_window(window, dtype=torch.float64))
    found = distance(x, y, torch.tensor(lengths))
    waveform = waveform_distance(x, y, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        one, other = x[i, 0, :n].numpy(), y[i, 0, :n].numpy()
        assert found[i].item() == pytest.approx(naive_distance(one, other, 8000, **SIZES), rel=1e-9)
        assert waveform[i].item() == pytest.approx(np.abs(one - other).mean(), rel=1e-12)


def test_gradients_are_those_of_finite_differences_and_none_reach_the_padding():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 24, dtype=torch.float64, requires_grad=True)
    y, length = torch.randn(2, 1, 24, dtype=torch.float64), torch.tensor([24, 10])
    distance = MelDistance(8000, **SIZES).double()
    for measure in (distance, waveform_distance):
        assert torch.autograd.gradcheck(lambda x, measure=measure: measure(x, y, length), x)
        (grad,) = torch.autograd.grad(measure(x, y, length).sum(), x)
        assert (grad[1, :, 10:] == 0).all()
        assert (grad[1, :, :10] != 0).any()


def test_distance_of_a_clip_from_itself_and_from_silence_has_finite_gradients():
    x = torch.randn(1, 1, 200, requires_grad=True)
    silence = torch.zeros(1, 1, 200)
    distance = MelDistance(8000, **SIZES)
    length = torch.tensor([200])
    assert distance(x, x, length) == 0
    for one, other in ((x, silence), (silence.requires_grad_(), x.detach())):
        (grad,) = torch.autograd.grad(distance(one, other, length).sum(), one)
        assert grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    x, y, length = torch.randn(1, 1, 200), torch.randn(1, 1, 200), torch.tensor([200])
    distance = MelDistance(8000, **SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(x, y, length).dtype == torch.float32
    whole = distance(x, y, length)
    torch.testing.assert_close(distance(x.half(), y.half(), length), whole, rtol=1e-2, atol=1e-3)
    assert torch.equal(distance.half()(x, y, length), whole)  # its own tables stay as they are


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, "`sample_rate`"),
        ({"windows": ()}, "equally many"),
        ({"num_mels": (3,)}, "equally many"),
        ({"windows": (16, 30)}, "multiples of 4"),
        ({"windows": (16, 0)}, "`windows`"),
        ({"num_mels": (3, 0)}, "`num_mels`"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match="`MelDistance`") as caught:
        MelDistance(**{"sample_rate": 8000, **SIZES, **options})
    assert message in str(caught.value)
