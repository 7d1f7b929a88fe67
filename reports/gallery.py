"""Which figures a page shows, under what headings, and what each says to those who cannot see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from reports.curves import plot_learning_curves, plot_time_to_target
from reports.figures import (
    plot_accuracy_against,
    plot_roofline,
    plot_throughput_by_batch,
    points_shown,
    roofline_points,
)
from reports.metrics import counted, metric
from reports.mistakes import per_class_accuracy, plot_confusion, plot_per_class_accuracy, plot_reliability
from reports.safety import shorten
from reports.snapshot import Snapshot, curves_of
from reports.style import MANY
from reports.svg import figure_svg, inline_svg
from reports.tables import extreme, pareto_front, ranked_by


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its id, title, inline SVG, the caption that also is its text alternative, and its file."""

    name: str
    title: str
    svg: Markup
    caption: str
    file: str


def pictures(snapshot: Snapshot, table: pd.DataFrame) -> dict[str, list[Picture]]:
    """The figures of one setting by section; a figure without data is left out, a section without figures too."""
    groups = {
        "Accuracy and its cost": [_accuracy(table, key) for key in ("macs", "params", "throughput_img_per_s")],
        "Learning": [*_curves(snapshot), _target(snapshot)],
        "Speed": [_roofline(snapshot, table), _batches(snapshot)],
        "Mistakes": _mistakes(snapshot, table),
    }
    shown = {name: [picture for picture in group if picture] for name, group in groups.items()}
    return {name: group for name, group in shown.items() if group}


def _picture(
    name: str, title: str, figure: Callable[[], Figure], caption: str, points: list[str] | None = None
) -> Picture:
    svg = figure_svg(figure())
    return Picture(name, title, inline_svg(svg, name, title, f"{name}-caption", points or []), caption, svg)


def _accuracy(table: pd.DataFrame, key: str) -> Picture | None:
    score = ranked_by(table)
    shown = points_shown(table, key, score)
    if shown.empty:
        return None
    m, accuracy = metric(key), metric(score)
    front = pareto_front(shown, key, score, cost_better=m.better or "lower")
    best = "the faster" if m.better == "higher" else "the fewer"
    names = ", ".join(shorten(name) for name in front.model[:12])
    bars = "Bars are 95% intervals. " if len(shown) <= MANY else ""
    points = [
        f"{shorten(row['model'], 60)}: {accuracy.text(row[score])}%, {m.text(row[key])} {m.unit}"
        for row in shown.head(MANY).to_dict("records")
    ]
    caption = (
        f"{counted(len(shown), 'model')}; {best} the better. On the Pareto front, where no other is better in both: "
        f"{names}{' and others' if len(front) > 12 else ''}. {bars}Where names would overlap, some are left out."
    )
    return _picture(
        f"accuracy-{key.split('_')[0]}",
        f"{accuracy.label} against {m.in_text}",
        lambda: plot_accuracy_against(table, key, score),
        caption,
        points,
    )


def _curves(snapshot: Snapshot) -> list[Picture | None]:
    curves = curves_of(snapshot)
    if curves.empty:
        return []
    watched = metric("val_miou" if "val_miou" in curves else "val_top1")
    final = curves.groupby("model", sort=False)[watched.key].last()
    last = "; ".join(f"{shorten(str(model))} {value * 100:.1f}%" for model, value in final.items())
    told = f"The best on the test split, {counted(curves.model.nunique(), 'model')}; lines are means over seeds, bands"
    return [
        _picture(
            f"curves-{x}",
            f"{watched.label} over {words}",
            lambda x=x: plot_learning_curves(curves, x, watched.key),  # type: ignore[misc]
            f"{told} go from the lowest seed to the highest. After the last epoch: {last}.",
        )
        for x, words in (("epoch", "epochs"), ("seconds", "seconds of training"))
        if curves[x].notna().any()
    ]


