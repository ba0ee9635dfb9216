"""The task of a codec for sound: what padding does (nothing), and what is measured."""

import math
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

import straightvq as svq
from straightvq.models import AudioCodec
from straightvq.training import AudioReconstruction

SIZES = {"windows": (16, 32), "num_mels": (3, 4)}
LENGTHS = [60, 25, 1, 48]


def task(quantizer=None, **options):
    torch.manual_seed(0)
    quantizer = quantizer or svq.presets.straight_residual(6, 8, num_quantizers=3, channel_dim=1)
    codec = AudioCodec(quantizer, hidden=3, strides=(3, 4), dilations=(1,))
    made = AudioReconstruction(codec, **{**SIZES, **options})
    codec(torch.randn(8, 1, 120))  # the codebooks start
    made.trainer = SimpleNamespace(testing=False)
    return made.eval()


def batch(lengths, padding=0):
    """Clips of these lengths, the same whatever the padding; what stands behind them is not zero."""
    clips = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in lengths]
    audio = torch.full((len(lengths), 1, max(lengths) + padding), 9.0)
    for row, clip in zip(audio, clips, strict=True):
        row[0, : len(clip)] = 0.3 * clip
    return {"audio": audio, "length": torch.tensor(lengths), "index": torch.arange(len(lengths))}


def test_a_padded_batch_has_the_loss_of_its_clips():
    made = task()
    with torch.no_grad():
        errors = torch.stack([made.compute(batch([n]))[0] for n in LENGTHS])
        whole, out = made.compute(batch(LENGTHS, padding=31))
    weights = torch.tensor(LENGTHS) / sum(LENGTHS)
    torch.testing.assert_close(whole, (errors * weights).sum(), rtol=1e-5, atol=1e-6)
    assert out.loss.isfinite()


def test_the_loss_by_hand():
    made = task(waveform_weight=2.0, mel_weight=0.0)
    given = {"audio": torch.tensor([[[1.0, 1.0, 9.0]]]), "length": torch.tensor([2])}
    assert made.error(torch.tensor([[[0.5, 0.0, 0.0]]]), given).item() == pytest.approx(2 * 0.75)


@pytest.mark.parametrize("clips_per_batch", [1, 2, 4])
def test_measures_do_not_depend_on_the_batches(clips_per_batch):
    made = task(curve_clips=100)
    made._start()
    for start in range(0, len(LENGTHS), clips_per_batch):
        made.measure(batch(LENGTHS[start : start + clips_per_batch], padding=17))
    values = made.metrics.compute()
    ratios = []
    for n in LENGTHS:  # clip by clip
        one = batch([n])
        out = made(one["audio"], one["length"])
        ratios.append(scale_invariant_signal_distortion_ratio(out.reconstruction[0, 0], one["audio"][0, 0]).detach())
    torch.testing.assert_close(values["si_sdr"], torch.stack(ratios).mean(), rtol=1e-3, atol=1e-3)
    frames = sum(-(-n // 12) for n in LENGTHS)
    assert made.metrics.usage.counts.sum(1).tolist() == [frames] * 3
    reference = task(curve_clips=100)
    reference._start()
    for n in LENGTHS:
        reference.measure(batch([n]))
    for name, value in reference.metrics.compute().items():
        torch.testing.assert_close(values[name], value, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(made.curve, reference.curve, strict=True):
        for name, value in theirs.own.compute().items():
            torch.testing.assert_close(mine.own.compute()[name], value, rtol=1e-4, atol=1e-4)
    # All levels are the codec itself.
    for name in ("mel", "l1", "si_sdr"):
        torch.testing.assert_close(made.curve[-1].own.compute()[name], values[name], rtol=1e-4, atol=1e-4)


def test_silent_clips_have_no_ratio():
    made = task()
    made._start()
    given = batch(LENGTHS)
    given["audio"][0, 0, : LENGTHS[0]] = 0
    made.measure(given)
    rest = {name: value[1:] for name, value in given.items()}
    other = task()
    other._start()
    other.measure(rest)
    torch.testing.assert_close(
        made.metrics.own.compute()["si_sdr"], other.metrics.own.compute()["si_sdr"], rtol=1e-4, atol=1e-4
    )


def test_the_curve_looks_at_as_many_clips_as_it_is_told():
    made = task(curve_clips=3)
    made._start()
    for _ in range(3):
        made.measure(batch(LENGTHS[:2]))
    assert made._clips == 4


def test_bits_per_second():
    assert task().bits_per_second() == [pytest.approx(3 * 8000 / 12 * level) for level in (1, 2, 3)]
    assert task(svq.presets.straight(6, 8, channel_dim=1)).bits_per_second() == [pytest.approx(2000)]
    sizes = [svq.presets.ema(6, size) for size in (8, 32)]
    made = task(svq.ResidualQuantizer(6, sizes, channel_dim=1))
    assert made.bits_per_second() == [pytest.approx(math.log2(size) * 8000 / 12) for size in (8, 256)]


def test_the_gradient_gap_of_a_padded_batch_is_that_of_the_head():
    from straightvq.diagnostics.task import measure_gradient_gap

    made = task()
    gap = measure_gradient_gap(made, batch(LENGTHS, padding=5))
    assert gap is not None
    assert all(math.isfinite(float(value)) for value in gap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, "`sample_rate`"),
        ({"waveform_weight": -1.0}, "`waveform_weight`"),
        ({"mel_weight": -1.0}, "`mel_weight`"),
        ({"curve_clips": -1}, "`curve_clips`"),
        ({"num_pictures": -1}, "`num_pictures`"),
        ({"windows": (16,)}, "`MelDistance`: `windows` and `num_mels`"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        task(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "package"), [("stoi", "pystoi"), ("pesq", "pesq")])
def test_measures_of_hearing(name, package):
    pytest.importorskip(package)
    from straightvq.training.audio import _perceived

    time = torch.arange(12000) / 8000
    speech = torch.sin(2 * math.pi * 150 * time) * (1 + torch.sin(2 * math.pi * 4 * time)) / 4
    speech = speech + 0.05 * torch.randn(12000, generator=torch.Generator().manual_seed(0))
    best, worse = (_perceived(name, clip, speech, 8000) for clip in (speech, speech + 0.3 * torch.randn(12000)))
    assert best > worse
    assert _perceived(name, speech[:500], speech[:500], 8000) is None
    assert _perceived(name, torch.zeros(500), torch.zeros(500), 8000) is None
