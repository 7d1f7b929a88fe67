"""What the comparison page is made of, taken from the records: see `reports.pages.page`."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from bench.flags import flag_words
from bench.records import RunRecord
from reports.data.budgets import scores_by_cost
from reports.data.leaderboard import ranked_by
from reports.data.loading import NUMBER_COLUMNS, RUN_COLUMNS, get, history_table, matrix, number, text
from reports.data.predictions import Answers, ImageComparison
from reports.data.published import match_published
from reports.data.report_data import ReportData
from reports.figures.curves import curve_summary
from reports.pages.page import Snapshot, new_snapshot, pack_array

CURVES, POINTS = 8, 60
"""The most models whose learning curves are drawn (the best), and the most points of a curve."""
BUDGETED = 16
"""The most models whose accuracy is shown against the cost of training (the best)."""
MISTAKES, CLASSES = 12, 100
"""The most models whose mistakes are shown (the best), and the most classes of a confusion matrix."""
HARD = 12
"""The most images shown of those that every model gets wrong."""
LISTED = 100
"""At most this many failures, disturbances and damaged records are listed; the others are counted."""

WATCHED = {"test_top1": "val_top1", "test_miou": "val_miou"}
"""For each score on ``test`` that models are ranked by, the one on ``val`` that shows how they learn."""


def take_snapshot(data: ReportData, pages: dict[str, str] | None = None) -> Snapshot:
    """Everything that the comparison page shows or draws; ``pages`` are the models' own pages, by model."""
    results, runs, main = data.results, data.results.runs, data.main_runs
    best = data.table[data.table.setting == data.setting].model.tolist()
    completed = main[main.status == "completed"]
    budgeted = completed[completed.model.isin(best[:BUDGETED])]
    history = history_table(budgeted, results.records)
    drawn = history[history.model.isin(best[:CURVES])]
    watched = WATCHED[ranked_by(main)]
    target, seconds = _time_to_target(main, results.records, watched)
    return new_snapshot(
        "comparison",
        runs={column: [_plain(value) for value in runs[column]] for column in map(str, runs)},
        comparisons={setting: asdict(compared) for setting, compared in data.comparisons.items()},
        curves=_thin(curve_summary(drawn, watched), best[:CURVES]),
        budgets=_thin(scores_by_cost(budgeted, history, watched), best[:BUDGETED]),
        target={watched: target, "seconds": seconds},
        batches=_batches(completed, results.records),
        peak=_peak(completed, results.records),
        **_by_model(completed[completed.model.isin(best[:MISTAKES])], results.records),
        hard=_hard_images(data.answers.get(data.setting)),
        failures=_failures(runs, results.records),
        disturbances=_disturbances(results.records),
        damaged=[text(message) for message in results.damaged[:LISTED]],
        damaged_count=len(results.damaged),
        provenance=provenance(runs, results.records),
        **({"tuning": tuning} if (tuning := _tuning(completed, results.records)) else {}),
        pages=pages or {},
        published=_published(data, main),
    )


def comparisons_of(snapshot: Snapshot) -> dict[str, ImageComparison]:
    """The comparisons image by image that a snapshot carries, by setting."""
    return {setting: ImageComparison(**compared) for setting, compared in snapshot["comparisons"].items()}


def runs_of(snapshot: Snapshot) -> pd.DataFrame:
    """The table of runs that a snapshot carries, equal to the one it was taken from."""
    frame = pd.DataFrame(snapshot["runs"]).reindex(columns=list(RUN_COLUMNS))  # an earlier page lacks some
    return frame.astype(dict.fromkeys(NUMBER_COLUMNS, float) | {"disturbed": int})


def published_of(snapshot: Snapshot, kind: str) -> dict[str, Any]:
    """By model, the row of that kind (``speed`` or ``accuracy``) that others have published and a snapshot carries."""
    models = (snapshot.get("published") or {}).get("models", {})  # an earlier page has none
    return {model: rows[kind] for model, rows in models.items() if kind in rows}


def curves_of(snapshot: Snapshot) -> pd.DataFrame:
    """The learning curves that a snapshot carries."""
    return _lines(snapshot["curves"])


def budgets_of(snapshot: Snapshot) -> pd.DataFrame:
    """The table of `scores_by_cost` that a snapshot carries."""
    return _lines(snapshot.get("budgets") or {"columns": ["model"], "rows": []})  # an earlier page has none


def _lines(table: dict[str, Any]) -> pd.DataFrame:
    columns = table["columns"]
    return pd.DataFrame(table["rows"], columns=columns).astype({c: float for c in columns if c != "model"})


