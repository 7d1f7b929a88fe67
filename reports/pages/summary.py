"""The summary in words: what was compared, under what terms, which models win at what, and which are too close."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.data.leaderboard import extreme, pareto_front, ranked_by
from reports.data.metrics import counted, format_number, metric
from reports.data.safety import shorten

NOTES = 50
"""At most this many pairs that are too close to call are listed."""


@dataclass(frozen=True)
class Highlight:
    """The best model by one criterion: a heading, the model, and the number with its unit."""

    title: str
    model: str
    value: str
    note: str = ""


def highlights(table: pd.DataFrame) -> list[Highlight]:
    """The best models of one setting's leaderboard, by accuracy, speed and size."""
    ranked, score = table[table["rank"].notna()], ranked_by(table)
    found = []
    if len(ranked):
        best = ranked.iloc[0]
        rivals = int((ranked["rank"] == 1).sum()) - 1 if bool(best.tested) else 0
        note = f"{counted(rivals, 'other')} too close to call" if rivals else ""
        found.append(_highlight("Most accurate", best, score, note))
    for title, key in (
        ("Fastest inference", "throughput_img_per_s"),
        ("Fastest training", "train_throughput_img_per_s"),
        ("Fewest parameters", "params"),
    ):
        known = ranked[ranked[key].notna()]
        if len(known) > 1:
            row = extreme(known, key, metric(key).better == "higher")
            found.append(_highlight(title, row, key, _accuracy_note(row, score)))
    return found


def sentences(table: pd.DataFrame, runs: pd.DataFrame, damaged: int) -> list[str]:
    """The summary of one setting, one or two sentences per paragraph; ``runs`` are all runs of the results folder."""
    if runs.empty:
        return ["There are no records yet. Run a plan, for example: zoobench run quick." + _damaged(damaged)]
    ranked, score = table[table["rank"].notna()], ranked_by(table)
    here = runs[runs.setting.isin(table.setting)]
    text = [_compared(table, here), _trouble(runs, damaged)]
    if len(ranked) == 0:
        text.append(f"No run has a {metric(score).in_text}, so nothing is ranked.")
    elif len(ranked) == 1:
        best = ranked.iloc[0]
        text.append(
            f"{shorten(best.model)} reaches {_accuracy(best, score)} {metric(score).in_text}; "
            "there is no other model to compare it with."
        )
    else:
        text += [_winner(ranked, score), _frontier(ranked, score), _compute(ranked)]
    others = runs.setting.nunique() - 1
    if others > 0:
        text.append(f"The results hold {counted(others, 'other setting')}; models are ranked within a setting only.")
    return [sentence for sentence in text if sentence]


def inseparable(table: pd.DataFrame, pairs: pd.DataFrame) -> list[dict[str, str]]:
    """Neighbours in the leaderboard that are too close to call, and how many more seeds would separate them."""
    order = [model for model, rank in zip(table.model, table["rank"], strict=True) if not math.isnan(rank)]
    place = {model: k for k, model in enumerate(order)}
    notes = []
    for row in pairs[~pairs.separated.astype(bool)].to_dict("records"):
        if place.get(row["b"], -9) - place.get(row["a"], 9) == 1:
            notes.append((place[row["a"]], _pair_note(row)))
    return [note for _, note in sorted(notes, key=lambda item: item[0])[:NOTES]]


def _pair_note(row: Mapping[Hashable, Any]) -> dict[str, str]:
    p = float(row["p_holm"])
    if "only_a" in row:
        a, b = shorten(str(row["a"])), shorten(str(row["b"]))
        advice = f"{a} alone is right on {counted(row['only_a'], 'image')}, {b} alone on {row['only_b']:,}"
    elif not math.isfinite(p):
        advice = "not tested, that takes more than one seed of each"
    elif not math.isfinite(row["more_seeds"]):
        advice = "a thousand seeds would not separate them at this difference"
    else:
        advice = f"{counted(row['more_seeds'], 'more seed')} of each would separate them"
    points = f"{100 * float(row['difference']):.2f} points"
    return {"a": str(row["a"]), "b": str(row["b"]), "points": points, "p": _p_text(p), "advice": advice}


