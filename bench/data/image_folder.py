"""``folder:PATH``: images as ``train/CLASS/*`` and ``test/CLASS/*``; class names in alphabetical order.

Each entry of a class folder is an image; hidden files are left out, and anything else is an error, so that no image is
passed over. Other folders beside ``train`` and ``test`` are not read: ``val`` is held out of ``train``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.data.files import check_files, check_links, hash_files, list_folder, list_names, printable
from bench.data.images import SAMPLED, Decoded, Progress, decode_images, median_short_side
from bench.errors import DataError

SPLITS = ("train", "test")


class ImageFolder:
    """A tree of image files. Raises `DataError` where it is not one, or not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"folder:{printable(folder.resolve().name)}"
        splits = [folder / split for split in SPLITS]
        for split in splits:
            if not split.is_dir():
                raise DataError(f"the folder {str(split)!r} does not exist. Expected train/CLASS/* and test/CLASS/*.")
        check_links(splits, folder)
        class_folders = {split: self._class_folders(split) for split in SPLITS}
        check_links([each for folders in class_folders.values() for each in folders.values()], folder)
        self._files = {split: self._find(class_folders[split]) for split in SPLITS}
        check_links(self._all_files(), folder)
        check_files(self._all_files(), "Images lie in train/CLASS and test/CLASS, not in folders of these: move them.")

    def content_sha256(self, progress: Progress) -> str:
        """A hash of every file's name and content."""
        return hash_files(self._all_files(), self.folder, f"hashing {self.name}", progress)

    def classes(self) -> tuple[str, ...]:
        """The folders' names, the same in both splits."""
        train, test = (set(self._files[split]) for split in SPLITS)
        if train != test:
            raise DataError(
                f"the classes differ between {str(self.folder / 'train')!r} and {str(self.folder / 'test')!r}: only "
                f"one of them has {', '.join(sorted(train ^ test))}. Every class needs a folder in both splits."
            )
        return tuple(sorted(train))

    def decode(self, split: str, size: int, progress: Progress) -> Decoded:
        """The images ``N×3×size×size`` and labels of a split, class by class."""
        classes = self.classes()
        members = [(file, label) for label, name in enumerate(classes) for file in self._files[split][name]]
        files = ((repr(str(file)), file) for file, _ in members)
        labels = np.array([label for _, label in members], np.int64)
        return decode_images(files, labels, size, f"decoding {self.name} {split}", progress)

    def image_side(self) -> int:
        """Of images spread over the classes of ``train``."""
        files = [file for members in self._files["train"].values() for file in members]
        spread = files[:: max(len(files) // SAMPLED, 1)]
        return median_short_side((repr(str(file)), file) for file in spread)

    def _all_files(self) -> list[Path]:
        return [file for classes in self._files.values() for files in classes.values() for file in files]

    def _class_folders(self, split: str) -> dict[str, Path]:
        """The class folders of a split, by the name of the class."""
        folder = self.folder / split
        entries = list_folder(folder)
        if not any(entry.is_dir() for entry in entries):
            raise DataError(f"the folder {str(folder)!r} holds no class folders. Expected {split}/CLASS/* images.")
        others = [entry for entry in entries if not entry.is_dir()]
        if others:
            raise DataError(
                f"{list_names(others)} in {str(folder)!r} would be passed over: only class folders belong there. "
                "Move images into the folder of their class, and anything else out of it."
            )
        return {printable(entry.name): entry for entry in entries}

    def _find(self, class_folders: dict[str, Path]) -> dict[str, list[Path]]:
        found = {name: list_folder(folder) for name, folder in class_folders.items()}
        for name, files in found.items():
            if not files:
                raise DataError(
                    f"the class folder {str(class_folders[name])!r} is empty. Add images to it, or remove it."
                )
        return found
