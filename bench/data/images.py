"""What every source of images needs: decoding to arrays, hashing files, finding folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """Report no progress."""


def decode_images(
    files: Iterable[tuple[str, Path | IO[bytes]]], count: int, size: int, what: str, progress: Progress
) -> Images:
    """Decode PNG or JPEG images to ``count×3×size×size``; each file comes with the name to call it by.

    Raises `DataError`, which names the file that cannot be decoded.
    """
    images = np.empty((count, 3, size, size), np.uint8)
    for index, (name, file) in enumerate(files):
        try:
            with Image.open(file) as image:
                rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"the image {name} cannot be decoded ({error}). Restore the file from its source, or remove it there."
            ) from error
        if rgb.size != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
        images[index] = np.asarray(rgb).transpose(2, 0, 1)
        if index % 256 == 0 or index + 1 == count:
            progress(what, index + 1, count)
    return images


def hash_files(paths: Iterable[Path], root: Path, what: str, progress: Progress) -> str:
    """One SHA-256 over the names (relative to ``root``) and contents of files."""
    paths = sorted(paths)
    total = hashlib.sha256()
    for index, path in enumerate(paths):
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"the file {str(path)!r} cannot be read: {error.strerror}.") from error
        total.update(f"{path.relative_to(root).as_posix()} {digest}\n".encode())
        if index % 256 == 0 or index + 1 == len(paths):
            progress(what, index + 1, len(paths))
    return total.hexdigest()


def find_folder(path: str, data_dir: str | Path | None, example: str) -> Path:
    """A data set's folder: ``path`` itself, or ``data_dir/path``. Raises `DataError` naming both."""
    if not path:
        raise DataError(f"the data set lacks its path. Write, for example, {example}.")
    tried = [Path(path).expanduser()]
    if data_dir is not None and not tried[0].is_absolute():
        tried.append(Path(data_dir).expanduser() / path)
    for folder in tried:
        if folder.is_dir():
            return folder
    looked_at = ", ".join(repr(str(each.absolute())) for each in tried)
    raise DataError(
        f"the data folder {path!r} does not exist (looked at {looked_at}). "
        f"Name an existing folder, for example {example}."
    )
