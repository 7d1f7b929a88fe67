"""`zoobench history`: a model's records in order of time, the steps in them, and the commit at which each begins.

Records from different machines, or measured differently, are never mixed: each such setting is a series of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import RecordError, did_you_mean
from bench.records import RunRecord, check_exists, plan_folders
from reports.data.change_points import find_change_points
from reports.data.loading import get, load_measurements, number, runs_table, text
from reports.data.metrics import METRICS, metric
from reports.data.statistics import welch_interval

POINT_COLUMNS = ("series", "run_id", "started_at", "commit", "value", "low", "high", "disturbed", "versions")
STEP_COLUMNS = (
    "series", "index", "run_id", "started_at", "commit", "commit_before", "change", "low", "high", "p", "better",
    "before", "after", "also_changed",
)  # fmt: skip
_OF_A_GPU = ("power_limit_watts", "mig")
_OF_ITS_PRODUCTS = ("cuda_matmul", "cudnn_conv", "tf32_override", "cudnn_benchmark")
_NAMED_ALREADY = ("cpu", "gpu", "threads", "setting_id")
_RATIO_FREE = ("%", "")
"""Units of metrics whose steps are differences; those of all others are ratios, found in logarithms."""


def _is_speed(key: str) -> bool:
    """Whether a metric depends on the network and how it was measured alone, not on how it was trained."""
    return metric(key).of == "measurement"


def is_ratio(key: str) -> bool:
    """Whether the steps of a metric are ratios (speed, memory, energy) rather than differences (accuracy, loss)."""
    return metric(key).unit not in _RATIO_FREE


def load_points(
    results: Iterable[str | Path], model: str, key: str = "throughput_img_per_s", *, undisturbed: bool = False
) -> pd.DataFrame:
    """A model's measurements of one metric, one row per record, by series and time; from folders of plans, or of one.

    ``series`` says in words what its records share; ``value``, ``low`` and ``high`` are the record's, unscaled;
    ``disturbed`` whether the record was disturbed, and with ``undisturbed`` such are left out; ``versions`` is a dict.
    Records without a time, or without the metric, are left out. Raises `RecordError` if there is nothing.
    """
    if key not in METRICS:
        raise RecordError(f"there is no metric {key!r}.{did_you_mean(key, METRICS)} Possible: {', '.join(METRICS)}.")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    models: set[str] = set()
    folders = [str(folder) for folder in results]
    for folder in folders:
        check_exists(folder)
    for folder in (inner for outer in folders for inner in plan_folders(outer)):
        records = load_measurements(folder)
        runs = runs_table(records)
        models |= set(runs.model)
        for place in np.flatnonzero(runs.model == model):
            run, record = runs.iloc[place], records[place]
            value = number(run[key])
            usable = record.status == "completed" and run["started_at"] and math.isfinite(value)
            usable = usable and ("trained" not in record.environment or _is_speed(key))  # else it says nothing new
            if not usable or (is_ratio(key) and value <= 0) or (undisturbed and run["disturbed"] > 0):
                continue
            rows[str(run["run_id"]), str(run["started_at"])] = {
                "setting": _setting(record, key, run),
                "run_id": run["run_id"],
                "started_at": pd.to_datetime(str(run["started_at"]), utc=True, errors="coerce"),
                "commit": run["commit"],
                "value": value,
                "low": number(record.metrics.get(f"{key}_low")),
                "high": number(record.metrics.get(f"{key}_high")),
                "disturbed": bool(run["disturbed"] > 0),
                "versions": get(record.environment, "versions") or {},
            }
    if model not in models:
        raise RecordError(f"there is no record of {model!r} in {', '.join(folders)}.{did_you_mean(model, models)}")
    if not rows:
        raise RecordError(
            f"no completed{' and undisturbed' if undisturbed else ''} record of {model!r} in {', '.join(folders)} has "
            f"a time and a {key}. Choose another with --metric, or name more folders with --results."
        )
    frame = pd.DataFrame(rows.values()).dropna(subset=["started_at"])
    names = _names(frame.setting.tolist())
    frame["series"] = [names[setting] for setting in frame.setting]
    return frame.sort_values(["series", "started_at", "run_id"], ignore_index=True)[list(POINT_COLUMNS)]


def find_steps(points: pd.DataFrame, key: str = "throughput_img_per_s", alpha: float = 0.05) -> pd.DataFrame:
    """The steps in each series of `load_points`, by `find_change_points`: one row per step.

    A step begins at the record ``run_id``, the ``index``-th of its series from 0; what caused it lies after
    ``commit_before``, up to ``commit``. ``change`` is its size with its 95% interval ``low`` to ``high`` (Welch's, of
    the two levels beside it; a little narrow, as the place was chosen for its size): a ratio − 1 where `is_ratio`,
    else a difference. ``better`` is None for a metric that is neither good nor bad; ``before`` and ``after`` count the
    records of the two levels; ``also_changed`` names library versions that differ across the step.
    """
    steps: list[dict[str, Any]] = []
    ratio, better = is_ratio(key), metric(key).better
    for series, rows in points.groupby("series", sort=False):
        rows = rows.reset_index(drop=True)
        values = rows.value.to_numpy(float)
        values = np.log(values) if ratio else values
        changes = find_change_points(values, alpha)
        ends = [0, *(change.index for change in changes), len(values)]
        for k, change in enumerate(changes):
            at = change.index
            change_low_high = welch_interval(values[ends[k] : at], values[at : ends[k + 2]])
            size = [math.expm1(each) if ratio else each for each in change_low_high]
            first, last = rows.iloc[at], rows.iloc[at - 1]
            steps.append({
                "series": series, "index": at, "run_id": first.run_id, "started_at": first.started_at,
                "commit": first["commit"], "commit_before": last["commit"],
                "change": size[0], "low": size[1], "high": size[2], "p": change.p,
                "better": None if better is None else (size[0] > 0) == (better == "higher"),
                "before": at - ends[k], "after": ends[k + 2] - at,
                "also_changed": _changed(last.versions, first.versions),
            })  # fmt: skip
    return pd.DataFrame(steps, columns=list(STEP_COLUMNS))


def change_text(step: pd.Series, key: str) -> str:
    """``−12.3% [−13.0, −11.6]``; of an accuracy, in its unit: ``−1.20 [−1.50, −0.90]``."""
    if is_ratio(key):
        value, low, high = (f"{100 * step[end]:+.1f}" for end in ("change", "low", "high"))
        written = f"{value}% [{low}, {high}]"
    else:
        m = metric(key)
        value, low, high = (f"{m.scale * step[end]:+.{max(m.digits, 2)}f}" for end in ("change", "low", "high"))
        written = f"{value} [{low}, {high}]"
    return written.replace("-", "−")


def _setting(record: RunRecord, key: str, run: pd.Series) -> str:
    """What a measurement's value depends on besides the code, as JSON; a speed depends on less than an accuracy."""
    config, environment = record.config, record.environment
    machine = {name: get(environment, "machine", name) for name in ("cpu", "cores", "gpu", "system")}
    shared = {**machine, "device": config.get("device"), "threads": config.get("threads")}
    if _is_speed(key):
        form = get(environment, "tuning", "form") or config
        shared |= {name: bool(form.get(name)) for name in ("channels_last", "autocast", "compile")}
        shared |= {name: get(config, "measure", name) for name in ("batch_size", "dtype")}
        shared |= {"input_size": get(environment, "data", "input_size") or config.get("input_size")}
        shared |= {"spin": environment.get("openmp_spin"), "batch_norm": get(config, "recipe", "batch_norm")}
        if key.startswith("best_batch"):
            shared |= {"batch_sizes": get(config, "measure", "batch_sizes")}
        if machine["gpu"]:
            shared |= {name: get(environment, "machine", name) for name in _OF_A_GPU}
            shared |= {name: get(environment, "precision", name) for name in _OF_ITS_PRODUCTS}
        if key.startswith("train_"):
            shared |= {"recipe": run["recipe"]}
    else:
        # Without the hash that only some folders need to tell their settings apart.
        words = str(run["setting"]).removesuffix(f" · #{run['setting_id']}")
        shared |= {"setting": words, "setting_id": run["setting_id"]}
    return json.dumps(shared, sort_keys=True, default=str)


def _names(settings: list[str]) -> dict[str, str]:
    """A short text for each setting: the machine, and whatever differs between the settings."""
    tables: dict[str, dict[str, Any]] = {setting: json.loads(setting) for setting in dict.fromkeys(settings)}
    differing = [
        name
        for name in dict.fromkeys(name for table in tables.values() for name in table)
        if len({json.dumps(table.get(name)) for table in tables.values()}) > 1
    ]
    names: dict[str, str] = {}
    for setting, table in tables.items():
        parts = [text(table["gpu"]) or text(table["cpu"]) or "unknown machine", f"{text(table['threads'])} threads"]
        parts += [f"{n} {text(table.get(n)) or 'none'}" for n in differing if n not in _NAMED_ALREADY]
        name = " · ".join(parts)
        names[setting] = f"{name} · #{text(table.get('setting_id'))}" if name in names.values() else name
    return names


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    pairs = [(name, text(before.get(name)) or "none", text(after.get(name)) or "none") for name in {**before, **after}]
    return ", ".join(f"{name} {old} → {new}" for name, old, new in pairs if old != new)
