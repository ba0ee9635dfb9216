"""Distances between clips, clip by clip, in which padding takes no part."""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.nn.part import check_float, check_int, keeping_float32

FLOOR = 1e-5  # of magnitudes, before the logarithm


def valid_samples(length: Tensor, samples: int) -> Tensor:
    """Which of ``samples`` places are inside clips of these lengths: Int (B,) -> Bool (B, samples).

    Example:
        >>> valid_samples(torch.tensor([1, 2]), 2).tolist()
        [[True, False], [True, True]]
    """
    return torch.arange(samples, device=length.device) < length[:, None]


def waveform_distance(x: Tensor, y: Tensor, length: Tensor) -> Tensor:
    """Mean |x - y| over the samples of each clip: Float (B, 1, T) twice, Int (B,) lengths in [1, T] -> Float (B,).

    Example:
        >>> x, y = torch.tensor([[[1.0, 2.0, 9.0]]]), torch.zeros(1, 1, 3)
        >>> waveform_distance(x, y, torch.tensor([2]))
        tensor([1.5000])
    """
    inside = valid_samples(length, x.shape[-1])
    return torch.where(inside[:, None], (x - y).abs(), 0).sum((1, 2)) / length


def mel_filters(sample_rate: float, window: int, num_mels: int) -> NDArray[np.float64]:
    """Triangles on Slaney's mel scale over the bins of a Fourier transform, each of area 2 in Hz.

    The centres are equally spaced between 0 and half the sample rate in mel, which is linear in the frequency up to
    1 kHz (15 mel) and logarithmic above, 27 mel for a factor of 6.4.

    Args:
        sample_rate: in Hz.
        window: length of the transform in samples.
        num_mels: number of triangles.

    Returns:
        Float64 (num_mels, window // 2 + 1).

    Raises:
        ValueError: if a triangle is so narrow that it has no bin.

    Source: Slaney, Auditory Toolbox (1998); the values are those of `librosa.filters.mel`.

    Example:
        >>> mel_filters(8000, 8, 1).round(6)
        array([[0.      , 0.000419, 0.000356, 0.000178, 0.      ]])
    """
    edges = _hertz(np.linspace(0.0, _mel(sample_rate / 2), num_mels + 2))
    bins = np.arange(window // 2 + 1) * sample_rate / window
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clip(min=0)
    if not triangles.any(1).all():
        raise InvalidValueError(
            f"`mel_filters`: `num_mels` must be so few that each of them has a bin of a window of {window} samples at "
            f"{sample_rate:g} Hz. Got {num_mels}."
        )
    return triangles * 2 / (upper - lower)


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


class MelDistance(nn.Module):
    """Mean |log10 m(x) - log10 m(y)| over the frames and mel bands of each clip, and over several resolutions.

    m is the magnitude of a short-time Fourier transform (Hann window, a hop of a quarter of it, frames centred on
    multiples of the hop inside the clip, zeros around the clip) in mel bands, at least 1e-5. A value of 0.1 is an error
    of 2 dB. At least float32, also under autocast.

    Args:
        sample_rate: of the clips, in Hz.
        windows: length of each transform in samples, multiples of 4.
        num_mels: number of bands of each.

    Shape:
        x, y: Float (B, 1, T); length: Int (B,), samples of each clip, in [1, T]. Returns: Float (B,).

    Raises:
        ValueError: for numbers of different length, or out of range.

    Source: the multi-scale mel loss of DAC (arXiv 2306.06546, section 3.4), with windows for lower sample rates, a mean
    over resolutions instead of a sum, and zeros instead of a reflection around the clip.

    Example:
        >>> x = torch.randn(1, 1, 4000)
        >>> MelDistance(8000)(x, x / 10, torch.tensor([4000])).round(decimals=2)
        tensor([1.])
    """

    def __init__(
        self,
        sample_rate: float,
        windows: Sequence[int] = (64, 128, 256, 512, 1024),
        num_mels: Sequence[int] = (8, 16, 32, 64, 64),
    ) -> None:
        super().__init__()
        check_float(self, "sample_rate", sample_rate, minimum=0, open_minimum=True)
        if not windows or len(windows) != len(num_mels):
            raise InvalidValueError(
                f"`MelDistance`: `windows` and `num_mels` must be equally many, at least one. "
                f"Got {len(windows)} and {len(num_mels)}."
            )
        self.windows = [check_int(self, "windows", window, 4) for window in windows]
        for window, count in zip(self.windows, num_mels, strict=True):
            if window % 4:
                raise InvalidValueError(f"`MelDistance`: `windows` must be multiples of 4. Got {window}.")
            filters = mel_filters(sample_rate, window, check_int(self, "num_mels", count, 1))
            self.register_buffer(f"filters_{window}", torch.from_numpy(filters).float(), persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_float32(fn), recurse)

    def forward(self, x: Tensor, y: Tensor, length: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            inside = valid_samples(length, x.shape[-1])
            both = torch.stack([torch.where(inside, clips[:, 0], 0) for clips in (x, y)])
            both = both.to(torch.promote_types(both.dtype, torch.float32))
            return torch.stack([self._at(window, both, length) for window in self.windows]).mean(0)

    def _at(self, window: int, both: Tensor, length: Tensor) -> Tensor:
        """The distance of one resolution: clips (2, B, T) -> (B,)."""
        hop = window // 4
        shape = self.get_buffer(f"window_{window}").to(both.dtype)
        waves = torch.stft(
            both.flatten(0, 1), window, hop, window=shape, center=True, pad_mode="constant", return_complex=True
        )
        bands = self.get_buffer(f"filters_{window}").to(both.dtype) @ waves.abs()
        x, y = bands.clamp(min=FLOOR).log10().unflatten(0, both.shape[:2])
        frames = (length + hop - 1) // hop  # those whose middle is in the clip
        inside = valid_samples(frames, x.shape[-1])
        return torch.where(inside[:, None], (x - y).abs(), 0).sum((1, 2)) / (frames * x.shape[1])
