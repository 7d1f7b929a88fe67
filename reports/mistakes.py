"""Figures of what the models get wrong: confusion, accuracy by class, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from reports.loading import calibration_error
from reports.metrics import metric
from reports.safety import label_text
from reports.style import MUTED, PALETTE, figure_style, new_figure, nothing_to_show

ANNOTATED = 12
"""Matrices of at most so many classes have their numbers written in."""


def confusion_shares(counts: ArrayLike) -> NDArray[np.float64]:
    """Counts of true class × predicted class as shares of the true class; a class without images is NaN."""
    matrix = np.asarray(counts, dtype=float)
    if matrix.size == 0:
        return np.empty((0, 0))
    total = matrix.sum(axis=1, keepdims=True)
    shares = np.full(matrix.shape, np.nan)
    np.divide(matrix, total, out=shares, where=total > 0)
    return shares


def per_class_accuracy(confusion: Mapping[str, ArrayLike], classes: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each model (row) on the images of each class (column), as fractions."""
    rows = {model: np.diag(confusion_shares(counts)) for model, counts in confusion.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(classes))


def plot_confusion(counts: ArrayLike, classes: Sequence[str]) -> Figure:
    """Share of each true class (row) that was taken for each class (column), in percent."""
    shares = 100 * confusion_shares(counts)
    with figure_style():
        if shares.size == 0:
            return nothing_to_show("No run has a confusion matrix.")
        figure, axes = new_figure((4.8, 4.5))
        names = [label_text(name, 14) for name in classes]
        few = len(classes) <= ANNOTATED
        off = shares.copy()
        np.fill_diagonal(off, np.nan)
        brightest = max(float(np.nanmax(off)) if np.isfinite(off).any() else 1.0, 1.0)
        sns.heatmap(
            shares, ax=axes, cmap="crest", vmin=0, vmax=brightest, annot=few, fmt=".0f", annot_kws={"size": 8.5},
            xticklabels=names if few else False, yticklabels=names if few else False, linewidths=0.5 if few else 0,
            linecolor="none", rasterized=not few, cbar=False,
        )  # fmt: skip
        axes.set(xlabel="Predicted class", ylabel="True class")
        axes.tick_params(length=0)
        axes.tick_params(axis="x", rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
        axes.tick_params(axis="y", rotation=0)
    return figure


def plot_per_class_accuracy(accuracy: pd.DataFrame) -> Figure:
    """Accuracy of each model on each class, in percent: the table of `per_class_accuracy`."""
    with figure_style():
        if accuracy.empty:
            return nothing_to_show("No run has a confusion matrix.")
        few = accuracy.shape[1] <= ANNOTATED
        figure, axes = new_figure((4.8, 1.5 + 0.27 * len(accuracy)))
        sns.heatmap(
            accuracy.to_numpy(float) * 100, ax=axes, cmap="crest", annot=few, fmt=".0f", annot_kws={"size": 8.5},
            xticklabels=[label_text(str(c), 14) for c in accuracy] if few else False,
            yticklabels=[label_text(str(m), 20) for m in accuracy.index], linewidths=0.5 if few else 0,
            linecolor="none", rasterized=not few, cbar=False,
        )  # fmt: skip
        axes.set(xlabel="Class", ylabel="")
        axes.tick_params(length=0)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation=45, rotation_mode="anchor")
        axes.tick_params(axis="y", rotation=0)
    return figure


def merge_bins(bins: Sequence[Sequence[float | None]], count: int = 10) -> pd.DataFrame:
    """Calibration bins of several runs brought together in ``count`` equal bins of confidence.

    Columns: confidence and accuracy (means weighted by images, fractions), images. Empty bins are left out.
    """
    frame = pd.DataFrame(bins, columns=["confidence", "accuracy", "images"]).astype(float).dropna()
    frame = frame[frame.images > 0]
    weighted = frame[["confidence", "accuracy"]].mul(frame.images, axis=0).assign(images=frame.images)
    sums = weighted.groupby(np.minimum((frame.confidence * count).astype(int), count - 1)).sum()
    sums[["confidence", "accuracy"]] = sums[["confidence", "accuracy"]].div(sums.images, axis=0)
    return sums.reset_index(drop=True)


def plot_reliability(calibration: Mapping[str, Sequence[Sequence[float | None]]], shown: int = 6) -> Figure:
    """Accuracy against mean confidence, a line a model; below the diagonal a model is surer than it should be.

    The legend gives the calibration error: Guo et al. 2017, arXiv:1706.04599.
    """
    with figure_style():
        if not calibration:
            return nothing_to_show("No run has calibration bins.")
        figure, axes = new_figure()
        axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=":", label="perfectly calibrated")
        for k, (model, bins) in enumerate(list(calibration.items())[:shown]):
            merged = merge_bins(bins)
            error = metric("calibration_error").text(calibration_error(merged.to_numpy().tolist()))
            sns.lineplot(
                x=merged.confidence * 100, y=merged.accuracy * 100, ax=axes, color=PALETTE[k % len(PALETTE)],
                marker="o", markersize=5, lw=1.4, label=f"{label_text(model, 22)}, error {error}%", errorbar=None,
            )  # fmt: skip
        axes.set(xlabel="Confidence (%)", ylabel="Accuracy (%)", xlim=(0, 101), ylim=(0, 101))
        axes.legend(loc="upper left")
    return figure
