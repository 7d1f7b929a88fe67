"""One image file to a square of RGB pixels: each depth, orientation, transparency and shape in one documented way.

- Of an animation or a file of several pages, the first image is taken.
- 16-bit grey levels are divided by 257, so that 65,535 becomes 255. Floats and 32-bit integers have no known range
  and are refused.
- The orientation in EXIF is applied.
- Transparent pixels are laid over white.
- An image that is not square is resized until its short side has the wanted length, and its centre is cut out, pixel
  for pixel as torchvision's ``Resize(size)`` and ``CenterCrop(size)`` do it (bilinear, antialiased).
"""

from __future__ import annotations

import functools
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

DECODER_VERSION = 2
"""To be raised by whoever changes the pixels of any file. Version 1 clipped 16-bit levels at 255, ignored EXIF and
transparency, and squeezed images to a square."""
FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow knows more: some start other programs (EPS) and none is for photographs."""
BACKGROUND_COLOUR = (255, 255, 255, 255)
MAX_ASPECT_RATIO = 100
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for files that are damaged: each format has its own."""
_PHOTOMETRIC, _WHITE_IS_ZERO = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")


def decode_image(file: Path | IO[bytes], size: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Pixels ``3×size×size``, and the first version of the decoder that gives just these.

    Raises one of `DECODING_ERRORS` for a file that cannot be decoded.
    """
    with Image.open(file, formats=_available_formats()) as image:
        image.load()
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        plain = upright and image.mode in _PLAIN_MODES and not image.has_transparency_data
        rgb = _to_rgb(image)
    version = 1 if plain and rgb.width == rgb.height else DECODER_VERSION
    return np.asarray(_to_square(rgb, size)).transpose(2, 0, 1), version


def short_side(file: Path | IO[bytes]) -> int:
    """The image's short side in pixels, from its header. Raises one of `DECODING_ERRORS`."""
    with Image.open(file, formats=_available_formats()) as image:
        return min(image.size)


@functools.cache
def _available_formats() -> tuple[str, ...]:
    """`FORMATS`, but for those that this Pillow was built without."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB, turned upright."""
    source, image = image, ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and source.format in ("PNG", "PPM")):
        return _scale_16_bit(image, inverted=_is_inverted(source)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'32-bit integers' if image.mode == 'I' else 'floats'}, whose range is not known; "
            "save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, BACKGROUND_COLOUR)
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image, inverted: bool) -> Image.Image:
    """Grey levels 0 to 65,535 as 0 to 255, transparent ones as the background."""
    levels = np.asarray(image).astype(np.int64)
    grey = np.rint(levels / 257).clip(0, 255).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[levels == image.info["transparency"]] = BACKGROUND_COLOUR[0]
    return Image.fromarray(grey)


def _is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white, as a TIFF may say; Pillow heeds it for 8 bits only."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _to_square(image: Image.Image, size: int) -> Image.Image:
    short, long = sorted(image.size)
    if long > MAX_ASPECT_RATIO * short:
        raise ValueError(f"it has {image.width}×{image.height} pixels, too far from a square to be cut to one")
    resized_long = size * long // short
    shape = (size, resized_long) if image.height > image.width else (resized_long, size)
    if shape != image.size:
        image = image.resize(shape, Image.Resampling.BILINEAR)
    left, top = (round((length - size) / 2) for length in shape)
    return image if shape == (size, size) else image.crop((left, top, left + size, top + size))
