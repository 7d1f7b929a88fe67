"""Which figures the comparison page shows, under which headings, and their captions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from reports.data.budgets import choices, front_of
from reports.data.leaderboard import extreme, pareto_front, ranked_by
from reports.data.metrics import counted, metric
from reports.data.safety import shorten
from reports.figures.budgets import COSTS, plot_score_by_cost
from reports.figures.comparison import (
    plot_accuracy_against,
    plot_roofline,
    plot_throughput_by_batch,
    points_shown,
    roofline_points,
)
from reports.figures.curves import median_seconds, plot_learning_curves, plot_time_to_target
from reports.figures.mistakes import (
    per_class_accuracy,
    plot_agreement,
    plot_confusion,
    plot_hard_images,
    plot_per_class_accuracy,
    plot_reliability,
)
from reports.figures.style import LABEL, MANY
from reports.figures.svg import figure_svg, inline_svg
from reports.pages.page import Snapshot, unpack_array
from reports.pages.snapshot import CURVES, MISTAKES, budgets_of, comparisons_of, curves_of, published_of


@dataclass(frozen=True)
class Picture:
    """A figure of a page: its id, title, inline SVG, caption (also its text alternative), as SVG and as drawn."""

    name: str
    title: str
    svg: Markup
    caption: str
    file: str
    figure: Figure


def pictures(snapshot: Snapshot, table: pd.DataFrame) -> dict[str, list[Picture]]:
    """The figures of one setting by section; a figure without data is left out, a section without figures too."""
    groups = {
        "Accuracy and its cost": [
            _accuracy(snapshot, table, key) for key in ("macs", "params", "throughput_img_per_s")
        ],
        "What a budget buys": _budgets(snapshot),
        "Learning": [*_curves(snapshot), _target(snapshot)],
        "Speed": [_roofline(snapshot, table), _batches(snapshot)],
        "Mistakes": [*_mistakes(snapshot, table), _agreement(snapshot, table), _hard(snapshot)],
    }
    shown = {name: [picture for picture in group if picture] for name, group in groups.items()}
    return {name: group for name, group in shown.items() if group}


def draw_picture(name: str, title: str, figure: Figure, caption: str, points: list[str] | None = None) -> Picture:
    """Draw a figure and make it fit for a page."""
    svg = figure_svg(figure)
    return Picture(name, title, inline_svg(svg, name, title, f"{name}-caption", points or []), caption, svg, figure)


def _accuracy(snapshot: Snapshot, table: pd.DataFrame, key: str) -> Picture | None:
    score = ranked_by(table)
    shown = points_shown(table, key, score)
    if shown.empty:
        return None
    m, accuracy = metric(key), metric(score)
    front = pareto_front(shown, key, score, cost_better=m.better or "lower")
    side = "right" if m.better == "higher" else "left"
    names = ", ".join(shorten(name) for name in front.model[:12])
    bars = "Bars are 95% intervals. " if len(shown) <= MANY else ""
    points = [
        f"{shorten(row['model'], 60)}: {accuracy.text(row[score])}%, {m.text(row[key])} {m.unit}"
        for row in shown.head(MANY).to_dict("records")
    ]
    published = published_of(snapshot, "speed") if key == "throughput_img_per_s" else {}
    speeds = {model: row[key] for model, row in published.items() if model in set(shown.model)}
    beside = f"Hollow: {counted(len(speeds), 'published speed')}, of others' machines. " if speeds else ""
    figure = plot_accuracy_against(table, key, score, published=speeds)
    named = sum(label.get_gid() == LABEL for label in figure.axes[0].texts)
    caption = f"Better is up and to the {side}. On the Pareto front, where no other is better in both: {names}"
    caption += f"{' and others' if len(front) > 12 else ''}. " if len(shown) > 1 else ". "
    if len(shown) == 1:
        caption = f"{names} alone. "
    caption += f"{bars}{beside}"
    if named < len(shown):
        caption += f"{counted(len(shown), 'model')}, of which {named} are named: the other names would overlap."
    return draw_picture(
        f"accuracy-{key.split('_')[0]}",
        f"{accuracy.label} against {m.in_text}",
        figure,
        caption.strip(),
        points,
    )


def _curves(snapshot: Snapshot) -> list[Picture | None]:
    curves = curves_of(snapshot)
    if curves.empty:
        return []
    watched = metric("val_miou" if "val_miou" in curves else "val_top1")
    final = curves.groupby("model", sort=False)[watched.key].last()
    last = "; ".join(f"{shorten(str(model))} {value * 100:.1f}%" for model, value in final.items())
    several = (curves[f"{watched.key}_low"] < curves[f"{watched.key}_high"]).any()
    seeds = "Lines are means over seeds, bands reach from the lowest seed to the highest. " if several else ""
    epochs = curves.groupby("model").epoch.count()
    dots = "A dot is a model with a single epoch, whole or begun. " if epochs.eq(1).any() else ""
    best = f"The best {len(epochs)} on the test split. " if len(epochs) == CURVES else ""
    drawn_by_cost = budgets_of(snapshot).model.nunique() > 1
    return [
        draw_picture(
            f"curves-{x}",
            f"{watched.label} over {words}",
            plot_learning_curves(curves, x, watched.key),
            f"{best}{seeds}{dots}After the last epoch of all seeds: {last}.",
        )
        for x, words in (("epoch", "epochs"), ("seconds", "seconds of training"))
        if curves[x].notna().any() and not (x == "seconds" and drawn_by_cost)
    ]


def _budgets(snapshot: Snapshot) -> list[Picture | None]:
    table = budgets_of(snapshot)
    if table.empty or table.model.nunique() < 2:
        return []
    watched = metric(next(key for key in snapshot["target"] if key != "seconds"))
    chosen = "; ".join(
        f"{' or '.join(f'{budget / 60:g}' for budget in choice.budgets)} min: {shorten(choice.model)} with "
        f"{watched.text(choice.score)}% after {counted(choice.epochs, 'epoch')}"
        for choice in choices(table)
    )
    said = {
        "train_seconds": (f"What to choose for {chosen}. " if chosen else "")
        + "Seconds are the images seen over the measured speed of training. ",
        "train_macs": "A training step counts as three forward passes. ",
    }
    return [
        draw_picture(
            f"budget-{cost.removeprefix('train_')}",
            f"{watched.label} over {words}",
            plot_score_by_cost(table, cost, watched.key),
            f"{said[cost]}A point is the mean over seeds after an epoch; the broad line is the best of all models at "
            "that cost. Within a longer training the learning rate has not fallen yet: a training planned for the "
            f"smaller budget reaches more. {counted(front_of(table, cost).model.nunique(), 'model')} of "
            f"{table.model.nunique()} {'is' if front_of(table, cost).model.nunique() == 1 else 'are'} ahead somewhere.",
        )
        for cost, words in zip(COSTS, ("training time", "training MACs"), strict=True)
        if table[cost].gt(0).any()
    ]


def _target(snapshot: Snapshot) -> Picture | None:
    watched = next(key for key in snapshot["target"] if key != "seconds")
    target = snapshot["target"][watched]
    rows = pd.DataFrame(snapshot["target"]["seconds"], columns=["model", "seed", "seconds"]).astype({"seconds": float})
    met = rows[rows.seconds.gt(0)]
    if target is None or met.empty:
        return None
    medians = median_seconds(rows)
    if medians.empty:
        return None
    never = rows.model.nunique() - len(medians)
    others = f"{counted(never, 'model')} did not in half of the seeds or more." if never else ""
    caption = (
        f"{shorten(str(medians.index[0]))} is the first to reach {target * 100:g}% {metric(watched).in_text}, after "
        f"{metric('train_seconds').text(float(medians.iloc[0]))} s of training. {others}"
    )
    return draw_picture("target", "Time to target", plot_time_to_target(rows, target, y=watched), caption)


def _roofline(snapshot: Snapshot, table: pd.DataFrame) -> Picture | None:
    shown = roofline_points(table)
    if shown.empty:
        return None
    m, peak = metric("macs_per_s"), snapshot["peak"]["macs_per_s"]
    best = extreme(shown, "macs_per_s")
    if peak:
        known = f" of the {m.text(peak)} measured as this machine's peak"
    elif snapshot["peak"]["exceeded"]:
        known = "; more than was measured as this machine's peak, so no peak is shown"
    else:
        known = "; the machine's peak was not measured"
    caption = (
        f"{shorten(best.model)} uses the machine best, with {m.text(best.macs_per_s)} {m.unit}{known}. "
        "On the left a model has few MACs for each activation: the machine waits for memory rather than computes."
    )
    others = [
        (row["macs"] / row["activations"], row["macs"] * row["throughput_img_per_s"])
        for row in published_of(snapshot, "speed").values()
        if row["macs"] and row["activations"] and row["throughput_img_per_s"]
    ]
    if others:
        caption += " Hollow: the same models as published, on others' machines and at other image sizes."
    points = [
        f"{shorten(r['model'], 60)}: {m.text(r['macs_per_s'])} {m.unit}" for r in shown.head(MANY).to_dict("records")
    ]
    return draw_picture("roofline", "What the machine achieves", plot_roofline(table, peak, others), caption, points)


def _batches(snapshot: Snapshot) -> Picture | None:
    rows = pd.DataFrame(snapshot["batches"], columns=["model", "batch_size", "images_per_s"])
    if rows.empty:
        return None
    medians = rows.groupby(["model", "batch_size"], sort=False).images_per_s.median().reset_index()
    best = extreme(medians, "images_per_s")
    caption = (
        f"Medians over runs. {shorten(best.model)} is the fastest, with "
        f"{metric('throughput_img_per_s').text(best.images_per_s)} images/s at a batch size of {best.batch_size:g}."
    )
    return draw_picture("batches", "Throughput against batch size", plot_throughput_by_batch(rows), caption)


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
            f"Most often {shorten(classes[i])} is taken for {shorten(classes[j])}: {100 * n / sum(counts[i]):.1f}% of "
            f"its {counted_are}. "
            if n
            else ""
        )
        found.append(
            draw_picture(
                "confusion",
                f"Confusion matrix of {shorten(best)}",
                plot_confusion(counts, classes),
                f"{worst}Rows are true classes, in percent of the class; the colours end at the worst confusion.",
            )
        )
        accuracy = per_class_accuracy(confusion, classes)
        mean = accuracy.mean()
        if mean.notna().any():
            hard, easy = str(mean.idxmin()), str(mean.idxmax())
            over = "On the mean of these models, the" if len(accuracy) > 1 else "The"
            caption = (
                f"Percent of each class that a model gets right. {over} hardest is {shorten(hard)} "
                f"({mean.min() * 100:.1f}%), the easiest {shorten(easy)} ({mean.max() * 100:.1f}%)."
            )
            found.append(draw_picture("classes", "Accuracy by class", plot_per_class_accuracy(accuracy), caption))
    if calibration:
        errors = dict(zip(table.model, table.calibration_error, strict=True))
        found.append(
            draw_picture(
                "reliability",
                "Reliability",
                plot_reliability(calibration, errors),
                "How often a model is right when it says how sure it is; below the diagonal it is too sure. The "
                f"calibration error is a run's mean distance from the diagonal over its {counted_are}, averaged over "
                "seeds.",
            )
        )
    return found


def _agreement(snapshot: Snapshot, table: pd.DataFrame) -> Picture | None:
    compared = comparisons_of(snapshot).get(str(table.setting.iloc[0]))
    if compared is None:
        return None
    counts = pd.DataFrame(compared.agreeing, compared.models, compared.models)
    best = [model for model in table.model if model in compared.models][:MISTAKES]
    shares = counts.loc[best, best] / compared.images
    pairs = {(a, b): shares.loc[a, b] for a, b in itertools.combinations(best, 2)}
    alike, unlike = max(pairs, key=lambda pair: pairs[pair]), min(pairs, key=lambda pair: pairs[pair])
    caption = (
        f"Share of the {compared.images:,} test images that two models put into the same class, right or wrong, in "
        f"percent; one seed each. {shorten(alike[0])} and {shorten(alike[1])} agree most, on "
        f"{100 * pairs[alike]:.1f}%; {shorten(unlike[0])} and {shorten(unlike[1])} least, on "
        f"{100 * pairs[unlike]:.1f}%."
    )
    return draw_picture("agreement", "Agreement between models", plot_agreement(shares), caption)


def _hard(snapshot: Snapshot) -> Picture | None:
    hard, names = snapshot["hard"], snapshot["classes"]
    if not hard or not hard["shown"]:
        return None
    shown = hard["shown"]
    labels, answers = (
        [names[item[key]] if item[key] < len(names) else str(item[key]) for item in shown]
        for key in ("label", "answer")
    )
    images = [unpack_array(item["image"]) for item in shown]
    caption = (
        f"All {hard['models']} models, one seed each, get {counted(hard['count'], 'test image')} of {hard['images']:,} "
        f"wrong; shown are {len(shown)}. Above each is its true class, and in parentheses the answer of most models."
    )
    return draw_picture(
        "hard", "Images that every model gets wrong", plot_hard_images(images, labels, answers), caption
    )
