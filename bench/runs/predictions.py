"""What a network answered for each test image, stored beside its record: two networks can be compared image by image.

``predictions/RUN_ID.npz`` in the results folder holds, for each test image in order,

- ``labels`` and ``predicted``: the true and the most likely class, uint8 (uint16 from 257 classes on);
- ``confidence``: the probability of the predicted class, float16;

and ``test_sha256``, which is equal for two runs if and only if they were tested on the same images in the same order.

``predictions/images/HASH.npz`` is shared by the runs of one test set: thumbnails (``images``, uint8 N×C×H×W, at most
32 pixels) of the first few images, by ``index``, that every run stored so far got wrong.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.stores import file_system, names_in, read_arrays
from bench.timing.probes import Arrays, save_probes
from bench.training.evaluation import Predictions

THUMBNAILS, SIDE = 24, 32


def save_predictions(
    results: str, run_id: str, predictions: Predictions, images: NDArray[np.uint8], data_sha256: str
) -> None:
    """Store a run's predictions, and the thumbnails anew. Raises `OSError`.

    ``images`` are the test images, uint8 N×C×H×W in the order of the predictions; ``data_sha256`` is the hash of the
    data set's content.
    """
    folder = f"{results.rstrip('/')}/predictions"
    labels, predicted = (each.numpy() for each in (predictions.labels, predictions.predicted))
    small = np.uint8 if max(labels.max(), predicted.max()) < 256 else np.uint16
    test = hashlib.sha256(data_sha256.encode() + labels.astype("<i8").tobytes()).hexdigest()
    arrays: Arrays = {
        "labels": labels.astype(small),
        "predicted": predicted.astype(small),
        "confidence": predictions.confidence.numpy().astype(np.float16),
        "test_sha256": np.array(test),
    }
    save_probes(arrays, f"{folder}/{run_id}.npz")
    wrong = _wrong_in_every_run(folder, test, labels != predicted)[:THUMBNAILS]
    thumbnails = np.array([_thumbnail(images[k]) for k in wrong], dtype=np.uint8)
    save_probes({"index": wrong.astype(np.int64), "images": thumbnails}, f"{folder}/images/{test[:16]}.npz")


def _wrong_in_every_run(folder: str, test: str, wrong: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of the images that all runs of this test set got wrong; ``wrong`` are those of one of them."""
    fs, local = file_system(folder)
    for name in names_in(fs, local):
        if not wrong.any():
            break
        stored = read_arrays(fs, f"{local}/{name}") if name.endswith(".npz") else {}
        if {"labels", "predicted"} <= stored.keys() and str(stored.get("test_sha256")) == test:
            wrong = wrong & (stored["labels"] != stored["predicted"])
    return np.flatnonzero(wrong)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A C×H×W image, brought down to at most 32 pixels."""
    if max(image.shape[1:]) <= SIDE:
        return image
    shrink = SIDE / max(image.shape[1:])
    size = tuple(max(round(side * shrink), 1) for side in image.shape[:0:-1])
    channels = [np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.LANCZOS)) for channel in image]
    return np.stack(channels)
