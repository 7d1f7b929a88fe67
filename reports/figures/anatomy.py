"""Figures of one architecture: its stages, where its cost goes, how far it sees, and what it looks at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from reports.data.safety import label_text
from reports.figures.style import (
    ACCENT,
    INK,
    MUTED,
    PALETTE,
    as_picture,
    figure_style,
    new_figure,
    nothing_to_show,
    picture_sheet,
)

LAYER_COLUMNS = ("name", "kind", "params", "macs", "activations", "output_shape", "receptive_field", "seconds")
SHARES = {"params": "Parameters", "macs": "MACs", "activations": "Activations", "seconds": "Time"}
MOST_STAGES = 14


def layer_table(card: Mapping[str, Any], probes: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """The card's layers, one row each, with `LAYER_COLUMNS`; ``seconds`` of the forward pass where it was measured."""
    timed = dict(zip(_list(probes.get("layer_names")), _list(probes.get("layer_seconds")), strict=False))
    # A network that labels pixels is timed inside `ImageLogits`, which puts a word before the card's names.
    taken = {str(name).removeprefix("network."): seconds for name, seconds in timed.items()} | timed
    layers = card.get("layers")
    rows = [row for row in layers if isinstance(row, dict)] if isinstance(layers, list | tuple) else []
    table = pd.DataFrame([{key: row.get(key) for key in LAYER_COLUMNS} for row in rows], columns=list(LAYER_COLUMNS))
    table["name"] = table["name"].map(str)
    table["kind"] = table["kind"].map(str)
    table["seconds"] = table["name"].map(taken)
    for key in ("params", "macs", "activations", "receptive_field", "seconds"):
        table[key] = pd.to_numeric(table[key], errors="coerce").astype(float)
    return table


def fold(layers: pd.DataFrame, most: int = MOST_STAGES) -> pd.DataFrame:
    """Group layers into stages by the first parts of their names, as finely as ``most`` rows allow.

    Columns: name, params, macs, activations, seconds (sums), output_shape and receptive_field (of the last layer).
    """
    parts = [str(name).split(".") for name in layers.name]
    depths = range(1, max(map(len, parts), default=1) + 1)
    names = [pd.Series([".".join(part[:depth]) for part in parts], dtype=object) for depth in depths]
    finest = max((name for name in names if name.nunique() <= most), key=lambda name: name.nunique(), default=names[0])
    sums = {key: (key, lambda values: values.sum(min_count=1)) for key in ("params", "macs", "activations", "seconds")}
    last = {key: (key, "last") for key in ("output_shape", "receptive_field")}
    return layers.groupby(finest.to_numpy(), sort=False).agg(**sums, **last).rename_axis("name").reset_index()


