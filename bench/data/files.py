"""Folders of data: found, listed, checked and hashed. What is missing or broken is an error that names it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.data.images import Progress
from bench.errors import DataError

NAMED_FILES = 5
"""An error names at most this many files."""


def find_folder(path: str, data_dir: str | Path | None, example: str) -> Path:
    """A data set's folder: ``path`` itself, or ``data_dir/path``, which cannot lead out of ``data_dir``.

    Raises `DataError` naming both.
    """
    if not path:
        raise DataError(f"the data set lacks its path. Write, for example, {example}.")
    if printable(path) != path:
        raise DataError(f"the data folder {path!r} cannot stand in a record: its name is not UTF-8. Rename it.")
    tried: list[Path] = []
    try:
        tried.append(Path(path).expanduser())
        if data_dir is not None and not tried[0].is_absolute():
            root = Path(data_dir).expanduser().absolute()
            if Path(os.path.normpath(root / path)).is_relative_to(os.path.normpath(root)):
                tried.append(root / path)
        for folder in tried:
            if folder.is_dir():
                return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: ~NAME of a user that there is not
        raise DataError(f"the data folder {path!r} cannot be read: {error}. Name another one.") from error
    looked_at = ", ".join(repr(str(each.absolute())) for each in tried)
    raise DataError(
        f"the data folder {path!r} does not exist (looked at {looked_at}). "
        f"Name an existing folder, for example {example}."
    )


def list_folder(folder: Path) -> list[Path]:
    """What lies in a folder, by name; hidden files (``.DS_Store``) are left out. Raises `DataError`."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"the folder {str(folder)!r} cannot be read: {error.strerror}.") from error


def check_links(paths: Iterable[Path], root: Path) -> None:
    """That links lead somewhere, within ``root``, and that no two paths lead to the same file or folder.

    Raises `DataError`.
    """
    paths, inside = list(paths), root.resolve()
    if not any(path.is_symlink() for path in paths):
        return
    seen: dict[Path, Path] = {}
    for path in paths:
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
            raise DataError(
                f"the link {str(path)!r} is broken: nothing lies where it leads. Restore that file, or remove the link."
            ) from error
        if not target.is_relative_to(inside):
            raise DataError(
                f"the link {str(path)!r} leads out of the data folder {str(root)!r}, to {str(target)!r}. Put the file "
                "itself there; `cp -rL FOLDER COPY` copies a folder and puts files in the place of links."
            )
        if target in seen:
            raise DataError(
                f"{str(seen[target])!r} and {str(path)!r} are links to one and the same; its images would count "
                "twice. Remove one of them."
            )
        seen[target] = path


def check_files(paths: Sequence[Path], remedy: str) -> None:
    """That all of the paths are files. Raises `DataError` naming those that are not, with the remedy."""
    others = [path for path in paths if not path.is_file()]
    if others:
        raise DataError(f"{list_names(others)} {'is no file' if len(others) == 1 else 'are no files'}. {remedy}")


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
        total.update(os.fsencode(path.relative_to(root).as_posix()) + f" {digest}\n".encode())
        if index % 256 == 0 or index + 1 == len(paths):
            progress(what, index + 1, len(paths))
    return total.hexdigest()


def printable(name: str) -> str:
    r"""A file's name as it can be printed and stored: bytes that are not UTF-8 become ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def list_names(paths: Sequence[Path]) -> str:
    """The first few of the paths, quoted, and how many more there are."""
    more = len(paths) - NAMED_FILES
    return ", ".join(repr(str(path)) for path in paths[:NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
