"""What a page is made of: one plain JSON value, taken from the records and embedded in the page.

A page is a pure function of its snapshot, so it can be made again from what it carries and compared: `reports.verify`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd

from bench.records import RunRecord
from reports.curves import curve_summary
from reports.loading import RUN_COLUMNS, Results, get, history_table, matrix, number, text
from reports.metrics import METRICS
from reports.tables import leaderboard, ranked_by

SCHEMA = 1
CURVES, POINTS = 8, 60
"""So many of the best models have their learning curves drawn, each with at most so many points."""
MISTAKES, CLASSES = 12, 100
LISTED = 100
"""Of failures, disturbances and damaged records so many are told in full; the others are counted."""

WATCHED = {"test_top1": "val_top1", "test_miou": "val_miou"}
"""What is looked at on ``val`` while models learn that are ranked by the one on ``test``."""
Snapshot = dict[str, Any]


def take_snapshot(results: Results, pages: dict[str, str] | None = None) -> Snapshot:
    """Everything that the comparison page shows or draws; ``pages`` are the models' own pages, by model."""
    runs = results.runs
    main = main_runs(runs)
    best = list(dict.fromkeys(leaderboard(main).model)) if len(main) else []
    completed = main[main.status == "completed"]
    drawn = completed[completed.model.isin(best[:CURVES])]
    watched = WATCHED[ranked_by(main)]
    target, seconds = _time_to_target(main, results.records, watched)
    mistakes = _by_model(completed[completed.model.isin(best[:MISTAKES])], results.records)
    snapshot = {
        "schema": SCHEMA,
        "made_with": versions(),
        "runs": {column: [_plain(value) for value in runs[column]] for column in map(str, runs)},
        "curves": _thin(curve_summary(history_table(drawn, results.records), watched), best[:CURVES]),
        "target": {watched: target, "seconds": seconds},
        "batches": _batches(completed, results.records),
        "peak_macs_per_s": _peak(main, results.records),
        **mistakes,
        "failures": _failures(runs, results.records),
        "disturbances": _disturbances(results.records),
        "damaged": [text(message) for message in results.damaged[:LISTED]],
        "damaged_count": len(results.damaged),
        "provenance": _provenance(runs, results.records),
        "pages": pages or {},
    }
    return dict(json.loads(to_json(snapshot)))


def to_json(snapshot: Snapshot) -> str:
    """The one text of a snapshot: ASCII, and harmless inside a script element."""
    plain = json.dumps(snapshot, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def runs_of(snapshot: Snapshot) -> pd.DataFrame:
    """The table of runs that a snapshot carries, equal to the one it was taken from."""
    frame = pd.DataFrame(snapshot["runs"])
    numbers = [c for c in map(str, frame) if c in METRICS or c not in RUN_COLUMNS or c in ("seed", "threads")]
    return frame.astype(dict.fromkeys(numbers, float) | {"disturbed": int})


def curves_of(snapshot: Snapshot) -> pd.DataFrame:
    """The learning curves that a snapshot carries."""
    columns = snapshot["curves"]["columns"]
    return pd.DataFrame(snapshot["curves"]["rows"], columns=columns).astype({c: float for c in columns if c != "model"})


def main_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the setting in which the most models completed; of the first by name, where there are several."""
    if runs.empty:
        return runs
    completed = runs[runs.status == "completed"].groupby("setting").model.nunique()
    counts = completed.reindex(sorted(set(runs.setting)), fill_value=0)
    return runs[runs.setting == counts.idxmax()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def versions() -> dict[str, str]:
    """What makes a page, each in its version."""
    return {name: _version(name) for name in ("zoobench", "matplotlib", "seaborn", "pandas")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


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
    """A mark that most models can meet, and rows of model, seed, training seconds until a run first met it, or None.

    The mark is the best of what is watched, of the median model's median run, down to the next 5%.
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


def _peak(runs: pd.DataFrame, records: dict[str, RunRecord]) -> float | None:
    peaks = [number(records[run_id].environment.get("peak_macs_per_s")) for run_id in runs.run_id]
    known = sorted(peak for peak in peaks if peak > 0)
    return known[len(known) // 2] if known else None


def _failures(runs: pd.DataFrame, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    lost = runs[runs.status != "completed"]
    columns = ["run_id", "model", "seed", "setting", "status", "error_kind", "error_message"]
    rows = [{str(k): _plain(v) for k, v in row.items()} for row in lost[columns].head(LISTED).to_dict("records")]
    for row in rows:
        record = records[row["run_id"]]
        row["epochs"] = len(record.history)
        row["traceback"] = text(record.error.traceback)[-4000:] if record.error else ""
    return rows


def _disturbances(records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """Like disturbances told once, with the number of runs that had them."""
    kinds: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], dict[str, str]] = {}
    for run_id, record in records.items():
        for flag in record.flags:
            key = (text(flag.kind), text(flag.phase))
            kinds[key] += 1
            example.setdefault(key, {"run_id": run_id, "message": text(flag.message)})
    common = kinds.most_common(LISTED)
    return [{"kind": kind, "phase": phase, "count": n, **example[kind, phase]} for (kind, phase), n in common]


def _provenance(runs: pd.DataFrame, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """What the runs were made with, told once for all runs that share it, with the number of those."""
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
