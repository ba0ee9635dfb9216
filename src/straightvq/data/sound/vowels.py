"""Vowels made by a source and a filter: something to hear without a download. Synthetic, and not speech."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from straightvq.data.sets import Records, Source
from straightvq.data.sound.decode import needed

NAMES = ["heed", "hid", "head", "had", "hod", "hawed", "hood", "who'd", "hud", "heard"]
# Peterson and Barney (1952), table II: pitch and the first three formants in Hz, by vowel, of men and of women.
_MEN = [
    (136, 270, 2290, 3010),
    (135, 390, 1990, 2550),
    (130, 530, 1840, 2480),
    (127, 660, 1720, 2410),
    (124, 730, 1090, 2440),
    (129, 570, 840, 2410),
    (137, 440, 1020, 2240),
    (141, 300, 870, 2240),
    (130, 640, 1190, 2390),
    (133, 490, 1350, 1690),
]
_WOMEN = [
    (235, 310, 2790, 3310),
    (232, 430, 2480, 3070),
    (223, 610, 2330, 2990),
    (210, 860, 2050, 2850),
    (212, 850, 1220, 2810),
    (216, 590, 920, 2710),
    (232, 470, 1160, 2680),
    (231, 370, 950, 2670),
    (221, 760, 1400, 2780),
    (218, 500, 1640, 1960),
]
_BANDWIDTHS = (60.0, 90.0, 150.0)  # Hz
_RATE = 8000
NUM_TRAIN, NUM_TEST = 400, 60


class Vowels(Records):
    """``count`` vowels of 0.25 to 0.6 s; each depends on (seed, split, number) only."""

    def __init__(self, split: str, count: int, seed: int) -> None:
        self.split, self.seed = split, seed
        self.labels = np.arange(count, dtype=np.int64) % len(NAMES)

    def key(self, i: int) -> str:
        return f"{self.split} vowel {i}"

    def decode(self, i: int, size: int, channels: int) -> NDArray[Any]:
        draws = np.random.default_rng([self.seed, int(self.split == "test"), i])
        speaker = (_MEN, _WOMEN)[int(draws.integers(2))]
        pitch, *formants = np.array(speaker[self.labels[i]]) * draws.normal(1, (0.1, 0.04, 0.04, 0.04)).clip(0.7, 1.3)
        clip = vowel(pitch, formants, draws.uniform(0.25, 0.6), glide=draws.uniform(-0.2, 0.1), draws=draws)
        clip = clip * draws.uniform(0.3, 0.9)
        if size != _RATE:
            clip = needed("soxr").resample(clip, _RATE, size)
        return np.asarray(clip, dtype=np.float32)


def vowel(
    pitch: float, formants: list[float], seconds: float, *, glide: float, draws: np.random.Generator
) -> NDArray[np.float64]:
    """Pulses with a little breath through one resonator for each formant, 8 kHz, Float64 (n,), with a peak of 1.

    Args:
        pitch: at the start, in Hz.
        formants: below 4,000 Hz; others are left out.
        seconds: length.
        glide: change of the pitch over the clip, relative.
        draws: of the breath.

    Source: the cascade of second-order resonators of Klatt, "Software for a cascade/parallel formant synthesizer"
    (1980), eq. 1, with a pulse train, smoothed twice, as the source.
    """
    from scipy.signal import lfilter

    n = round(seconds * _RATE)
    turns = np.cumsum(pitch * (1 + glide * np.linspace(0, 1, n)) / _RATE)
    pulses = np.diff(np.floor(turns), prepend=0.0)
    source = lfilter([1.0], np.polymul([1.0, -0.95], [1.0, -0.95]), pulses + 0.002 * draws.standard_normal(n))
    for centre, bandwidth in zip(formants, _BANDWIDTHS, strict=True):
        if centre < _RATE / 2:
            c = -np.exp(-2 * np.pi * bandwidth / _RATE)
            b = 2 * np.exp(-np.pi * bandwidth / _RATE) * np.cos(2 * np.pi * centre / _RATE)
            source = lfilter([1 - b - c], [1.0, -b, -c], source)
    source = np.diff(source, prepend=0.0)  # the lips
    ramp = np.minimum(1.0, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.02 * _RATE))
    shaped = source * ramp
    return shaped / np.abs(shaped).max()


def vowels(num_train: int | None, num_test: int | None, seed: int) -> Source:
    """Ten vowels of men and women, one fifth octave around their mean formants; by default 400, and 60 for testing.

    Example:
        >>> source = vowels(None, None, 0)
        >>> source.class_names[:2], len(source.splits["train"]), source.splits["test"].decode(0, 8000, 1).dtype
        (['heed', 'hid'], 400, dtype('float32'))
    """
    splits: dict[str, Records] = {
        "train": Vowels("train", num_train or NUM_TRAIN, seed),
        "test": Vowels("test", num_test or NUM_TEST, seed),
    }
    return Source(splits, list(NAMES), "Sound")
