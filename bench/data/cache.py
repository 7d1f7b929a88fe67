"""The cache of decoded data sets: arrays under a key, written atomically, checked by hash, memory-mapped.

Its folder is ``ZOOBENCH_CACHE``, or the user's cache folder. It may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs

from bench.errors import DataError

Arrays = dict[str, npt.NDArray[np.generic]]


def cache_folder() -> Path:
    """``ZOOBENCH_CACHE`` if set, else the user's cache folder for zoobench."""
    return Path(os.environ.get("ZOOBENCH_CACHE") or platformdirs.user_cache_dir("zoobench")).expanduser()


def load_or_build(key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under ``key``, memory-mapped and read-only; built and stored first if they are not there.

    An entry that fails its checksums is built again, with a warning. Two processes may build at the same time; the
    first to finish wins, and both read the same content. Raises `DataError` if the cache cannot be written.
    """
    folder = cache_folder() / "datasets" / key
    if folder.is_dir():
        try:
            return _load(folder)
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"the cached data set {folder} is damaged ({error}); it is decoded again.", stacklevel=2)
            shutil.rmtree(folder)
    arrays = build()
    try:
        _store(folder, arrays)
    except OSError as error:
        raise DataError(
            f"the decoded data set cannot be cached in {str(folder.parent)!r}: {error.strerror or error}. "
            "Free space there, or name another folder in ZOOBENCH_CACHE."
        ) from error
    return _load(folder)


def _store(folder: Path, arrays: Arrays) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    try:
        digests = {}
        for name, array in arrays.items():
            with (temporary / f"{name}.npy").open("wb") as file:
                # On a full disk np.save raises "N requested and M written", without an error number.
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(np.ascontiguousarray(array).data)
                file.flush()
                os.fsync(file.fileno())
            digests[name] = _digest(temporary / f"{name}.npy")
        (temporary / "index.json").write_text(json.dumps(digests))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process finished first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(folder: Path) -> Arrays:
    digests = json.loads((folder / "index.json").read_text())
    for name, digest in digests.items():
        if _digest(folder / f"{name}.npy") != digest:
            raise ValueError(f"{name}.npy does not have the checksum it was written with")
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in digests}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