def _p_text(p: float) -> str:
    return "–" if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _highlight(title: str, row: pd.Series, key: str, note: str) -> Highlight:
    m = metric(key)
    return Highlight(title, str(row.model), f"{m.text(float(row[key]))} {m.unit}".strip(), note)


def _accuracy(row: pd.Series, score: str) -> str:
    value, low, high = (float(row[column]) for column in (score, f"{score}_low", f"{score}_high"))
    text = metric(score).text_with_interval(value, low, high)
    return f"({text})%" if "±" in text else f"{text}%"


def _accuracy_note(row: pd.Series, score: str) -> str:
    m = metric(score)
    return f"at {m.text(float(row[score]))}% {m.in_text.removeprefix('test ')}"


def _compared(table: pd.DataFrame, here: pd.DataFrame) -> str:
    first = here.iloc[0]
    counts = sorted(set(table.seeds[table.seeds > 0])) or [0]
    seeds = counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    machine = " and ".join(filter(None, (shorten(first.cpu, 60), shorten(first.gpu, 60))))
    threads = f", {counted(first.threads, 'thread')}" if math.isfinite(first.threads) else ""
    return (
        f"{counted(len(table), 'architecture')}, {seeds} each, on {shorten(first['data'], 60) or 'an unnamed data set'}"
        + (f" with the recipe {shorten(first.recipe, 40)}" if first.recipe else "")
        + (f" under a budget of {shorten(first.budget, 40)}" if first.budget else "")
        + (f", on {machine}" if machine else "")
        + (f" ({shorten(first.device, 20)}{threads})." if first.device else ".")
    )


def _trouble(runs: pd.DataFrame, damaged: int) -> str:
    """What failed, and how quiet the machine was."""
    lost = runs[runs.status != "completed"].status.value_counts()
    failed = ", ".join(f"{count} of {counted(len(runs), 'run')} {status}" for status, count in sorted(lost.items()))
    noisy = int((runs.disturbed > 0).sum())
    were = "was" if noisy == 1 else "were"
    quiet = f"{noisy} of {counted(len(runs), 'run')} {were}" if noisy else "No run was"
    return (f"{failed}. " if failed else "") + f"{quiet} disturbed while being measured." + _damaged(damaged)


def _damaged(count: int) -> str:
    return f" {counted(count, 'record')} could not be read." if count else ""


def _winner(ranked: pd.DataFrame, score: str) -> str:
    best = ranked.iloc[0]
    text = f"{shorten(best.model)} has the highest {metric(score).in_text}, {_accuracy(best, score)}."
    if not bool(best.tested):
        return text + " That is not tested: with one seed of a model, another seed may turn the order."
    equals = [shorten(name) for name in ranked.model[(ranked["rank"] == 1) & ranked.tested] if name != best.model]
    by_images = best.rank_basis == "images"
    every = "every other" if ranked.tested.astype(bool).all() else "every other that was tested"
    if equals:
        text += f" The {'test images' if by_images else 'seeds'} do not separate it from {_listed(equals)}."
    elif by_images:
        text += f" On this test set it is ahead of {every} by more than chance."
    else:
        text += f" It is ahead of {every} by more than seeds vary."
    if by_images:
        text += (
            " The first seed of each model is compared: this speaks of these weights only, and others may turn the "
            "order."
        )
    return text


def _frontier(ranked: pd.DataFrame, score: str) -> str:
    front = pareto_front(ranked, "macs", score)
    if len(front) < 2:
        return ""
    names = [shorten(name) for name in front.model]
    return f"On the Pareto front of accuracy and MACs: {_listed(names, 8)}."


def _compute(ranked: pd.DataFrame) -> str:
    known = ranked[ranked.throughput_img_per_s.gt(0)]
    if len(known) < 2:
        return ""
    m = metric("throughput_img_per_s")
    fast, slow = extreme(known, m.key), extreme(known, m.key, largest=False)
    ratio = format_number(fast[m.key] / slow[m.key])
    speed = f"{m.text(float(fast[m.key]))} {m.unit}"
    return f"{shorten(fast.model)} has the fastest inference: {speed}, {ratio} times that of {shorten(slow.model)}."


def _listed(names: list[str], most: int = 5) -> str:
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} others"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
