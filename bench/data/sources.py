"""Data sets by name: ``digits``, ``cifar10``, ``parquet:PATH``, ``folder:PATH``, and ``mosaic:DATA`` of any of these.

Every source becomes the same thing: two splits of uint8 images ``N×3×S×S`` and int64 labels, decoded once, cached
under a key made of the source's content, and memory-mapped after that. A source that is missing or damaged is an
error that names the file and the remedy; no other data set is ever taken in its place.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.data.cache import Arrays, load_or_build
from bench.data.cifar10 import Cifar10
from bench.data.decoding import DECODER_VERSION
from bench.data.digits import Digits
from bench.data.files import find_folder
from bench.data.image_folder import ImageFolder
from bench.data.images import Decoded, Images, Labels, Progress, silent
from bench.data.parquet import Parquet
from bench.errors import DataError, did_you_mean

SPLITS = ("train", "test")
BACKGROUND = "background"
DECODED_SIZE = 32
"""The side in pixels at which images are decoded where nothing asks for another."""
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

    def decode(self, split: str, size: int, progress: Progress) -> Decoded:
        """The images ``N×3×size×size`` and labels of a split."""

    def image_side(self) -> int:
        """The short side in pixels that images have before they are resized: the median of a sample."""


def load_dataset(
    name: str,
    *,
    size: int = DECODED_SIZE,
    data_dir: str | Path | None = None,
    classes: Sequence[str] = (),
    label_column: str | None = None,
    progress: Progress = silent,
) -> Dataset:
    """Load a data set by its name on the command line.

    Args:
        name: ``digits``, ``cifar10``, ``parquet:PATH`` or ``folder:PATH``, or ``mosaic:`` and one of these. A relative
            path is looked for in the current folder, then in ``data_dir``.
        size: side of the images in pixels; others are resized (bilinear, antialiased), and cut to their centre where
            they are not square. Of a mosaic, the canvas's.
        data_dir: where archives and relative paths are found; ``ZOOBENCH_DATA`` if None.
        classes: take only images of these, and number the classes in this order; all if empty.
        label_column: of Parquet files; ``label``, or the only one, if None.
        progress: called while something long is done.

    Raises:
        DataError: the source is unknown, missing, incomplete or damaged, or has fewer than two classes; the message
            names the file and the remedy.
    """
    kind, colon, inner = name.partition(":")
    mosaic = MosaicLayout.of(size) if kind == "mosaic" and colon else None
    if mosaic is not None and (not inner or inner.startswith("mosaic:")):
        raise DataError(
            f"the data set {name!r} lacks the images to lay out. Write, for example, mosaic:digits or mosaic:cifar10."
        )
    images = _load_images(
        inner if mosaic else name,
        mosaic.image_size if mosaic else size,
        data_dir or os.environ.get("ZOOBENCH_DATA"),
        label_column,
        progress,
    )
    if classes:
        images = _select(images, classes)
    dataset = _lay_out(images, mosaic) if mosaic else images
    if len(dataset.classes) < 2:  # a mosaic has its background besides
        raise DataError(
            f"the data set {name!r} has the single class {dataset.classes[0]!r}: any network is right always. "
            "Two classes are needed at least."
        )
    return dataset


def decoded_size(
    name: str, network_size: int, *, data_dir: str | Path | None = None, label_column: str | None = None
) -> int:
    """The side at which to decode a data set's images for a network that takes them at ``network_size`` pixels.

    That, but not more than the images have by themselves: the rest is done batch by batch, where CIFAR-10 decoded at
    224 pixels would fill nine gigabytes. Of a mosaic, the canvas's side: its labels are not resized.

    Raises `DataError`.
    """
    if name.startswith("mosaic:") or network_size <= DECODED_SIZE:
        return network_size
    source = _source(name, data_dir or os.environ.get("ZOOBENCH_DATA"), label_column, silent)
    return max(min(network_size, source.image_side()), DECODED_SIZE)


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


def split_train(
    labels: Labels, limit_train: int | None, val_fraction: float, *, needs_val: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of ``train`` and ``val`` among a train set's labels: `limit` first, then `hold_out` of what is left.

    Raises `DataError` where nothing would be left to train on, or to find a target accuracy on.
    """
    kept = limit(len(labels), limit_train)
    train, val = hold_out(np.asarray(labels)[kept], val_fraction)
    if not len(train):
        raise DataError(
            f"val_fraction = {val_fraction} of {len(kept)} images leaves none to train on. Lower it, or take more "
            "images."
        )
    if needs_val and not len(val):
        raise DataError(
            f"target_top1 is looked for on 'val', and val_fraction = {val_fraction} of {len(kept)} images, class by "
            "class, is none. Raise val_fraction, or take more images."
        )
    return kept[train], kept[val]


