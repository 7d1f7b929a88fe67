"""``folder:PATH``: images as ``train/CLASS/*`` and ``test/CLASS/*``; class names in alphabetical order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.data.images import Images, Labels, Progress, decode_images, hash_files
from bench.errors import DataError


class ImageFolder:
    """A tree of image files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"folder:{folder.resolve().name}"
        self._files = {split: self._find(split) for split in ("train", "test")}

    def content_sha256(self, progress: Progress) -> str:
        """A hash of every file's name and content."""
        files = [file for split in self._files.values() for members in split.values() for file in members]
        return hash_files(files, self.folder, f"hashing {self.name}", progress)

    def classes(self) -> tuple[str, ...]:
        """The folders' names, the same in both splits."""
        train, test = (set(self._files[split]) for split in ("train", "test"))
        if train != test:
            raise DataError(
                f"the classes differ between {str(self.folder / 'train')!r} and {str(self.folder / 'test')!r}: only "
                f"one of them has {', '.join(sorted(train ^ test))}. Every class needs a folder in both splits."
            )
        return tuple(sorted(train))

    def decode(self, split: str, size: int, progress: Progress) -> tuple[Images, Labels]:
        """The images ``N×3×size×size`` and labels of a split, class by class."""
        classes = self.classes()
        members = [(file, label) for label, name in enumerate(classes) for file in self._files[split][name]]
        files = ((repr(str(file)), file) for file, _ in members)
        images = decode_images(files, len(members), size, f"decoding {self.name} {split}", progress)
        return images, np.array([label for _, label in members], np.int64)

    def _find(self, split: str) -> dict[str, list[Path]]:
        folder = self.folder / split
        if not folder.is_dir():
            raise DataError(f"the folder {str(folder)!r} does not exist. Expected train/CLASS/* and test/CLASS/*.")
        classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not classes:
            raise DataError(f"the folder {str(folder)!r} holds no class folders. Expected {split}/CLASS/* images.")
        found = {entry.name: _images(entry) for entry in classes}
        for name, images in found.items():
            if not images:
                raise DataError(f"the class folder {str(folder / name)!r} is empty. Add images to it, or remove it.")
        return found


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