def _published(data: ReportData, runs: pd.DataFrame) -> dict[str, Any] | None:
    """What others have published of the models of the main setting."""
    if data.published is None:
        return None
    environments = [
        (model, data.results.records[run].environment) for model, run in zip(runs.model, runs.run_id, strict=True)
    ]
    return match_published(data.published, {m: number(get(e, "data", "input_size")) for m, e in environments})


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def _thin(curves: pd.DataFrame, order: list[str]) -> dict[str, Any]:
    """The curves in the order of the models, each with few enough points to draw, the last one among them."""
    parts = []
    for model in order:
        rows = curves[curves.model == model].sort_values("epoch")
        step = max(math.ceil(len(rows) / POINTS), 1)
        parts.append(rows.iloc[sorted({*range(0, len(rows), step), len(rows) - 1} - {-1})])
    cells = pd.concat(parts).to_numpy(dtype=object) if parts else np.empty((0, 0))
    return {"columns": list(curves.columns), "rows": [[_plain(cell) for cell in row] for row in cells]}


def _time_to_target(
    runs: pd.DataFrame, records: dict[str, RunRecord], watched: str
) -> tuple[float | None, list[list[Any]]]:
    """A target that most models reach, and rows of model, seed, training seconds until a run first reached it, or None.

    The target is the best validation score of the median model's median run, rounded down to a multiple of 5%.
    """
    curves = {
        run_id: [(number(row.get(watched)), number(row.get("seconds"))) for row in records[run_id].history]
        for run_id in runs.run_id
    }
    highest = pd.Series([max((a for a, _ in curves[r] if a == a), default=math.nan) for r in runs.run_id], dtype=float)
    median = highest.groupby(runs.model.to_numpy()).median().median()
    if not median >= 0.05:
        return None, []
    target = math.floor(median * 20) / 20
    first = [next((t for a, t in curves[run_id] if a >= target), math.nan) for run_id in runs.run_id]
    return target, [[m, _plain(s), _plain(t)] for m, s, t in zip(runs.model, runs.seed, first, strict=True)]


def _by_model(runs: pd.DataFrame, records: dict[str, RunRecord]) -> dict[str, Any]:
    """Confusion matrices and calibration bins, summed over a model's seeds; the names of the classes."""
    confusion: dict[str, list[list[float]]] = {}
    calibration: dict[str, list[list[float]]] = {}
    classes: list[str] = []
    for run_id, model in zip(runs.run_id, runs.model, strict=True):
        samples = records[run_id].samples
        counts = matrix(samples.get("test_confusion"))
        square = 0 < len(counts) <= CLASSES and len(counts[0]) == len(counts) and _finite(counts)
        if square and (not confusion or len(counts) == len(next(iter(confusion.values())))):
            before = confusion.get(model, [[0.0] * len(counts)] * len(counts))
            confusion[model] = [
                [a + b for a, b in zip(*rows, strict=True)] for rows in zip(before, counts, strict=True)
            ]
            names = get(records[run_id].environment, "data", "classes")
            if isinstance(names, list) and len(names) == len(counts):
                classes = classes or [text(name) for name in names]
        bins = matrix(samples.get("test_calibration"), 3)
        if bins and len(bins) <= CLASSES:
            calibration.setdefault(model, []).extend([_plain(c) for c in row] for row in bins)
    return {"confusion": confusion, "calibration": calibration, "classes": classes}


def _finite(rows: list[list[float]]) -> bool:
    return all(math.isfinite(cell) and cell >= 0 for row in rows for cell in row)


def _batches(runs: pd.DataFrame, records: dict[str, RunRecord]) -> list[list[Any]]:
    """Rows of model, batch size, images/s: of every batch size that was measured."""
    found = []
    for run_id, model, own in zip(runs.run_id, runs.model, runs.throughput_img_per_s, strict=True):
        rows = matrix(records[run_id].samples.get("throughput_by_batch"))
        found += [[model, *row[:2]] for row in rows if len(row) >= 2 and _finite([row[:2]])]
        size = number(get(records[run_id].config, "measure", "batch_size"))
        if not rows and size > 0 and own > 0:
            found.append([model, size, own])
    return found if len({row[1] for row in found}) > 1 else []


def _peak(runs: pd.DataFrame, records: dict[str, RunRecord]) -> dict[str, Any]:
    """The machine's peak in MAC/s, the median over the runs; no peak at all if a run exceeded the one it measured."""
    peaks = pd.Series(
        [number(records[run_id].environment.get("peak_macs_per_s")) for run_id in runs.run_id], dtype=float
    )
    exceeded = bool((runs.macs_per_s.to_numpy() > peaks.where(peaks > 0)).any())
    return {"macs_per_s": None if exceeded else _plain(float(peaks.where(peaks > 0).median())), "exceeded": exceeded}