def _load_images(
    name: str, size: int, data_dir: str | Path | None, label_column: str | None, progress: Progress
) -> Dataset:
    """A data set of whole images with all its classes, from the cache if it is there."""
    source = _source(name, data_dir, label_column, progress)
    column = f" label={label_column}" if label_column else ""
    content = f"{source.content_sha256(progress)} size={size}{column}"
    classes = source.classes()
    _check_distinct(classes, f"the data set {name!r}")

    def build() -> Arrays:
        arrays: Arrays = {}
        decoder = 1
        for split in SPLITS:
            decoded = source.decode(split, size, progress)
            _check_labels(name, split, decoded.labels, classes)
            arrays |= {f"{split}_images": decoded.images, f"{split}_labels": decoded.labels}
            decoder = max(decoder, decoded.decoder)
        return arrays | {"decoder": np.array([decoder])}

    arrays = load_or_build(_hash(f"{content} cache={DECODER_VERSION}"), build)
    # Named by the first decoder to give these pixels, so that a later one changes the identity of what it changes only.
    key = _hash(f"{content} decoder={int(arrays['decoder'][0])}")
    splits = {
        split: Split(arrays[f"{split}_images"].view(np.uint8), arrays[f"{split}_labels"].view(np.int64))
        for split in SPLITS
    }
    return Dataset(source.name, classes, splits["train"], splits["test"], key)


def _select(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """The images of some classes alone, numbered anew. Raises `DataError` for a class that the data set has not."""
    _check_distinct(classes, "classes")
    for name in classes:
        if name not in dataset.classes:
            raise DataError(
                f"the data set {dataset.name!r} has no class {name!r}.{did_you_mean(name, dataset.classes)} "
                f"It has {', '.join(dataset.classes)}."
            )
    numbers = np.full(len(dataset.classes), -1)
    numbers[[dataset.classes.index(name) for name in classes]] = np.arange(len(classes))

    def select(name: str, split: Split) -> Split:
        labels = numbers[split.labels]
        if not (labels >= 0).any():
            raise DataError(f"the split {name!r} of {dataset.name!r} holds no images of {', '.join(classes)}.")
        return Split(split.images[labels >= 0], labels[labels >= 0])

    key = _hash(f"{dataset.sha256} classes={list(classes)}")
    return Dataset(dataset.name, tuple(classes), select("train", dataset.train), select("test", dataset.test), key)


def _lay_out(images: Dataset, layout: MosaicLayout) -> Dataset:
    """The same images, to be laid out on canvases."""
    sizes = f"canvas={layout.canvas_size} image={layout.image_size} images={layout.images_per_canvas}"
    key = _hash(f"{images.sha256} {sizes} mosaic=1")
    return Dataset(
        f"mosaic:{images.name}", (BACKGROUND, *images.classes), images.train, images.test, key, mosaic=layout
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _source(name: str, data_dir: str | Path | None, label_column: str | None, progress: Progress) -> Source:
    kind, colon, path = name.partition(":")
    if label_column is not None and kind != "parquet":
        raise DataError(
            f"label_column = {label_column!r} chooses a column of Parquet files, and {name!r} has no columns. Leave it "
            "out, or use data = 'parquet:PATH'."
        )
    if name == "digits":
        return Digits()
    if name == "cifar10":
        return Cifar10.find(data_dir, progress)
    if colon and kind == "parquet":
        return Parquet(find_folder(path, data_dir, "parquet:data/cifar10"), label_column)
    if colon and kind == "folder":
        return ImageFolder(find_folder(path, data_dir, "folder:data/flowers"))
    raise DataError(
        f"no data set is named {name!r}.{did_you_mean(kind, ['digits', 'cifar10', 'parquet', 'folder', 'mosaic'])} "
        "Possible: digits, cifar10, parquet:PATH, folder:PATH, mosaic:DATA."
    )


def _check_distinct(classes: Sequence[str], what: str) -> None:
    repeated = sorted(name for name, count in Counter(classes).items() if count > 1)
    if repeated:
        raise DataError(
            f"{what} names {', '.join(map(repr, repeated))} more than once. Each class needs a name of its own."
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