def plot_stages(stages: pd.DataFrame) -> Figure:
    """The network from left to right: one box per stage with MACs, as high as its maps, as wide as their channels."""
    shaped = [(str(row["name"]), _shape(row["output_shape"]), float(row["macs"])) for row in stages.to_dict("records")]
    known = [(name, shape, macs) for name, shape, macs in shaped if shape and macs > 0][:MOST_STAGES]
    with figure_style():
        if not known:
            return nothing_to_show("The card has no stages.")
        figure, axes = new_figure((4.8, 2.9))
        axes.axis("off")
        total, x = float(stages.macs.sum()) or 1.0, 0.0
        largest = max(shape[1] for _, shape, _ in known)
        for k, (name, (channels, size), macs) in enumerate(known):
            width, height = 0.35 + 0.13 * math.log2(max(channels, 1)), 0.12 + 0.88 * math.sqrt(size / max(largest, 1))
            share = macs / total if macs == macs else 0.0
            box = FancyBboxPatch(
                (x, -height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.04", facecolor=PALETTE[0],
                alpha=0.25 + 0.7 * share, edgecolor=INK, linewidth=0.8, mutation_aspect=0.4,
            )  # fmt: skip
            axes.add_patch(box)
            middle = x + width / 2
            axes.text(middle, 0.56, label_text(name, 16), ha="left", va="bottom", rotation=45, fontsize=8.5, color=INK)
            low = -0.56 - 0.14 * (k % 2)
            axes.text(middle, low, f"{channels}×{size}²", ha="center", va="top", fontsize=8, color=MUTED)
            if k:
                axes.annotate("", (x - 0.02, 0), (x - 0.2, 0), arrowprops={"arrowstyle": "->", "color": MUTED, "lw": 1})
            x += width + 0.22
        axes.set(xlim=(-0.1, x + 0.3), ylim=(-0.85, 1.15))
    return figure


def plot_shares(stages: pd.DataFrame) -> Figure:
    """The share of each stage in parameters, MACs, activations and time, in percent; stages below 0.5% are left out."""
    known = [key for key in SHARES if stages[key].sum() > 0]
    with figure_style():
        if not known:
            return nothing_to_show("The card has no counts by layer.")
        shares = 100 * stages[known] / stages[known].sum()
        shares = shares.assign(name=[label_text(name, 22) for name in stages.name])[(shares >= 0.5).any(axis=1)]
        long = shares.melt("name")
        figure, axes = new_figure((4.8, 1.2 + 0.13 * len(shares) * (1 + len(known))))
        sns.barplot(
            long.assign(variable=long.variable.map(SHARES)), y="name", x="value", hue="variable", ax=axes,
            palette=list(PALETTE[: len(known)]), errorbar=None, saturation=1,
        )  # fmt: skip
        axes.set(xlabel="Share of the network (%)", ylabel="")
        axes.grid(visible=False, axis="y")
        axes.legend(title="", loc="best")
    return figure


def plot_receptive_field(layers: pd.DataFrame, input_size: float | None = None) -> Figure:
    """The receptive field in input pixels after each layer: one point per layer, and a line for the largest so far.

    A point below the line is a branch that sees less, such as a shortcut. The dashed line is the size of the input.
    """
    known = layers[layers.receptive_field.notna()].reset_index(drop=True)
    with figure_style():
        if known.empty:
            return nothing_to_show("The card has no receptive fields.")
        figure, axes = new_figure()
        axes.step(known.index + 1, known.receptive_field.cummax(), where="mid", lw=1.8, color=PALETTE[0])
        sns.scatterplot(x=known.index + 1, y=known.receptive_field, ax=axes, s=14, linewidth=0, color=PALETTE[0])
        if input_size:
            axes.axhline(input_size, color=ACCENT, lw=1.2, ls="--", label=f"input size, {input_size:g} pixels")
            axes.legend(loc="best")
        axes.set(xlabel="Layer", ylabel="Receptive field (pixels)")
    return figure


def plot_kernels(kernels: NDArray[Any]) -> Figure:
    """The first layer's kernels, each scaled to its own range; in colour if they have three input channels."""
    with figure_style():
        tiles = [_kernel(kernel) for kernel in kernels[:64]]
        return _sheet(tiles, 8 if len(tiles) > 8 else max(len(tiles), 1))


def plot_feature_maps(maps: NDArray[Any], image: NDArray[Any]) -> Figure:
    """An image, and the maps of one layer for it (channels × height × width), each scaled to its own range."""
    with figure_style():
        tiles: list[NDArray[Any]] = [as_picture(image), *(_scaled(channel) for channel in maps)]
        return _sheet(tiles, min(len(tiles), 9))


def plot_grad_cam(
    images: NDArray[Any],
    heat: NDArray[Any],
    labels: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
) -> Figure:
    """Images overlaid with the Grad-CAM of the answer; the titles give the answers."""
    with figure_style():
        if len(images) == 0:
            return nothing_to_show("No Grad-CAM is stored.")
        titles = []
        for answer, label, sure in zip(predicted, labels, confidence, strict=True):
            title = f"{label_text(answer, 12)} {sure * 100:.0f}%"
            titles.append(title if answer == label else f"{title}\nis {label_text(label, 12)}")
        figure = picture_sheet(images, titles)
        for axes, image, map_ in zip(figure.axes, images, heat, strict=True):
            axes.imshow(
                map_.astype(float), extent=(0, image.shape[-1], image.shape[-2], 0), cmap="inferno", alpha=0.5, vmin=0,
                vmax=1, interpolation="bilinear",
            )  # fmt: skip
    return figure


def shape_text(shape: Any) -> str:
    """``(64, 8, 8)`` as ``64×8×8``."""
    return "×".join(map(str, shape)) if isinstance(shape, list | tuple) else ""


def _shape(shape: Any) -> tuple[int, int] | None:
    """Channels and side of an output, or None if it is not a list of positive integers."""
    if not isinstance(shape, list | tuple) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        return None
    return int(shape[0]), int(shape[-1]) if len(shape) == 3 else 1


def _list(array: Any) -> list[Any]:
    return list(array.tolist()) if isinstance(array, np.ndarray) and array.ndim == 1 else []


def _scaled(values: NDArray[Any]) -> NDArray[np.float64]:
    values = np.nan_to_num(values.astype(float))
    span = values.max() - values.min()
    return np.asarray((values - values.min()) / span if span > 0 else np.zeros_like(values))


def _kernel(kernel: NDArray[Any]) -> NDArray[Any]:
    scaled = _scaled(kernel if kernel.shape[0] == 3 else kernel.mean(axis=0))
    return np.array(np.moveaxis(scaled, 0, -1) if scaled.ndim == 3 else scaled, dtype=float)


def _sheet(tiles: Sequence[NDArray[Any]], columns: int) -> Figure:
    """Pictures in a grid."""
    if not tiles:
        return nothing_to_show("Nothing was stored.")
    rows = math.ceil(len(tiles) / columns)
    figure, first = new_figure((4.8, max(4.8 / columns * rows, 0.5)))
    first.remove()
    for k, tile in enumerate(tiles):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.imshow(tile, cmap="viridis", interpolation="nearest")
        axes.axis("off")
    return figure