def _tuning(runs: pd.DataFrame, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """How each model computed: the form that was chosen, images/s of those that were tried, why others failed."""
    found: dict[str, dict[str, Any]] = {}
    for run_id, model in zip(runs.run_id, runs.model, strict=True):
        tuning = get(records[run_id].environment, "tuning")
        if model in found or not isinstance(tuning, dict):
            continue
        speeds = {text(form): number(speed) for form, speed in _items(tuning.get("images_per_s"))}
        found[model] = {
            "model": model,
            "form": text(_form(tuning.get("form"))),
            "tried": [{"form": form, "images_per_s": _plain(speed)} for form, speed in speeds.items()],
            "failed": [{"form": text(form), "why": text(why)} for form, why in _items(tuning.get("failed"))],
            "reason": text(tuning.get("reason")),
        }
    return list(found.values())[:LISTED]


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _form(form: Any) -> str:
    """The options of a form in words, as those of the forms that were tried."""
    chosen = form if isinstance(form, dict) else {}
    words = ["bfloat16" if chosen.get("autocast") else "float32"]
    words.append("channels_last" if chosen.get("channels_last") else "contiguous")
    return ", ".join([*words, *(["compiled"] if chosen.get("compile") else [])])


def _failures(runs: pd.DataFrame, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    lost = runs[runs.status != "completed"]
    columns = ["run_id", "model", "seed", "setting", "status", "error_kind", "error_message"]
    rows = [{str(k): _plain(v) for k, v in row.items()} for row in lost[columns].head(LISTED).to_dict("records")]
    for row in rows:
        record = records[row["run_id"]]
        row["epochs"] = len(record.history)
        row["traceback"] = text(record.error.traceback)[-4000:] if record.error else ""
    return rows


def _hard_images(answers: Answers | None) -> dict[str, Any] | None:
    """The test images that every model gets wrong: their number, and some of them, the surest mistakes first."""
    if answers is None:
        return None
    wrong = answers.wrong_in_all()
    sure = sorted((k for k in wrong if k in answers.thumbnails), key=lambda k: -answers.confidence[:, k].mean())
    shown = []
    for k in sure[:HARD]:
        answer, count = Counter(answers.predicted[:, k].tolist()).most_common(1)[0]
        image = pack_array(answers.thumbnails[int(k)])
        shown.append({"label": int(answers.labels[k]), "answer": answer, "count": count, "image": image})
    return {"count": len(wrong), "images": len(answers.labels), "models": len(answers.models), "shown": shown}


def _disturbances(records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """Disturbances of one kind in one phase as one row, with an example and the number of runs that had them."""
    runs: dict[tuple[str, str], dict[str, str]] = {}
    for run_id, record in records.items():
        for flag in record.flags:
            runs.setdefault((text(flag.kind), text(flag.phase)), {}).setdefault(run_id, text(flag.message))
    rows = [
        {
            "kind": flag_words(kind),
            "phase": phase.replace("_", " "),
            "count": len(seen),
            "message": next(iter(seen.values())),
        }
        for (kind, phase), seen in sorted(runs.items(), key=lambda item: -len(item[1]))
    ]
    return rows[:LISTED]


def provenance(runs: pd.DataFrame, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """What the runs were made with; runs that share all of it are one entry, with their number."""
    found: dict[str, dict[str, Any]] = {}
    for run_id in runs.run_id:
        environment, config = records[run_id].environment, records[run_id].config
        data = {"name": get(environment, "data", "name") or config.get("data"), "sha256": config.get("data_sha256")}
        data |= {split: get(environment, "data", split) for split in ("train", "val", "test")}
        facts = {
            "plan": text(environment.get("plan")),
            "command": text(environment.get("command")),
            "commit": text(get(environment, "git", "commit")),
            "dirty": bool(get(environment, "git", "dirty")),
            "machine": _texts(environment.get("machine")),
            "versions": _texts(environment.get("versions")),
            "data": _texts(data),
        }
        entry = found.setdefault(json.dumps(facts, sort_keys=True), facts | {"runs": 0, "first": "", "last": ""})
        started = text(environment.get("started_at"))[:16].replace("T", " ")
        entry["runs"] += 1
        entry["first"] = min(filter(None, (entry["first"], started)), default="")
        entry["last"] = max(entry["last"], started)
    return sorted(found.values(), key=lambda entry: -entry["runs"])[:LISTED]


def _texts(value: Any) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else [("", value)] if value is not None else []
    return {text(k): _fact(text(k), v) for k, v in items if v is not None and not isinstance(v, dict | list)}


def _fact(key: str, value: Any) -> str:
    size = number(value)
    return f"{size / 2**30:.1f} GiB" if key.endswith("_bytes") and size == size else text(value)
