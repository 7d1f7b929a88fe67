"""What every source of images gives, and how image files become that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from bench.data.decoding import DECODING_ERRORS, decode_image, short_side
from bench.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


SAMPLED = 100
"""Images that are looked at for the size that a data set's images have."""


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Decoded:
    """Images ``N×3×S×S`` (uint8) and labels ``N`` of a split, and the first version of the decoder to give these."""

    images: Images
    labels: Labels
    decoder: int = 1


def decode_images(
    files: Iterable[tuple[str, Path | IO[bytes]]], labels: Labels, size: int, what: str, progress: Progress
) -> Decoded:
    """Decode as many image files as there are labels; each file comes with the name to call it by.

    Raises `DataError`, which names the file that cannot be decoded.
    """
    count, decoder = len(labels), 1
    images = np.empty((count, 3, size, size), np.uint8)
    for index, (name, file) in enumerate(files):
        try:
            images[index], version = decode_image(file, size)
        except DECODING_ERRORS as error:
            raise _undecodable(name, error) from error
        decoder = max(decoder, version)
        if index % 256 == 0 or index + 1 == count:
            progress(what, index + 1, count)
    return Decoded(images, labels, decoder)


def median_short_side(files: Iterable[tuple[str, Path | IO[bytes]]]) -> int:
    """Of the image files, each with the name to call it by, in pixels. Raises `DataError` as `decode_images` does."""
    sides = []
    for name, file in files:
        try:
            sides.append(short_side(file))
        except DECODING_ERRORS as error:
            raise _undecodable(name, error) from error
    return int(np.median(sides)) if sides else 0  # a split without images is refused when it is loaded


def _undecodable(name: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(
        f"the image {name} cannot be decoded ({reason}). Restore the file from its source, or remove it there."
    )
