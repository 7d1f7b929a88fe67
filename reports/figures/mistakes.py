"""Figures of what the models get wrong: confusion, accuracy by class, calibration, agreement, the hardest images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from reports.data.metrics import metric
from reports.data.safety import label_text
from reports.figures.style import MUTED, PALETTE, figure_style, new_figure, nothing_to_show, picture_sheet

ANNOTATED = 12
"""The most rows and columns of a matrix whose numbers are written in."""


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
        off = shares.copy()
        np.fill_diagonal(off, np.nan)
        brightest = max(float(np.nanmax(off)) if np.isfinite(off).any() else 1.0, 1.0)
        figure, axes = new_figure((4.8, 4.5))
        _heatmap(axes, shares, classes, classes, vmin=0, vmax=brightest)
        axes.set(xlabel="Predicted class", ylabel="True class")
    return figure


def plot_per_class_accuracy(accuracy: pd.DataFrame) -> Figure:
    """Accuracy of each model on each class, in percent: the table of `per_class_accuracy`."""
    with figure_style():
        if accuracy.empty:
            return nothing_to_show("No run has a confusion matrix.")
        figure, axes = new_figure((4.8, 1.5 + 0.27 * len(accuracy)))
        _heatmap(axes, 100 * accuracy.to_numpy(float), list(map(str, accuracy.index)), list(map(str, accuracy)))
        axes.set(xlabel="Class", ylabel="")
    return figure


def plot_agreement(agreement: pd.DataFrame) -> Figure:
    """Share of the test images that two models put into the same class, in percent; models by models."""
    with figure_style():
        if len(agreement) < 2:
            return nothing_to_show("No two models have predictions.")
        shares = 100 * agreement.to_numpy(float)
        shares[np.triu_indices(len(shares))] = np.nan  # it is symmetric, and each agrees with itself
        names = list(map(str, agreement.index))
        figure, axes = new_figure((4.8, 1.7 + 0.27 * len(agreement)))
        _heatmap(axes, shares[1:, :-1], names[1:], names[:-1])
        axes.set(xlabel="", ylabel="")
        axes.grid(visible=False)
    return figure


def _heatmap(
    axes: Axes, shares: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], **scale: float
) -> None:
    """A heatmap of percentages; numbers and names are written in where there are few enough."""
    few = shares.shape[1] <= ANNOTATED
    sns.heatmap(
        shares, ax=axes, cmap="crest", annot=few, fmt=".0f", annot_kws={"size": 8.5}, cbar=False,
        xticklabels=[label_text(name, 14) for name in columns] if few else False,
        yticklabels=[label_text(name, 20) for name in rows] if few or len(rows) <= 2 * ANNOTATED else False,
        linewidths=0.5 if few else 0, linecolor="none", rasterized=not few, **scale,
    )  # fmt: skip
    axes.tick_params(length=0)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation=45, rotation_mode="anchor")
    axes.tick_params(axis="y", rotation=0)


def merge_bins(bins: Sequence[Sequence[float | None]], count: int = 10) -> pd.DataFrame:
    """Merge the calibration bins of several runs into ``count`` equal bins of confidence.

    Columns: confidence and accuracy (means weighted by images, fractions), images. Empty bins are left out.
    """
    frame = pd.DataFrame(bins, columns=["confidence", "accuracy", "images"]).astype(float).dropna()
    frame = frame[frame.images > 0]
    weighted = frame[["confidence", "accuracy"]].mul(frame.images, axis=0).assign(images=frame.images)
    sums = weighted.groupby(np.minimum((frame.confidence * count).astype(int), count - 1)).sum()
    sums[["confidence", "accuracy"]] = sums[["confidence", "accuracy"]].div(sums.images, axis=0)
    return sums.reset_index(drop=True)


def plot_reliability(
    calibration: Mapping[str, Sequence[Sequence[float | None]]], errors: Mapping[str, float], shown: int = 6
) -> Figure:
    """Accuracy against mean confidence, one line per model; below the diagonal a model is overconfident.

    ``calibration`` has the bins of all of a model's runs. The legend gives its calibration error from ``errors``, the
    leaderboard's ``calibration_error``: that of the line, which merges runs and bins, would be smaller, since errors of
    opposite sign cancel in it.
    """
    with figure_style():
        if not calibration:
            return nothing_to_show("No run has calibration bins.")
        figure, axes = new_figure()
        axes.plot([0, 100], [0, 100], color=MUTED, lw=1, ls=":", label="perfectly calibrated")
        for k, (model, bins) in enumerate(list(calibration.items())[:shown]):
            merged = merge_bins(bins)
            error = metric("calibration_error").text(errors.get(model))
            sns.lineplot(
                x=merged.confidence * 100, y=merged.accuracy * 100, ax=axes, color=PALETTE[k % len(PALETTE)],
                marker="o", markersize=5, lw=1.4, label=f"{label_text(model, 22)}, error {error}%", errorbar=None,
            )  # fmt: skip
        axes.set(xlabel="Confidence (%)", ylabel="Accuracy (%)", xlim=(0, 101), ylim=(0, 101))
        figure.legends.clear()
        axes.legend(loc="upper left")
    return figure


def plot_hard_images(images: Sequence[NDArray[np.uint8]], labels: Sequence[str], answers: Sequence[str]) -> Figure:
    """Pictures (C×H×W) that every model gets wrong, with the true class and, below it, the answer most models give."""
    with figure_style():
        names = ([label_text(name, 12) for name in each] for each in (labels, answers))
        titles = [f"{label}\n({answer})" for label, answer in zip(*names, strict=True)]
        return picture_sheet(images, titles) if len(images) else nothing_to_show("No picture was stored.")
