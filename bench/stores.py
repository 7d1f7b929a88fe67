"""Files wherever fsspec reaches: folders of this machine and stores such as S3, written as a whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from bench.errors import RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def file_system(path: str | Path) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path in it, as other processes have left it by now.

    Raises `RecordError` for a URL whose package is not installed, or that nothing is known of.
    """
    try:
        fs, local = fsspec.url_to_fs(str(path))
    except ImportError as error:
        raise RecordError(
            f"{str(path)!r} needs a package that is not installed: {error}. For s3:// that is `pip install "
            "'zoobench[s3]'`; for others see fsspec's documentation."
        ) from error
    except ValueError as error:
        raise RecordError(
            f"{str(path)!r} cannot be used: {error}. Expected a folder, or a URL that fsspec knows, such as s3://…"
        ) from error
    fs.invalidate_cache()  # of listings, in which what another process has written is missing
    return fs, local


def is_local(results: str | Path) -> bool:
    """Whether a results folder lies in a file system of this machine, rather than in a bucket."""
    return "file" in protocols(file_system(results)[0])


@contextlib.contextmanager
def reaching(results: str | Path) -> Iterator[None]:
    """Raise `RecordError` where a store cannot be reached; what a folder of this machine raises is left as it is."""
    try:
        yield
    except Exception as error:
        if is_local(results):
            raise
        raise RecordError(
            f"{str(results)!r} cannot be reached: {type(error).__name__}: {error}. Look at the "
            "network, the credentials and the endpoint that its store takes from the environment."
        ) from error


def write_atomically(path: str, content: str | bytes, *, durable: bool = True) -> None:
    """Replace a file as a whole: temporary file, fsync, rename. Raises OSError.

    A reader sees the old file or the new one; which of them survives a power cut is left open if not ``durable``.
    """
    data = content.encode() if isinstance(content, str) else content
    fs, target = file_system(path)
    if "file" not in protocols(fs):
        try:
            fs.pipe_file(target, data)  # object stores replace an object as a whole
        except OSError:
            raise
        except Exception as error:  # a store's own errors, such as no credentials, have no common base
            raise OSError(f"{type(error).__name__}: {error}") from error
        return
    folder = Path(target).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if durable:
        _sync_folder(folder)


def exists(path: str) -> bool:
    """Whether there is such a file. Raises `RecordError` where its store cannot be reached."""
    fs, local = file_system(path)
    with reaching(path):
        return bool(fs.exists(local))


def glob(pattern: str) -> list[str]:
    """The files ``FOLDER/PATTERN``, sorted; URLs where it is one. In the folder's name no character is a wildcard."""
    folder, _, wanted = pattern.rpartition("/")
    fs, local = file_system(folder)
    is_here = "file" in protocols(fs)
    paths = [f"{local.rstrip('/')}/{name}" for name in names_in(fs, local) if fnmatch.fnmatchcase(name, wanted)]
    return sorted(path if is_here else str(fs.unstrip_protocol(path)) for path in paths)


def names_in(fs: Any, folder: str) -> list[str]:
    """The names of what lies in a folder, sorted; nothing where there is none."""
    try:
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in fs.ls(folder, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_arrays(fs: Any, path: str) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file by name; nothing where it is missing or damaged."""
    import numpy as np

    try:
        with np.load(io.BytesIO(fs.cat_file(path)), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def protocols(fs: Any) -> tuple[str, ...]:
    """The names of a file system in URLs; ``file`` is among them where it is of this machine."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every system can open a folder for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