def _target(snapshot: Snapshot) -> Picture | None:
    watched = next(key for key in snapshot["target"] if key != "seconds")
    target = snapshot["target"][watched]
    rows = pd.DataFrame(snapshot["target"]["seconds"], columns=["model", "seed", "seconds"]).astype({"seconds": float})
    met = rows[rows.seconds.gt(0)]
    if target is None or met.empty:
        return None
    medians = met.groupby("model").seconds.median().sort_values()
    never = rows.model.nunique() - len(medians)
    caption = (
        f"{shorten(str(medians.index[0]))} is the first to reach {target * 100:g}% {metric(watched).in_text}, after "
        f"{metric('train_seconds').text(float(medians.iloc[0]))} s of training. "
        f"{counted(never, 'model')} never did."
    )
    return _picture("target", "Time to target", lambda: plot_time_to_target(rows, target, y=watched), caption)


def _roofline(snapshot: Snapshot, table: pd.DataFrame) -> Picture | None:
    shown = roofline_points(table)
    if shown.empty:
        return None
    m, peak = metric("macs_per_s"), snapshot["peak_macs_per_s"]
    best = extreme(shown, "macs_per_s")
    caption = (
        f"{shorten(best.model)} uses the machine best, with {m.text(best.macs_per_s)} {m.unit}"
        + (f" of the {m.text(peak)} measured for a large matrix product" if peak else "; its peak was not measured")
        + ". To the left, few MACs for each activation: the machine waits for memory rather than computes."
    )
    points = [
        f"{shorten(r['model'], 60)}: {m.text(r['macs_per_s'])} {m.unit}" for r in shown.head(MANY).to_dict("records")
    ]
    return _picture("roofline", "What the machine achieves", lambda: plot_roofline(table, peak), caption, points)


def _batches(snapshot: Snapshot) -> Picture | None:
    rows = pd.DataFrame(snapshot["batches"], columns=["model", "batch_size", "images_per_s"])
    if rows.empty:
        return None
    best = extreme(rows, "images_per_s")
    caption = (
        f"Medians over runs. The most images in a second: {metric('throughput_img_per_s').text(best.images_per_s)}, by "
        f"{shorten(best.model)} at a batch size of {best.batch_size:g}."
    )
    return _picture("batches", "Throughput against batch size", lambda: plot_throughput_by_batch(rows), caption)


def _mistakes(snapshot: Snapshot, table: pd.DataFrame) -> list[Picture | None]:
    confusion = {model: snapshot["confusion"][model] for model in table.model if model in snapshot["confusion"]}
    calibration = {model: snapshot["calibration"][model] for model in table.model if model in snapshot["calibration"]}
    found: list[Picture | None] = []
    counted_are = "pixels" if ranked_by(table) == "test_miou" else "images"
    if confusion:
        best, counts = next(iter(confusion.items()))
        classes = snapshot["classes"] or [str(k) for k in range(len(counts))]
        pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j]
        n, i, j = max(pairs, default=(0, 0, 0))
        worst = (
            f"Most often {shorten(classes[i])} is taken for {shorten(classes[j])}: {n:g} {counted_are}. " if n else ""
        )
        found.append(
            _picture(
                "confusion",
                f"Confusion matrix of {shorten(best)}",
                lambda: plot_confusion(counts, classes),
                f"{worst}Rows are true classes, in percent of the class; the colours end at the worst confusion.",
            )
        )
        accuracy = per_class_accuracy(confusion, classes)
        mean = accuracy.mean()
        if mean.notna().any():
            hard, easy = str(mean.idxmin()), str(mean.idxmax())
            caption = (
                f"Averaged over these models the hardest class is {shorten(hard)} ({mean.min() * 100:.1f}%), "
                f"the easiest {shorten(easy)} ({mean.max() * 100:.1f}%)."
            )
            found.append(_picture("classes", "Accuracy by class", lambda: plot_per_class_accuracy(accuracy), caption))
    if calibration:
        found.append(
            _picture(
                "reliability",
                "Reliability",
                lambda: plot_reliability(calibration),
                "How often a model is right when it says how sure it is. Below the diagonal it is surer than it should "
                "be; the calibration error is the mean distance from it, weighted by "
                f"{counted_are}.",
            )
        )
    return found
