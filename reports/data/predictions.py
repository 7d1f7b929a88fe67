"""The predictions of single runs for each test image, and where they differ; `bench.runs.predictions` writes the files.

A file that is missing, damaged or inconsistent with its record counts as absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.records import Folders, own_or_inner_plans
from bench.stores import file_system, names_in, read_arrays
from reports.data.statistics import MAX_TESTED


@dataclass(frozen=True)
class Answers:
    """The answers of one run of each model to the same test images.

    ``labels`` has N classes, ``predicted`` is models × N, ``confidence`` is that of the answers; ``thumbnails`` holds
    uint8 pictures (C×H×W) of some images, by their index.
    """

    models: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    thumbnails: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def wrong_in_all(self) -> NDArray[np.intp]:
        """Indices of the images that every model gets wrong."""
        return np.flatnonzero((self.predicted != self.labels).all(axis=0))


@dataclass(frozen=True)
class ImageComparison:
    """How models' answers to the same images differ.

    ``right_wrong[i][j]`` counts the images that i classifies rightly and j wrongly; ``agreeing[i][j]`` those that both
    give the same class. ``images`` is the number of all.
    """

    models: list[str]
    images: int
    right_wrong: list[list[int]]
    agreeing: list[list[int]]


def compare_answers(answers: Answers) -> ImageComparison:
    """Count where models agree, and where one alone is right."""
    right = (answers.predicted == answers.labels).astype(np.int64)
    agreeing = [(answers.predicted == own).sum(axis=1).tolist() for own in answers.predicted]
    return ImageComparison(list(answers.models), len(answers.labels), (right @ (1 - right).T).tolist(), agreeing)


def compare_images(results: Folders, runs: pd.DataFrame) -> dict[str, ImageComparison]:
    """For each setting of `load_runs` in which the predictions of two models or more are stored: where they differ."""
    return {setting: compare_answers(answers) for setting, answers in load_answers(results, runs).items()}


def load_answers(results: Folders, runs: pd.DataFrame) -> dict[str, Answers]:
    """The answers of the first seed of each model, by setting; only of models tested on the same images.

    Of more than `MAX_TESTED` models of a setting the best are taken, as in the tests over seeds.
    """
    folders = [file_system(f"{plan}/predictions") for plan in own_or_inner_plans(results)]
    stored = {name: (fs, f"{folder}/{name}") for fs, folder in folders for name in names_in(fs, folder)}
    known = runs[[f"{run}.npz" in stored for run in runs.run_id]] if stored else runs.iloc[:0]
    known = known[(known.status == "completed") & known.test_top1.notna()]
    found: dict[str, Answers] = {}
    for setting, rows in known.groupby("setting", sort=False):
        best = rows.groupby("model").test_top1.mean().sort_values(ascending=False).index[:MAX_TESTED]
        files: dict[str, dict[str, NDArray[Any]]] = {}
        rows = rows[rows.model.isin(best)].sort_values("seed", kind="stable")
        for run_id, model, top1 in zip(rows.run_id, rows.model, rows.test_top1, strict=True):
            if model not in files and (arrays := _read(*stored[f"{run_id}.npz"], top1)):
                files[model] = arrays
        tests = Counter(str(arrays["test_sha256"]) for arrays in files.values())
        if not tests:
            continue
        test = tests.most_common(1)[0][0]
        files = {model: arrays for model, arrays in files.items() if str(arrays["test_sha256"]) == test}
        if len(files) > 1:
            thumbnails = (_thumbnails(fs, f"{folder}/images/{test[:16]}.npz") for fs, folder in folders)
            found[str(setting)] = _answers(files, dict(item for each in thumbnails for item in each.items()))
    return found


def _answers(files: Mapping[str, Mapping[str, NDArray[Any]]], thumbnails: dict[int, NDArray[np.uint8]]) -> Answers:
    labels = next(iter(files.values()))["labels"].astype(np.int64)
    predicted = np.stack([arrays["predicted"] for arrays in files.values()]).astype(np.int64)
    confidence = np.stack([arrays["confidence"] for arrays in files.values()]).astype(float)
    return Answers(list(files), labels, predicted, confidence, thumbnails)


def _read(fs: Any, path: str, top1: float) -> dict[str, NDArray[Any]]:
    """A run's file, if it holds what it should and gives the accuracy of the record."""
    arrays = read_arrays(fs, path)
    wanted = [arrays.get(name, np.empty((0, 0))) for name in ("labels", "predicted", "confidence")]
    if not all(each.ndim == 1 and 0 < len(each) == len(wanted[0]) and each.dtype.kind in "uif" for each in wanted):
        return {}
    agrees = abs(float((wanted[0] == wanted[1]).mean()) - top1) < 0.5 / len(wanted[0])
    return arrays if agrees and arrays.get("test_sha256", np.empty(1)).ndim == 0 else {}


def _thumbnails(fs: Any, path: str) -> dict[int, NDArray[np.uint8]]:
    arrays = read_arrays(fs, path)
    index, images = arrays.get("index"), arrays.get("images")
    if index is None or images is None or index.ndim != 1 or images.ndim != 4 or len(index) != len(images):
        return {}
    return {int(k): image.astype(np.uint8) for k, image in zip(index, images, strict=True)}
