"""The fifteen corruptions of Hendrycks and Dietterich 2019 (arXiv:1903.12261) at five severities.

Written here since the library for it, imagecorruptions 1.1.2, runs neither on numpy 2 nor on a scikit-image of these
years. Parameters are those with which the authors made CIFAR-10-C; lengths in pixels are for images of 32 and grow with
the side of larger ones. Departures: frost is blended from a synthetic texture, as their photographs cannot be shipped;
pixels are rounded where theirs are cut off; edges of glass and motion blur differ by a pixel. So accuracies are near
those on CIFAR-10-C and comparable among models here, not the digits of a published table.

Whole batches at once: functions take float images ``N×3×S×S`` in [0, 1], the severity from 0, and a random stream.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy.random import RandomState
from PIL import Image
from scipy import ndimage

from bench.data.cache import load_or_build
from bench.data.images import Images

Floats = npt.NDArray[np.floating[Any]]
Corruption = Callable[[Floats, int, RandomState], Floats]

VERSION: Final = 1
"""Changed with any change of the pixels, so that no cache and no comparison mixes two."""
SEVERITIES: Final = (1, 2, 3, 4, 5)
BLUISH: Final = np.array([0.85, 0.95, 1.0], np.float32)
"""The colour of frost."""
CHUNK: Final = 250
"""Images at a time, which bounds memory."""


@dataclass(frozen=True)
class Corrupted:
    """Images under one corruption, uint8 ``5×N×3×S×S`` by severity, read-only, and the hash of these bytes."""

    by_severity: Images
    sha256: str


def corrupt(images: Images, name: str, content: str) -> Corrupted:
    """The images ``N×3×S×S`` under a corruption at each severity: computed once, then read from the cache.

    ``content`` identifies the images, for the cache. The same images give the same result, on one version of numpy and
    scipy. Raises `KeyError` for a name that is not in `CORRUPTIONS`, and `DataError` if the cache cannot be written.
    """
    corruption = CORRUPTIONS[name]
    key = hashlib.sha256(f"{content} corruption={name} version={VERSION}".encode()).hexdigest()

    def build() -> dict[str, npt.NDArray[np.generic]]:
        return {"images": np.stack([_apply(corruption, name, images, severity) for severity in range(5)])}

    stored = load_or_build(key, build)["images"].view(np.uint8)
    return Corrupted(stored, hashlib.sha256(stored.data).hexdigest())


def _apply(corruption: Corruption, name: str, images: Images, severity: int) -> Images:
    random = RandomState([VERSION, zlib.crc32(name.encode()), severity])  # its stream is frozen by numpy's policy
    parts = [
        corruption(images[start : start + CHUNK].astype(np.float32) / 255, severity, random)
        for start in range(0, len(images), CHUNK)
    ]
    return np.concatenate([_as_bytes(part) for part in parts])


def _as_bytes(images: Floats) -> Images:
    return np.asarray(np.rint(images.clip(0, 1) * 255), dtype=np.uint8)


def _gaussian_noise(x: Floats, severity: int, random: RandomState) -> Floats:
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity]
    return x + random.normal(scale=deviation, size=x.shape).astype(np.float32)


def _shot_noise(x: Floats, severity: int, random: RandomState) -> Floats:
    photons = (500, 250, 100, 75, 50)[severity]
    return (random.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: Floats, severity: int, random: RandomState) -> Floats:
    """Salt and pepper, each channel of each pixel for itself."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    draws = random.uniform(size=x.shape)
    return np.where(draws < share, (draws < share / 2).astype(np.float32), x)


def _defocus_blur(x: Floats, severity: int, random: RandomState) -> Floats:
    """A disk, smoothed at its edge."""
    radius, smoothing = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity]
    radius *= _unit(x)
    reach = int(np.ceil(radius)) + 1
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (down**2 + right**2 <= radius**2).astype(np.float32)
    disk = ndimage.gaussian_filter(disk / disk.sum(), smoothing, radius=1, mode="constant")
    return np.asarray(ndimage.convolve(x, (disk / disk.sum())[None, None], mode="mirror"))


def _glass_blur(x: Floats, severity: int, random: RandomState) -> Floats:
    """Each pixel takes the value of a near one, as in CIFAR-10-C, between two slight blurs."""
    sigma, times = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity]
    reach, side = max(round(_unit(x)), 1), x.shape[-1]
    x = _blur(x, sigma * _unit(x))
    for _ in range(times):
        shifts = random.randint(-reach, reach, size=(2, len(x), side, side))
        down, right = (np.mgrid[:side, :side][:, None] + shifts).clip(0, side - 1)
        x = _gather(x.reshape(*x.shape[:2], -1), down * side + right)
    return _blur(x, sigma * _unit(x))


