"""One encoded picture in, one square of bytes out."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from straightvq.errors import InvalidValueError

# About 300 MB once decoded to RGB, and checked by the header alone: a few bytes can announce a picture of any size.
PIXEL_LIMIT = 100_000_000
FILE_LIMIT = 1 << 30  # bytes: more than a picture of so many pixels needs
# What Pillow may take the bytes for, whatever their name says. Others of its formats start programs (EPS runs
# Ghostscript), or hold no pixels at all.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")


class UnreadableImageError(InvalidValueError):
    """A file or a row that does not hold a picture we can decode; the message is the reason."""


def decode_image(data: bytes, size: int, channels: int) -> NDArray[np.uint8]:
    """Decodes a picture (JPEG, PNG, ...), scales its shorter side to ``size`` and cuts the centre square.

    Turned upright as its EXIF data say; transparent pixels laid on white; 16-bit greys scaled to 8 bits (not clipped,
    as Pillow does); the first frame of an animation.

    Args:
        data: The file's bytes.
        size: Side of the square in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        UInt8 ``(channels, size, size)``.

    Raises:
        UnreadableImageError: Truncated, not a picture in one of ``FORMATS``, larger than ``PIXEL_LIMIT`` pixels, or
            pixels of floating point, whose range nobody states.
    """
    try:
        with _opened(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > PIXEL_LIMIT:
                raise UnreadableImageError(f"{width} x {height} pixels, more than the limit of {PIXEL_LIMIT:,}")
            # JPEG can be unpacked at 1/2, 1/4 or 1/8, which is much faster; twice the wanted side shows no loss.
            image.draft(None, (2 * size, 2 * size))
            return to_array(square_crop(_eight_bit(_upright(image)), size), channels)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image in a format that is read") from error
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise UnreadableImageError(str(error) or type(error).__name__) from error


def has_image_header(file: Path) -> bool:
    """Whether a plain file begins as a picture does; no pixel is unpacked."""
    try:
        with file.open("rb") as stream, _opened(stream):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:  # as in `decode_image`
        return False


@contextlib.contextmanager
def _opened(stream: BinaryIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        # Pillow only warns from its own limit to twice that; remarks on odd metadata say nothing about pixels.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]  # Pillow may be built without some
        with Image.open(stream, formats=formats) as image:
            yield image


def to_array(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """A Pillow image of 8 bits per channel as UInt8 ``(channels, H, W)``."""
    array = np.array(image.convert("L" if channels == 1 else "RGB"))  # a copy: Pillow's own buffer is read-only
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def square_crop(image: Image.Image, size: int) -> Image.Image:
    """Scales the shorter side to ``size`` pixels and keeps the centre square."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    # Bilinear with antialiasing: Pillow widens the filter when it shrinks.
    return square if side == size else square.resize((size, size), Image.Resampling.BILINEAR)


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a truncated file fails here, with Pillow's own words
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data are no reason to lose sound pixels
        return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Any Pillow mode to "L" or "RGB"."""
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels of unknown range")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
