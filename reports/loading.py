"""Records -> tidy DataFrames. Nothing here trusts a record to have any particular key or type."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd

from bench.errors import RecordError
from bench.records import RunRecord, read_record, runs_folder
from reports.metrics import METRICS

RUN_COLUMNS: dict[str, str] = {
    "run_id": "the record's name",
    "status": "completed, diverged or failed",
    "model": "the architecture's name in the registry",
    "seed": "seed of the run",
    "setting": "what runs must share to be compared: data, recipe, budget, device, threads; as a short text",
    "setting_id": "hash of the whole configuration but model and seed, and of the machine's processor and accelerator",
    "data": "name of the data set",
    "data_sha256": "hash of the data set's content",
    "recipe": "name of the recipe",
    "budget": "the budget as text: `30 epochs`",
    "device": "cpu, cuda:0, mps, …",
    "threads": "CPU threads",
    "cpu": "processor",
    "gpu": "accelerator, empty where there is none",
    "torch": "version of torch",
    "commit": "git commit, with `+` behind it where the tree was changed",
    "started_at": "when the run began, as the record has it",
    "disturbed": "number of disturbances noted",
    "error_kind": "class of the exception, empty where the run completed",
    "error_message": "its message",
    "test_top1_low": "ends of a 95% interval where the record has one: `KEY_low`, `KEY_high`",
} | {key: f"{m.axis}: the record's value, unscaled" for key, m in METRICS.items()}
"""Columns of `load_runs` and what they hold; metrics are floats, NaN where a record has none."""

_INTERVALS = ("throughput_img_per_s", "train_throughput_img_per_s")
_DERIVED = ("macs_per_s", "macs_utilisation", "calibration_error")
BESIDE = (".card.json",)
"""Files that lie beside the records and are none."""
HISTORY_COLUMNS = (
    "epoch",
    "seconds",
    "images_seen",
    "lr",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_miou",
)


@dataclass(frozen=True)
class Results:
    """A results folder in memory: the records, one row a run, and what could not be read."""

    runs: pd.DataFrame
    records: dict[str, RunRecord]
    damaged: list[str] = field(default_factory=list)


@contextmanager
def without_collector() -> Iterator[None]:
    """Thousands of records are millions of small objects without cycles: walking them again and again takes a third."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@without_collector()
def load_results(path: str | Path) -> Results:
    """Everything in ``path/runs``; damaged records are listed, not raised. An empty folder gives an empty table."""
    fs, folder = fsspec.url_to_fs(runs_folder(path))
    records: list[RunRecord] = []
    damaged: list[str] = []
    for name in sorted(fs.glob(f"{folder}/*.json")):
        if name.endswith(BESIDE):
            continue
        try:
            records.append(RunRecord.model_validate_json(fs.cat_file(name)))
        except (OSError, ValueError):  # read again, slowly, for an error that says what to do
            try:
                records.append(read_record(fs.unstrip_protocol(name)))
            except RecordError as error:
                damaged.append(str(error))
    return Results(runs_table(records), {text(record.run_id): record for record in records}, damaged)


def load_runs(path: str | Path) -> pd.DataFrame:
    """One row a run, with the columns of `RUN_COLUMNS`; records that cannot be read are left out."""
    return load_results(path).runs


def load_history(path: str | Path) -> pd.DataFrame:
    """One row an epoch of a run: run_id, setting, model, seed and `HISTORY_COLUMNS`.

    ``epoch`` counts those done, from 1; ``seconds`` are of training alone; losses and accuracies are those at its end.
    """
    results = load_results(path)
    return history_table(results.runs, results.records)


def runs_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """The table of `load_runs` for records already in memory."""
    rows = [_row(record) for record in records]
    frame = pd.DataFrame(rows, columns=_columns())
    numbers = [c for c in _columns() if c in METRICS or c.endswith(("_low", "_high")) or c in ("seed", "threads")]
    frame[numbers] = frame[numbers].astype(float)
    frame["disturbed"] = frame["disturbed"].astype(int)
    return _tell_settings_apart(frame)


def history_table(runs: pd.DataFrame, records: dict[str, RunRecord]) -> pd.DataFrame:
    """The table of `load_history` for runs and records already in memory."""
    rows = [
        (run_id, setting, model, seed, *(number(row.get(column)) for column in HISTORY_COLUMNS))
        for run_id, setting, model, seed in zip(runs.run_id, runs.setting, runs.model, runs.seed, strict=True)
        for row in records[run_id].history
    ]
    table = pd.DataFrame(rows, columns=["run_id", "setting", "model", "seed", *HISTORY_COLUMNS])
    table["epoch"] += (table.groupby("run_id").epoch.transform("min") == 0).astype(float)
    return table