def _motion_blur(x: Floats, severity: int, random: RandomState) -> Floats:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity]
    return _smear(x, radius, sigma, random.uniform(-45, 45, size=len(x)))


def _zoom_blur(x: Floats, severity: int, random: RandomState) -> Floats:
    most = (1.06, 1.11, 1.16, 1.21, 1.26)[severity]
    factors = np.arange(1, most, 0.01)
    return (x + sum(_zoom(x, factor) for factor in factors)) / np.float32(len(factors) + 1)


def _snow(x: Floats, severity: int, random: RandomState) -> Floats:
    mean, deviation, zoom, least, radius, sigma, darkening = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity]
    flakes = random.normal(mean, deviation, size=(len(x), 1, *x.shape[2:])).astype(np.float32)
    flakes = _zoom(flakes, zoom)
    flakes = np.where(flakes < least, 0, flakes).clip(0, 1)
    flakes = _smear(flakes, radius, sigma, random.uniform(-135, -45, size=len(x)))
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), x, axes=(0, 1))[:, None]
    whitened = darkening * x + (1 - darkening) * np.maximum(x, grey * 1.5 + 0.5)
    return np.asarray(whitened + flakes + flakes[:, :, ::-1, ::-1])


def _frost(x: Floats, severity: int, random: RandomState) -> Floats:
    """Bluish white needles: ridges where a fractal crosses its middle, brighter in patches."""
    image, ice = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity]
    patches, needles = (_fractal(x.shape, decay, random) for decay in (2.0, 1.5))
    texture = (0.3 + 0.7 * patches) * (1 - np.abs(2 * needles - 1))
    return np.asarray(image * x + ice * texture[:, None] * BLUISH[:, None, None])


def _fog(x: Floats, severity: int, random: RandomState) -> Floats:
    density, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    clouds = np.float32(density) * _fractal(x.shape, decay, random)[:, None]
    return np.asarray((x + clouds) * brightest / (brightest + np.float32(density)))


def _brightness(x: Floats, severity: int, random: RandomState) -> Floats:
    """A greater value in HSV, at the same hue and saturation: all channels by one factor; black becomes grey."""
    more = np.float32((0.05, 0.1, 0.15, 0.2, 0.3)[severity])
    value = x.max(axis=1, keepdims=True)
    brighter = (value + more).clip(0, 1)
    return np.asarray(np.where(value > 0, x * (brighter / np.maximum(value, np.float32(1e-9))), brighter))


def _contrast(x: Floats, severity: int, random: RandomState) -> Floats:
    share = np.float32((0.75, 0.5, 0.4, 0.3, 0.15)[severity])
    mean = x.mean(axis=(2, 3), keepdims=True)
    return np.asarray((x - mean) * share + mean)


def _elastic_transform(x: Floats, severity: int, random: RandomState) -> Floats:
    """A random affine map near the identity, and a smooth random field of displacements on top."""
    side = x.shape[-1]
    strength, smoothness, jitter = (
        side * each
        for each in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))[
            severity
        ]
    )
    middle, third = side // 2, side // 3
    corners = np.array([[third, third], [third, -third], [-third, -third]], float) + middle
    moved = corners + random.uniform(-jitter, jitter, size=(len(x), 3, 2))
    back = np.linalg.solve(
        np.concatenate([moved, np.ones((len(x), 3, 1))], axis=2), np.broadcast_to(corners, moved.shape)
    )
    field = random.uniform(-1, 1, size=(2, len(x), side, side))
    field = strength * ndimage.gaussian_filter(field, (0, 0, smoothness, smoothness), mode="reflect", truncate=3)
    places = np.stack(np.broadcast_arrays(*np.mgrid[:side, :side][:, None] + field, 1.0), axis=-1)
    rows, columns = np.moveaxis(np.einsum("nijk,nkl->nijl", places, back), -1, 0)
    return _sample(x, rows, columns)


def _pixelate(x: Floats, severity: int, random: RandomState) -> Floats:
    share, side = (0.95, 0.9, 0.85, 0.75, 0.65)[severity], x.shape[-1]
    small = int(side * share)
    box = Image.Resampling.BOX
    return _as_floats(image.resize((small, small), box).resize((side, side), box) for image in _pictures(x))


def _jpeg_compression(x: Floats, severity: int, random: RandomState) -> Floats:
    quality = (80, 65, 58, 50, 40)[severity]

    def compressed(image: Image.Image) -> Image.Image:
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(file)

    return _as_floats(map(compressed, _pictures(x)))


