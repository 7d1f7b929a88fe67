"""Image files of every kind to pixels: golden values, torchvision as the reference, and damaged files."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from torchvision.transforms import v2

from bench.data.decoding import DECODER_VERSION, DECODING_ERRORS, decode_image

SIDE = 16
RAMP = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
DEEP = RAMP.astype(np.uint16) * 257
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(content, size=SIDE):
    """Pixels ``H×W×3``, and the decoder's version."""
    pixels, version = decode_image(io.BytesIO(content), size)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == np.uint8
    return pixels.transpose(1, 2, 0), version


def grey(pixels):
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    return pixels[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bit_grey_keeps_its_levels(kind):
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    pixels, version = decode(saved(Image.fromarray(DEEP), kind, **options))
    assert np.array_equal(grey(pixels), RAMP)
    assert version == DECODER_VERSION


def test_16_bit_levels_are_rounded_to_the_nearest():
    levels = np.array([[0, 128, 129, 65_407, 65_535, 257 * 7 + 3]] * 6, np.uint16)
    pixels, _ = decode(saved(Image.fromarray(levels)), 6)
    assert grey(pixels)[0].tolist() == [0, 0, 1, 255, 255, 7]


def test_big_endian_tiff_of_16_bits():
    image = Image.frombytes("I;16B", (SIDE, SIDE), DEEP.astype(">u2").tobytes())
    assert np.array_equal(grey(decode(saved(image, "TIFF"))[0]), RAMP)


def test_16_bit_tiff_whose_white_is_zero():
    content = saved(Image.fromarray(DEEP), "TIFF", tiffinfo={262: 0})
    with Image.open(io.BytesIO(content)) as image:
        assert image.tag_v2[262] == 0
    assert np.array_equal(grey(decode(content)[0]), 255 - RAMP)


@pytest.mark.parametrize(
    ("pixels", "reason"), [(RAMP.astype(np.float32) / 255, "floats"), (RAMP.astype(np.int32) * 1000, "32-bit integers")]
)
def test_pixels_without_a_known_range_are_refused(pixels, reason):
    with pytest.raises(ValueError, match=f"its pixels are {reason}, whose range is not known"):
        decode(saved(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
def test_plain_modes_are_what_the_first_version_gave(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    content = saved(image, "TIFF")
    pixels, version = decode(content)
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert version == 1
    assert decode(content, 8)[1] == 1
    expected = image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(content, 8)[0], np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    corners = np.zeros((SIDE, SIDE, 3), np.uint8)
    corners[:8, :8] = (255, 0, 0)
    corners[:8, 8:] = (0, 255, 0)
    corners[8:, :8] = (0, 0, 255)
    stored = {  # what a camera stores, so that a viewer shows the corners as above
        1: corners, 2: corners[:, ::-1], 3: corners[::-1, ::-1], 4: corners[::-1], 5: corners.transpose(1, 0, 2),
        6: np.rot90(corners), 7: np.rot90(corners, 2).transpose(1, 0, 2), 8: np.rot90(corners, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    pixels, _ = decode(saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **lossless))
    assert np.abs(pixels.astype(int) - corners).max() <= 3


def test_orientation_turns_before_the_centre_is_cut():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    pixels, version = decode(saved(Image.fromarray(wide), exif=exif), 8)
    assert (pixels == 200).all()
    assert version == DECODER_VERSION


def test_transparency_is_laid_over_white():
    colours = np.array([[(255, 0, 0, 255), (255, 0, 0, 0)], [(0, 0, 0, 128), (0, 0, 0, 0)]], np.uint8)
    pixels, version = decode(saved(Image.fromarray(colours)), 2)
    assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255]], [[127, 127, 127], [255, 255, 255]]]
    assert version == DECODER_VERSION


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_transparency_is_laid_over_white(kind):
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putpixel((1, 0), 1)
    pixels, _ = decode(saved(image, kind, transparency=1), 2)
    assert pixels[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize(
    ("image", "transparent"),
    [
        (Image.fromarray(np.array([[7, 9], [9, 9]], np.uint8)), 7),
        (Image.fromarray(np.array([[(7, 7, 7), (9, 9, 9)]] * 2, np.uint8)), (7, 7, 7)),
        (Image.fromarray(np.array([[7 * 257, 9 * 257]] * 2, np.uint16)), 7 * 257),
    ],
)
def test_a_transparent_colour_is_laid_over_white(image, transparent):
    pixels, _ = decode(saved(image, transparency=transparent), 2)
    assert grey(pixels)[0].tolist() == [255, 9]


def test_cmyk_jpeg_is_pillows_rgb():
    image = Image.fromarray(COLOURS).convert("CMYK")
    pixels, version = decode(saved(image, "JPEG", quality=100, subsampling=0))
    assert np.abs(pixels.astype(int) - COLOURS).mean() < 4
    assert version == 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_image_of_several_is_taken(kind):
    first, second = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    lossless = {"lossless": True} if kind == "WEBP" else {}
    pixels, _ = decode(saved(first, kind, save_all=True, append_images=[second], **lossless))
    assert (pixels == (250, 0, 0)).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_oblong_images_are_made_square_as_torchvision_does(width, height, size):
    image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])(image)
    pixels, version = decode(saved(image), size)
    assert np.array_equal(pixels, np.asarray(expected))
    assert version == (1 if width == height else DECODER_VERSION)


def test_a_line_of_pixels_is_refused_before_it_fills_the_memory():
    with pytest.raises(ValueError, match="it has 60000×1 pixels, too far from a square"):
        decode(saved(Image.new("RGB", (60_000, 1))), 512)


def test_no_other_program_is_started_for_an_image():
    with pytest.raises(OSError, match="cannot identify"):
        decode(saved(Image.fromarray(COLOURS), "EPS"))


FILES = [
    saved(Image.fromarray(COLOURS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"),
    saved(Image.fromarray(COLOURS)),
    saved(Image.fromarray(COLOURS).convert("P"), "GIF", transparency=1),
    saved(Image.fromarray(DEEP), "TIFF"),
    saved(Image.fromarray(COLOURS), "WEBP"),
    saved(Image.fromarray(COLOURS), "BMP"),
    saved(Image.fromarray(DEEP), "PPM"),
    saved(Image.fromarray(COLOURS), "JPEG2000"),
]


@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8), st.data())
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_an_error_of_decoding_or_pixels(content, changes, data):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(DECODING_ERRORS):
        decode(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
