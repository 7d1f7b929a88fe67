"""Data sets by name: ``digits``, ``cifar10``, ``parquet:PATH``, ``folder:PATH``, and ``mosaic:DATA`` of any of these.

Every source becomes the same thing: two splits of uint8 images ``N×3×S×S`` and int64 labels, decoded once, cached
under a key made of the source's content, and memory-mapped after that. A source that is missing or damaged is an
error that names the file and the remedy; no other data set is ever taken in its place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.data.cache import Arrays, load_or_build
from bench.data.cifar10 import Cifar10
from bench.data.digits import Digits
from bench.data.image_folder import ImageFolder
from bench.data.images import Images, Labels, Progress, find_folder, silent
from bench.data.parquet import Parquet
from bench.errors import DataError, did_you_mean

SPLITS = ("train", "test")
BACKGROUND = "background"
MOSAIC_IMAGE_SIZE, MOSAIC_MIN_IMAGE_SIZE = 32, 8


@dataclass(frozen=True)
class Split:
    """Images ``N×3×S×S`` (uint8, read-only) and labels ``N`` (int64)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class MosaicLayout:
    """Canvases of ``mosaic:DATA``: their side and that of the images on them, in pixels, and images a canvas."""

    canvas_size: int
    image_size: int
    images_per_canvas: int

    @classmethod
    def of(cls, canvas_size: int) -> MosaicLayout:
        """Images of 32 pixels, or half the canvas where that is less; as many as would fill half of it side by side.

        Raises `DataError` if the images would be too small to be recognised.
        """
        image_size = min(MOSAIC_IMAGE_SIZE, canvas_size // 2)
        if image_size < MOSAIC_MIN_IMAGE_SIZE:
            raise DataError(
                f"a mosaic's canvas of {canvas_size} pixels is too small: it takes images of half its side, which must "
                f"be at least {MOSAIC_MIN_IMAGE_SIZE} pixels. Set input_size to {2 * MOSAIC_MIN_IMAGE_SIZE} or more, "
                "for example 96."
            )
        return cls(canvas_size, image_size, (canvas_size // image_size) ** 2 // 2)


@dataclass(frozen=True)
class Dataset:
    """A decoded data set. ``sha256`` identifies its content: the source's bytes and how they were decoded.

    With a ``mosaic`` it is dense, one label a pixel: the splits hold the images that are laid out and their classes
    from 0, ``classes`` begins with the background, and `bench.data.mosaic.MosaicStream` makes the canvases.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    sha256: str
    mosaic: MosaicLayout | None = None


class Source(Protocol):
    """Where a data set comes from."""

    @property
    def name(self) -> str:
        """What to call it in records and reports."""

    def content_sha256(self, progress: Progress) -> str:
        """A hash of everything that the decoded images depend on."""

    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""

    def decode(self, split: str, size: int, progress: Progress) -> tuple[Images, Labels]:
        """The images ``N×3×size×size`` and labels of a split."""


def load_dataset(
    name: str,
    *,
    size: int = 32,
    data_dir: str | Path | None = None,
    classes: Sequence[str] = (),
    progress: Progress = silent,
) -> Dataset:
    """Load a data set by its name on the command line.

    Args:
        name: ``digits``, ``cifar10``, ``parquet:PATH`` or ``folder:PATH``, or ``mosaic:`` and one of these. A relative
            path is looked for in the current folder, then in ``data_dir``.
        size: side of the images in pixels; others are resized (bilinear, antialiased). Of a mosaic, the canvas's.
        data_dir: where archives and relative paths are found; ``ZOOBENCH_DATA`` if None.
        classes: take only images of these, and number the classes in this order; all if empty.
        progress: called while something long is done.

    Raises:
        DataError: the source is unknown, missing or damaged; the message names the file and the remedy.
    """
    kind, colon, inner = name.partition(":")
    if kind == "mosaic" and colon:
        return _load_mosaic(inner, MosaicLayout.of(size), data_dir, classes, progress)
    source = _source(name, data_dir or os.environ.get("ZOOBENCH_DATA"), progress)
    key = hashlib.sha256(f"{source.content_sha256(progress)} size={size} decoder=1".encode()).hexdigest()

    def build() -> Arrays:
        arrays: Arrays = {}
        for split in SPLITS:
            images, labels = source.decode(split, size, progress)
            _check_labels(name, split, labels, source.classes())
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        return arrays

    arrays = load_or_build(key, build)
    splits = {
        split: Split(arrays[f"{split}_images"].view(np.uint8), arrays[f"{split}_labels"].view(np.int64))
        for split in SPLITS
    }
    dataset = Dataset(source.name, source.classes(), splits["train"], splits["test"], key)
    return _select(dataset, classes) if classes else dataset


def hold_out(labels: Labels, fraction: float, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split a train set's indices into ``train`` and ``val``: stratified, the same for every run.

    Of each class ``fraction`` is held out, rounded to the nearest image; 0 holds out nothing.
    """
    # RandomState's stream is frozen by NumPy's policy; a Generator's may change between versions.
    random = np.random.RandomState(seed)
    members = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    val = np.sort(np.concatenate([each[: round(fraction * len(each))] for each in members]))
    return np.setdiff1d(np.arange(len(labels)), val), val


def limit(count: int, at_most: int | None, seed: int = 0) -> npt.NDArray[np.int64]:
    """Indices of at most ``at_most`` of ``count`` images, drawn without replacement, the same for every run."""
    if at_most is None or at_most >= count:
        return np.arange(count)
    return np.sort(np.random.RandomState(seed).permutation(count)[:at_most])


def _select(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """The images of some classes alone, numbered anew. Raises `DataError` for a class that the data set has not."""
    for name in classes:
        if name not in dataset.classes:
            raise DataError(
                f"the data set {dataset.name!r} has no class {name!r}.{did_you_mean(name, dataset.classes)} "
                f"It has {', '.join(dataset.classes)}."
            )
    numbers = np.full(len(dataset.classes), -1)
    numbers[[dataset.classes.index(name) for name in classes]] = np.arange(len(classes))

    def select(split: Split) -> Split:
        labels = numbers[split.labels]
        return Split(split.images[labels >= 0], labels[labels >= 0])

    key = hashlib.sha256(f"{dataset.sha256} classes={list(classes)}".encode()).hexdigest()
    return Dataset(dataset.name, tuple(classes), select(dataset.train), select(dataset.test), key)


def _load_mosaic(
    name: str, layout: MosaicLayout, data_dir: str | Path | None, classes: Sequence[str], progress: Progress
) -> Dataset:
    if not name or name.startswith("mosaic:"):
        raise DataError(
            f"the data set 'mosaic:{name}' lacks the images to lay out. Write, for example, mosaic:digits or "
            "mosaic:cifar10."
        )
    images = load_dataset(name, size=layout.image_size, data_dir=data_dir, classes=classes, progress=progress)
    sizes = f"canvas={layout.canvas_size} image={layout.image_size} images={layout.images_per_canvas}"
    key = hashlib.sha256(f"{images.sha256} {sizes} mosaic=1".encode()).hexdigest()
    return Dataset(
        f"mosaic:{images.name}", (BACKGROUND, *images.classes), images.train, images.test, key, mosaic=layout
    )


def _source(name: str, data_dir: str | Path | None, progress: Progress) -> Source:
    kind, colon, path = name.partition(":")
    if name == "digits":
        return Digits()
    if name == "cifar10":
        return Cifar10.find(data_dir, progress)
    if colon and kind == "parquet":
        return Parquet(find_folder(path, data_dir, "parquet:data/cifar10"))
    if colon and kind == "folder":
        return ImageFolder(find_folder(path, data_dir, "folder:data/flowers"))
    raise DataError(
        f"no data set is named {name!r}.{did_you_mean(kind, ['digits', 'cifar10', 'parquet', 'folder', 'mosaic'])} "
        "Possible: digits, cifar10, parquet:PATH, folder:PATH, mosaic:DATA."
    )


def _check_labels(name: str, split: str, labels: Labels, classes: tuple[str, ...]) -> None:
    if not len(labels):
        raise DataError(f"the split {split!r} of {name!r} holds no images. Expected at least one.")
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise DataError(
            f"label {labels[outside[0]]} of image {outside[0]} in the split {split!r} of {name!r} is out of range: "
            f"there are {len(classes)} classes, 0 to {len(classes) - 1}. Mend the labels or the class names."
        )