CORRUPTIONS: Final[Mapping[str, Corruption]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
"""By the paper's names, in its order: noise, blur, weather, digital."""


def _unit(x: Floats) -> float:
    """How many pixels stand for one of an image of 32."""
    return float(x.shape[-1]) / 32


def _blur(x: Floats, sigma: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest"))


def _zoom(x: Floats, factor: float) -> Floats:
    """The middle of the images, enlarged to their size; bilinear."""
    side = x.shape[-1]
    middle = (side - 1) / 2
    places = middle + (np.arange(side) - middle) / factor
    low = np.floor(places).astype(int).clip(0, side - 1)
    matrix = np.zeros((side, side), np.float32)
    np.add.at(matrix, (np.arange(side), low), 1 - (places - low))
    np.add.at(matrix, (np.arange(side), (low + 1).clip(max=side - 1)), places - low)
    return np.asarray(matrix @ x @ matrix.T)


def _smear(x: Floats, radius: float, sigma: float, degrees: npt.NDArray[np.float64]) -> Floats:
    """Blur along a line with half a Gaussian, as ImageMagick's motion blur does, each image at its own angle."""
    sigma, side = sigma * _unit(x), x.shape[-1]
    taps = np.arange(2 * round(radius * _unit(x)) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    angles = np.deg2rad(degrees)[:, None, None]
    rows, columns = np.mgrid[:side, :side]
    flat, result = x.reshape(*x.shape[:2], -1), np.zeros_like(x)
    for tap, weight in zip(taps, weights / weights.sum(), strict=True):
        down = (rows + np.rint(tap * np.sin(angles)).astype(int)).clip(0, side - 1)
        right = (columns + np.rint(tap * np.cos(angles)).astype(int)).clip(0, side - 1)
        result += np.float32(weight) * _gather(flat, down * side + right)
    return result


def _sample(x: Floats, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Floats:
    """The images at places between pixels, ``N×S×S`` each; bilinear, reflected at the edge."""
    side, flat = x.shape[-1], x.reshape(*x.shape[:2], -1)
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    result = np.zeros_like(x)
    for row, row_share in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, share in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            weight = (row_share * share)[:, None].astype(np.float32)
            result += weight * _gather(flat, _reflected(row, side) * side + _reflected(column, side))
    return result


def _reflected(index: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.int64]:
    index = index % (2 * side)
    return np.minimum(index, 2 * side - 1 - index)


def _gather(flat: Floats, places: npt.NDArray[np.int64]) -> Floats:
    """From ``N×C×(S·S)`` the pixels at ``N×S×S`` flat indices, as ``N×C×S×S``."""
    found = np.take_along_axis(flat, places.reshape(len(places), 1, -1), axis=2)
    return found.reshape(*flat.shape[:2], *places.shape[1:])


def _fractal(shape: tuple[int, ...], decay: float, random: RandomState) -> Floats:
    """Clouds ``N×S×S`` from 0 to 1 by the diamond-square algorithm; a greater ``decay`` makes them smoother."""
    count, side = shape[0], shape[-1]
    size = 1 << (side - 1).bit_length()
    grid = np.zeros((count, size, size))
    step, amplitude = size, 100.0
    while step > 1:
        half = step // 2

        def displaced(total: npt.NDArray[np.float64], most: float = amplitude**2) -> npt.NDArray[np.float64]:
            return np.asarray(total / 4 + random.uniform(-most, most, size=total.shape))

        corners = grid[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        centres = displaced(pairs + np.roll(pairs, -1, axis=2))
        grid[:, half::step, half::step] = centres
        across = corners + np.roll(corners, -1, axis=2) + centres + np.roll(centres, 1, axis=1)
        along = pairs + centres + np.roll(centres, 1, axis=2)
        grid[:, ::step, half::step] = displaced(across)
        grid[:, half::step, ::step] = displaced(along)
        step, amplitude = half, amplitude / decay
    grid -= grid.min(axis=(1, 2), keepdims=True)
    grid /= grid.max(axis=(1, 2), keepdims=True)
    return np.asarray(grid[:, :side, :side], dtype=np.float32)


def _pictures(x: Floats) -> Iterator[Image.Image]:
    return map(Image.fromarray, np.ascontiguousarray(_as_bytes(x).transpose(0, 2, 3, 1)))


def _as_floats(pictures: Iterator[Image.Image]) -> Floats:
    return np.stack([np.asarray(each) for each in pictures]).transpose(0, 3, 1, 2).astype(np.float32) / 255