def number(value: Any) -> float:
    """A finite number as a float; NaN for everything else that a record may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def text(value: Any) -> str:
    """Any value as a string that every file format can hold: lone surrogates become U+FFFD."""
    if value is None:
        return ""
    return str(value).encode("utf-8", "replace").decode("utf-8") if not isinstance(value, float) else f"{value:g}"


def matrix(value: Any, columns: int | None = None) -> list[list[float]]:
    """A record's list of rows as floats, or an empty list if it is not a matrix (with that many columns)."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        return []
    width = columns or len(value[0])
    rows = [[number(cell) for cell in row] for row in value]
    return rows if all(len(row) == width for row in rows) else []


def calibration_error(bins: list[list[float]]) -> float:
    """Expected calibration error: |confidence − accuracy| averaged over bins, weighted by count.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3. ``bins`` are rows of mean confidence, accuracy, count.
    """
    filled = [(c, a, n) for c, a, n in bins if n > 0 and math.isfinite(c) and math.isfinite(a)]
    total = sum(n for _, _, n in filled)
    return sum(n * abs(c - a) for c, a, n in filled) / total if total else math.nan


def _columns() -> list[str]:
    plain = [column for column in RUN_COLUMNS if column != "test_top1_low"]
    return plain + [f"{key}_{end}" for key in _INTERVALS for end in ("low", "high")]


def get(tree: Any, *path: str) -> Any:
    """The value at a path of nested dicts, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _row(record: RunRecord) -> dict[str, Any]:
    config, environment, metrics = record.config, record.environment, record.metrics
    commit = text(get(environment, "git", "commit"))
    row: dict[str, Any] = {
        "run_id": text(record.run_id),
        "status": record.status,
        "model": text(config.get("model")) or text(record.run_id),
        "seed": number(config.get("seed")),
        "setting_id": _setting_id(config, environment),
        "data": text(get(environment, "data", "name")) or text(config.get("data")),
        "data_sha256": text(config.get("data_sha256") or get(environment, "data", "sha256")),
        "recipe": text(get(config, "recipe", "name") or config.get("recipe")),
        "budget": budget_text(config.get("budget")),
        "device": text(config.get("device")),
        "threads": number(config.get("threads")),
        "cpu": text(get(environment, "machine", "cpu")),
        "gpu": text(get(environment, "machine", "gpu")),
        "torch": text(get(environment, "versions", "torch")),
        "commit": commit + ("+" if commit and get(environment, "git", "dirty") else ""),
        "started_at": text(environment.get("started_at")),
        "disturbed": len(record.flags),
        "error_kind": text(record.error.kind) if record.error else "",
        "error_message": text(record.error.message) if record.error else "",
    }
    row |= {key: number(metrics.get(key)) for key in METRICS if key not in _DERIVED}
    row |= {f"{key}_{end}": number(metrics.get(f"{key}_{end}")) for key in _INTERVALS for end in ("low", "high")}
    peak = number(environment.get("peak_macs_per_s"))
    row["macs_per_s"] = row["macs"] * row["throughput_img_per_s"]
    row["macs_utilisation"] = row["macs_per_s"] / peak if peak > 0 else math.nan
    row["calibration_error"] = calibration_error(matrix(record.samples.get("test_calibration"), 3))
    row["setting"] = " · ".join(filter(None, (row["data"], row["recipe"], row["budget"], _device_text(row))))
    return row


def _setting_id(config: dict[str, Any], environment: dict[str, Any]) -> str:
    shared = {key: value for key, value in config.items() if key not in ("model", "seed")}
    machine = [get(environment, "machine", "cpu"), get(environment, "machine", "gpu")]
    canonical = json.dumps([shared, machine], sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def budget_text(budget: Any) -> str:
    """``{"epochs": 30}`` as ``30 epochs``."""
    if not isinstance(budget, dict):
        return text(budget)
    units = {"seconds": "s", "epochs": "epochs", "macs": "MACs"}
    parts = [f"{text(value)} {units.get(key, key)}" for key, value in budget.items() if value is not None]
    return ", ".join(parts).replace("1 epochs", "1 epoch") if parts == ["1 epochs"] else ", ".join(parts)


def _device_text(row: dict[str, Any]) -> str:
    threads = row["threads"]
    if row["device"] == "cpu" and threads == threads:
        return f"cpu, {threads:.0f} thread{'s' if threads != 1 else ''}"
    return str(row["device"])


def _tell_settings_apart(frame: pd.DataFrame) -> pd.DataFrame:
    """Where two settings differ in something that their short text does not name, add the hash to it."""
    pairs = frame[["setting", "setting_id"]].drop_duplicates()
    ambiguous = {name for name, count in Counter(pairs.setting).items() if count > 1}
    if ambiguous:
        clash = frame.setting.isin(ambiguous)
        frame.loc[clash, "setting"] = frame.setting[clash] + " · #" + frame.setting_id[clash]
    return frame
