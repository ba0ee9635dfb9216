"""Pictures of sound: what was coded above what came out, and what each bit bought."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from straightvq.diagnostics import panels
from straightvq.errors import InvalidValueError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGE = 80.0  # dB below the loudest place of the original

# Name in the tables, title and unit of what a curve may show.
DISTORTIONS = {
    "si_sdr": ("Fidelity of the waveform", "SI-SDR in dB, more is better"),
    "mel": ("Distance of the spectra", "mel distance, less is better"),
}


def spectrograms(clips: Mapping[str, Tensor], sample_rate: int, title: str | None = None) -> "Figure":
    """Spectrograms of clips of one length below each other, in dB below the loudest place of the first.

    Args:
        clips: Float (T,) by name, the original first.
        sample_rate: in Hz.
        title: headline.

    Raises:
        ValueError: if there is no clip, or they differ in length.
    """
    lengths = {clip.shape for clip in clips.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise InvalidValueError(
            f"`spectrograms`: `clips` must be at least one, all of one shape (T,). Got {sorted(map(tuple, lengths))}."
        )
    top = 0.75 if title else 0.2
    figure = panels.new_figure(11.0, top + 0.75 + 1.55 * len(clips), title)
    axes = panels.grid(figure, len(clips), 1, top=top + 0.45, above=0.2, below=0.0, left=2.6)
    (samples,) = next(iter(lengths))
    size = min(256, 1 << max(3, samples.bit_length() - 2))
    loudest = None
    for ax, (name, clip) in zip(axes, clips.items(), strict=True):
        box = ax.get_position()
        ax.set_position((box.x0, box.y0 + 0.4 / figure.get_size_inches()[1], box.width, box.height))
        window = torch.hann_window(size)
        bins = torch.stft(
            clip.detach().cpu().float(), size, size // 8, window=window, pad_mode="constant", return_complex=True
        )
        level = 20 * bins.abs().clamp(min=1e-6).log10().numpy()
        loudest = float(level.max()) if loudest is None else loudest
        extent = (0.0, samples / sample_rate, 0.0, sample_rate / 2000)
        ax.imshow(level, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=loudest - RANGE, vmax=loudest)
        ax.grid(visible=False)
        ax.set_ylabel("kHz")
        ax.text(-0.09, 0.5, name, transform=ax.transAxes, ha="right", va="center", size=panels.TEXT_SIZE, wrap=True)
        if ax is not axes[-1]:
            ax.tick_params(labelbottom=False)
    axes[-1].set_xlabel("seconds")
    return figure


def rate_distortion(
    curves: Mapping[str, Sequence[Mapping[str, float]]], title: str | None = None, error: str | None = None
) -> "Figure":
    """Distortion over bit rate, one line for each codec, a point for each number of levels.

    Args:
        curves: by name, rows with ``bits_per_second``, ``si_sdr`` in dB and ``mel``; at most six.
        title: headline.
        error: suffix of the names of values that are drawn as error bars, such as "_std"; None for no bars.

    Raises:
        ValueError: if there is no curve, or too many.
    """
    if not 1 <= len(curves) <= len(panels.PALETTE):
        raise InvalidValueError(f"`rate_distortion`: `curves` must be 1 to {len(panels.PALETTE)}. Got {len(curves)}.")
    top = 0.75 if title else 0.1
    above = 1.0 if len(curves) > 1 else 0.55
    figure = panels.new_figure(13.0, top + 3.9 + above, title)
    axes = panels.grid(figure, 2, 2, top=top, above=above, below=0.75, between=1.1)
    for ax, (name, (heading, unit)) in zip(axes, DISTORTIONS.items(), strict=True):
        handles = {}
        for color, (codec, rows) in zip(panels.PALETTE, curves.items(), strict=False):
            rates = np.array([row["bits_per_second"] for row in rows]) / 1000
            values = np.array([row[name] for row in rows], dtype=np.float64)
            bars = None if error is None else np.array([row[name + error] for row in rows])
            handles[codec] = ax.errorbar(rates, values, bars, color=color, marker="o", linewidth=2, capsize=3).lines[0]
        if len(curves) > 1:
            panels.finish(ax, handles, heading)
        else:
            ax.set_title(heading, loc="left", fontsize=panels.TITLE_SIZE, fontweight="bold", color=panels.INK)
        ax.set_xlabel("kbit/s")
        ax.set_ylabel(unit)
    return figure
