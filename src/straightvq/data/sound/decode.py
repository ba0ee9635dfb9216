"""Encoded sound to samples: one channel, one rate."""

import importlib
import io
import mimetypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from straightvq.data.decode import UnreadableImageError
from straightvq.errors import InvalidValueError

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "AIFF", "MP3")
MOST_SAMPLES = 1 << 28  # of one clip: nine hours at 8 kHz; 1 GiB
_KINDS = mimetypes.MimeTypes()  # Python's own table: that of the machine would differ elsewhere


class UnreadableSoundError(UnreadableImageError):
    """Bytes that are no sound, or not a whole one. The message is the reason in a few words."""


def needed(name: str) -> Any:
    """The package `soundfile` or `soxr`, or a sentence about how to get it."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # the second where libsndfile itself is missing
        raise InvalidValueError(
            f'`Sound`: sound needs the package {name}: `pip install "straightvq[sound]"`. Got: {error}.'
        ) from error


def claims_to_be_sound(path: Path) -> bool:
    """By its suffix: of formats that are not read, each file is then named."""
    suffix = path.suffix.lower()
    kinds = [
        ".flac",
        ".ogg",
        ".m4a",
        ".wma",
        *(name for table in _KINDS.types_map for name in table if table[name].startswith("audio/")),
    ]
    return suffix in kinds


def decode_sound(data: bytes, sample_rate: int) -> NDArray[np.float32]:
    """The samples of an encoded clip, Float32 (n,), n >= 1, full scale at 1.

    Several channels are mixed down to their mean, so that no clip gets louder than its loudest channel. Other rates are
    resampled by soxr (its default quality: a linear-phase filter with a stop band beyond 16 bits).

    Raises:
        UnreadableSoundError: for what is no sound, cut, empty, not finite, or longer than 2^28 samples.

    Example:
        >>> file = io.BytesIO()
        >>> needed("soundfile").write(file, np.array([[0.5, 0.0], [0.0, -0.5]]), 8000, format="WAV")
        >>> decode_sound(file.getvalue(), 8000)
        array([ 0.25, -0.25], dtype=float32)
    """
    package = needed("soundfile")
    if not data:
        raise UnreadableSoundError("the file is empty")
    _check_riff(data)
    try:
        with package.SoundFile(io.BytesIO(data)) as file:
            if file.format not in FORMATS:
                raise UnreadableSoundError(f"the format {file.format} is not one of {', '.join(FORMATS)}")
            announced, rate = file.frames, file.samplerate
            # As they are, and after resampling: a damaged header may announce a rate of 1 Hz.
            if max(announced * file.channels, announced * sample_rate / max(1, rate)) > MOST_SAMPLES:
                raise UnreadableSoundError(
                    f"{announced:,} samples of {file.channels} channel(s) at {rate:,} Hz, more than the limit of "
                    f"{MOST_SAMPLES:,} at {sample_rate:,} Hz"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except package.SoundFileError as error:
        said = getattr(error, "error_string", "") or "not readable as sound"
        raise UnreadableSoundError(said.removeprefix("Error : ").rstrip(".")) from error
    except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise UnreadableSoundError(f"not readable as sound: {error}") from error
    if len(samples) < announced:
        raise UnreadableSoundError(f"it ends after {len(samples):,} of {announced:,} samples")
    if not np.isfinite(samples).all():
        raise UnreadableSoundError("it has samples that are NaN or infinite")
    mono = samples.mean(1, dtype=np.float32)
    if rate != sample_rate and len(mono):
        mono = needed("soxr").resample(mono, rate, sample_rate)
    if not len(mono):
        raise UnreadableSoundError("it has no samples")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _check_riff(data: bytes) -> None:
    """Refuses a WAV file that announces more bytes than there are: libsndfile would read what is left of it."""
    announced = int.from_bytes(data[4:8], "little") + 8
    # Writers that do not know the length when they begin announce none, or the largest.
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE" and len(data) < announced < 0xFFFFFFF0:
        raise UnreadableSoundError(f"it ends after {len(data):,} of {announced:,} bytes")
