import numpy as np
import pytest
from PIL import Image
from tests.versions import needs

from straightvq.data.decode import UnreadableImageError, decode_image

from .conftest import encoded, grey, huge_png, noise_jpeg, saved


def test_shorter_side_is_scaled_and_the_centre_kept():
    # 12 x 4: columns 4..7 are white, the rest black; the centre square of side 4 is exactly the white part.
    pixels = np.zeros((4, 12), dtype=np.uint8)
    pixels[:, 4:8] = 255
    assert (decode_image(saved(pixels), 4, 1) == 255).all()


def test_right_size_is_left_bit_for_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(saved(pixels), 8, 3), pixels.transpose(2, 0, 1))


def test_grey_becomes_three_equal_channels_and_colour_one():
    assert decode_image(encoded(77, mode="L"), 4, 3).tolist() == np.full((3, 4, 4), 77).tolist()
    # Luma of pure green: 0.587 * 255 = 149.7.
    assert decode_image(encoded((0, 255, 0)), 4, 1).max() == 150


def test_transparent_pixels_become_white_and_half_transparent_ones_half():
    assert (decode_image(encoded((0, 0, 0, 0), mode="RGBA"), 4, 3) == 255).all()
    assert abs(int(decode_image(encoded((0, 0, 0, 128), mode="RGBA"), 4, 3)[0, 0, 0]) - 127) <= 1
    assert (decode_image(encoded((0, 0), mode="LA"), 4, 1) == 255).all()


def test_palette_is_looked_up_with_its_transparency():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode_image(saved(image), 4, 3)[:, 0, 0].tolist() == [10, 20, 30]
    assert decode_image(saved(image, transparency=1), 4, 3)[:, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("sixteen", "eight"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_not_clipped(sixteen, eight):
    assert (decode_image(saved(np.full((8, 8), sixteen, dtype=np.uint16)), 4, 3) == eight).all()


@pytest.mark.parametrize(
    "mode",
    ["1", "CMYK", pytest.param("YCbCr", marks=needs("pillow", 13, "reads the TIFF of this mode that it writes"))],
)
def test_other_modes_are_converted(mode):
    assert decode_image(encoded(mode=mode, value=0, kind="TIFF"), 4, 3).shape == (3, 4, 4)


def test_exif_orientation_turns_the_picture_upright():
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:, 4:] = 255  # right half white; orientation 3 turns it by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    assert np.array_equal(decode_image(saved(pixels, exif=exif), 8, 1)[0], pixels[:, ::-1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"these are words", "not an image"),
        (noise_jpeg()[:-400], "truncated"),
        (grey(3)[:-30], "truncated|broken"),
        (huge_png(30_000, 30_000), "bomb"),
        (huge_png(12_000, 12_000), "bomb"),
        (encoded(0.5, mode="F", kind="TIFF"), "floating-point"),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "bomb", "half a bomb", "float"],
)
def test_what_cannot_be_read_is_refused_with_its_reason(data, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(data, 4, 3)


def test_pixel_limit_holds_below_that_of_pillow(monkeypatch):
    monkeypatch.setattr("straightvq.data.decode.PIXEL_LIMIT", 79)
    with pytest.raises(UnreadableImageError, match="10 x 8 pixels, more than the limit of 79"):
        decode_image(grey(0), 4, 3)
