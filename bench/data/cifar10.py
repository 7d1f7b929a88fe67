"""``cifar10``: the official archive (Krizhevsky 2009), found or downloaded; checked before anything is unpickled.

Where it is and what its checksums are is torchvision's knowledge; the archive is read in place, not unpacked.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.data.cache import cache_folder
from bench.data.images import Decoded, Images, Progress
from bench.errors import DataError

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
SIDE = 32


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 from its archive or its unpacked folder. ``md5`` gives the expected checksum of each batch file."""

    path: Path
    splits: Mapping[str, tuple[str, ...]]
    md5: Mapping[str, str]
    name: str = "cifar10"

    @classmethod
    def find(cls, data_dir: str | Path | None, progress: Progress) -> Cifar10:
        """Look in ``data_dir``, else in the cache; download there if it is in neither. Raises `DataError`."""
        from torchvision.datasets import CIFAR10

        folder = Path(data_dir).expanduser() if data_dir is not None else cache_folder() / "downloads"
        candidates = [folder, folder / FOLDER, folder / ARCHIVE]
        path = next((each for each in candidates[1:] if each.exists()), None)
        if path is None and (folder / "data_batch_1").exists():
            path = folder
        if path is None:
            path = _download(CIFAR10.url, CIFAR10.tgz_md5, folder)
        elif path.is_file():
            _check(path.name, path, lambda: _md5_of_file(path), CIFAR10.tgz_md5)
        files = dict(CIFAR10.train_list + CIFAR10.test_list) | {CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}
        splits = {
            "train": tuple(name for name, _ in CIFAR10.train_list),
            "test": tuple(name for name, _ in CIFAR10.test_list),
            "meta": (CIFAR10.meta["filename"],),
        }
        return cls(path, splits, files)

    def content_sha256(self, progress: Progress) -> str:
        """A hash of the expected checksums: files that do not have them are refused."""
        return hashlib.sha256(repr(sorted(self.md5.items())).encode()).hexdigest()

    def classes(self) -> tuple[str, ...]:
        """The official class names."""
        meta = next(iter(self._unpickled("meta").values()))
        return tuple(meta["label_names"])

    def decode(self, split: str, size: int, progress: Progress) -> Decoded:
        """The images ``N×3×size×size`` and labels of a split."""
        images: list[Images] = []
        labels: list[int] = []
        batches = self._unpickled(split)
        for index, batch in enumerate(batches.values()):
            images.append(_resized(np.asarray(batch["data"], np.uint8).reshape(-1, 3, SIDE, SIDE), size))
            labels.extend(batch["labels"])
            progress(f"reading cifar10 {split}", index + 1, len(batches))
        return Decoded(np.concatenate(images), np.array(labels, np.int64))

    def image_side(self) -> int:
        """32 pixels."""
        return SIDE

    def _unpickled(self, split: str) -> dict[str, Any]:
        """The batch files of a split. Each is unpickled only after its checksum was found to be the official one."""
        contents = self._read_folder(split) if self.path.is_dir() else self._read_archive(split)
        for name, content in contents.items():
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest
            _check(name, self.path, digest, self.md5[name])
        return {
            name: pickle.load(io.BytesIO(content), encoding="latin1")  # noqa: S301 - the official file, by checksum
            for name, content in contents.items()
        }

    def _read_folder(self, split: str) -> dict[str, bytes]:
        try:
            return {name: (self.path / name).read_bytes() for name in self.splits[split]}
        except OSError as error:
            raise DataError(
                f"the file {error.filename!r} of CIFAR-10 cannot be read: {error.strerror}. Unpack {ARCHIVE} again."
            ) from error

    def _read_archive(self, split: str) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        try:
            with tarfile.open(self.path) as archive:
                for name in self.splits[split]:
                    member = archive.extractfile(f"{FOLDER}/{name}")
                    if member is None:
                        raise KeyError(name)
                    contents[name] = member.read()
        except (OSError, EOFError, KeyError, tarfile.TarError) as error:
            raise DataError(
                f"the archive {str(self.path)!r} cannot be read: {error}. Remove it to fetch it again."
            ) from error
        return contents


def _check(name: str, path: Path, digest: Callable[[], str], expected: str) -> None:
    found = digest()
    if found != expected:
        raise DataError(
            f"{name} of CIFAR-10 ({str(path)!r}) has the wrong checksum: MD5 {found}, the official file has "
            f"{expected}. Nothing in it was unpickled. Remove it and fetch the official archive again."
        )


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(url: str, md5: str, folder: Path) -> Path:
    from torchvision.datasets.utils import download_url

    try:
        folder.mkdir(parents=True, exist_ok=True)
        download_url(url, str(folder), ARCHIVE, md5)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        (folder / ARCHIVE).unlink(missing_ok=True)
        raise DataError(
            f"CIFAR-10 is not in {str(folder)!r} and cannot be downloaded from {url} ({error}). Put {ARCHIVE} into a "
            "folder and name it with --data-dir or ZOOBENCH_DATA, or use --data digits, which needs no download."
        ) from error
    return folder / ARCHIVE


def _resized(images: Images, size: int) -> Images:
    if size == SIDE:
        return images
    resized = (
        Image.fromarray(image.transpose(1, 2, 0)).resize((size, size), Image.Resampling.BILINEAR) for image in images
    )
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized])
