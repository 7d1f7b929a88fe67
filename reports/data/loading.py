"""Records -> tidy DataFrames. Nothing here trusts a record to have any particular key or type."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench.collector import without_collector
from bench.errors import RecordError
from bench.flags import REMARKS
from bench.records import Folders, RunRecord, own_or_inner_plans, read_record, record_paths
from bench.stores import file_system
from reports.data.metrics import METRICS
from reports.data.statistics import wilson_interval

_OWN_INTERVALS = {
    "test_top1": ", Wilson's",
    "throughput_img_per_s": "",
    "train_throughput_img_per_s": "",
    "latency_p50_ms": "",
}
_NUMBERS = {key: f"{m.axis}: the record's value, unscaled" for key, m in METRICS.items()} | {
    f"{key}_{end}": f"{end} end of the run's own 95% interval of {key}{whose}"
    for key, whose in _OWN_INTERVALS.items()
    for end in ("low", "high")
}
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
    "test_images": "images of the test split",
    "error_kind": "class of the exception, empty where the run completed",
    "error_message": "its message",
} | _NUMBERS
"""Columns of `load_runs` and what they hold; metrics are floats, NaN where a record has none."""
NUMBER_COLUMNS = ["seed", "threads", "test_images", *_NUMBERS]
"""Those that are floats."""

_DERIVED = ("macs_per_s", "macs_utilisation", "calibration_error")
HISTORY_COLUMNS = (
    "epoch",
    "seconds",
    "images_seen",
    "full_size_images",
    "lr",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_miou",
)


@dataclass(frozen=True)
class Results:
    """A results folder in memory: the records by run id, one row per run, and what could not be read."""

    runs: pd.DataFrame
    records: dict[str, RunRecord]
    damaged: list[str] = field(default_factory=list)


@without_collector()
def load_results(path: Folders) -> Results:
    """The records of a plan's results folder, or of every plan where ``path`` only holds such folders; or of several.

    Damaged records are listed, not raised; an empty folder gives an empty table. Of a run that is in several plans
    the latest record counts, and a failed one only where there is no other.
    """
    records: dict[str, RunRecord] = {}
    found, damaged = _read(path)
    for record in found:
        key = text(record.run_id)
        if key not in records or _rank(record) >= _rank(records[key]):
            records[key] = record
    return Results(runs_table(records.values()), records, damaged)


@without_collector()
def load_measurements(path: Folders) -> list[RunRecord]:
    """Every record of `load_results`' folders, also those that were replaced when a run was measured again."""
    return _read(path, earlier=True)[0]


def _read(path: Folders, *, earlier: bool = False) -> tuple[list[RunRecord], list[str]]:
    records: list[RunRecord] = []
    damaged: list[str] = []
    for folder in own_or_inner_plans(path):
        fs, _ = file_system(folder)
        for name in record_paths(folder, earlier=earlier):
            try:
                records.append(RunRecord.model_validate_json(fs.cat_file(name)))
            except (OSError, ValueError):  # read again, slowly, for an error that says what to do
                try:
                    records.append(read_record(name))
                except RecordError as error:
                    damaged.append(str(error))
    return records, damaged


def _rank(record: RunRecord) -> tuple[bool, str]:
    return record.status != "failed", text(record.environment.get("started_at"))


def load_runs(path: Folders) -> pd.DataFrame:
    """One row per run, with the columns of `RUN_COLUMNS`; records that cannot be read are left out."""
    return load_results(path).runs


def load_history(path: Folders) -> pd.DataFrame:
    """One row per epoch of a run: run_id, setting, model, seed and `HISTORY_COLUMNS`.

    ``epoch`` counts those done, from 1; ``seconds`` are of training alone; losses and accuracies are as of its end.
    ``full_size_images`` are the images seen by then, those of epochs with smaller ones by their share of the pixels.
    """
    results = load_results(path)
    return history_table(results.runs, results.records)


def runs_table(records: Iterable[RunRecord]) -> pd.DataFrame:
    """The table of `load_runs` for records already in memory."""
    records = list(records)
    rows = [_row(record) for record in records]
    _tell_checkpoints_apart(rows, records)
    frame = pd.DataFrame(rows, columns=list(RUN_COLUMNS))
    frame[NUMBER_COLUMNS] = frame[NUMBER_COLUMNS].astype(float)
    frame["test_top1_low"], frame["test_top1_high"] = wilson_interval(frame.test_top1, frame.test_images)
    frame["disturbed"] = frame["disturbed"].astype(int)
    return _tell_settings_apart(frame)


def history_table(runs: pd.DataFrame, records: dict[str, RunRecord]) -> pd.DataFrame:
    """The table of `load_history` for runs and records already in memory."""
    rows = [
        (run_id, setting, model, seed, *(number(row.get(column)) for column in HISTORY_COLUMNS))
        for run_id, setting, model, seed in zip(runs.run_id, runs.setting, runs.model, runs.seed, strict=True)
        for row in _with_full_size_images(records[run_id])
    ]
    table = pd.DataFrame(rows, columns=["run_id", "setting", "model", "seed", *HISTORY_COLUMNS])
    table["epoch"] += (table.groupby("run_id").epoch.transform("min") == 0).astype(float)
    return table


def _with_full_size_images(record: RunRecord) -> Iterator[dict[str, Any]]:
    small_epochs, small = (number(get(record.config, "recipe", key)) for key in ("small_epochs", "small_size"))
    size = number(get(record.environment, "data", "input_size"))
    side = small / size if size > 0 else math.nan
    total = before = 0.0
    for index, row in enumerate(record.history):
        if math.isnan(seen := number(row.get("images_seen"))):
            yield row
            continue
        total, before = total + (seen - before) * (side * side if index < small_epochs else 1.0), seen
        yield row | {"full_size_images": total}


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
        "model": _model_name(config) or text(record.run_id),
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
        "disturbed": sum(flag.kind not in REMARKS for flag in record.flags),
        "test_images": number(get(environment, "data", "test")),
        "error_kind": text(record.error.kind) if record.error else "",
        "error_message": text(record.error.message) if record.error else "",
    }
    row |= {key: number(metrics.get(key)) for key in METRICS if key not in _DERIVED}
    row |= {f"{key}_{end}": number(metrics.get(f"{key}_{end}")) for key in _OWN_INTERVALS for end in ("low", "high")}
    peak = number(environment.get("peak_macs_per_s"))
    row["macs_per_s"] = row["macs"] * row["throughput_img_per_s"]
    row["macs_utilisation"] = row["macs_per_s"] / peak if peak >= row["macs_per_s"] else math.nan
    row["calibration_error"] = calibration_error(matrix(record.samples.get("test_calibration"), 3))
    row["setting"] = " · ".join(filter(None, (row["data"], row["recipe"], row["budget"], _device_text(row))))
    return row


OF_A_MODEL = frozenset({
    "model", "seed", "lr_peak", "weight_decay", "options", "weights", "weights_sha256", "normalization", "mean", "std",
    "interpolation", "network_input_size", "test_flip", "corruptions", "speed",
})  # fmt: skip
"""What differs between the models of one setting, or between the weights that are evaluated in one."""
HOW_WELL_MEASURED = frozenset({"seconds", "precision", "block_seconds", "repeats", "batch_sizes", "probes"})
"""Settings of measuring that make an interval narrower or add a quantity, and change no quantity's meaning."""


def _model_name(config: dict[str, Any]) -> str:
    """The architecture; of evaluated weights also their file, so that two checkpoints are not two seeds of a model."""
    weights = text(config.get("weights"))
    return f"{text(config.get('model'))} [{weights.rpartition('/')[2]}]" if weights else text(config.get("model"))


def _tell_checkpoints_apart(rows: list[dict[str, Any]], records: list[RunRecord]) -> None:
    """Add the hash of evaluated weights to the names of models whose files are called alike."""
    hashes = [text(each.config.get("weights_sha256")) if each.config.get("weights") else "" for each in records]
    of_model: dict[str, set[str]] = {}
    for row, digest in zip(rows, hashes, strict=True):
        of_model.setdefault(row["model"], set()).add(digest)
    for row, digest in zip(rows, hashes, strict=True):
        if digest and len(of_model[row["model"]]) > 1:
            row["model"] = f"{row['model'][:-1]} {digest[:8]}]"


def _setting_id(config: dict[str, Any], environment: dict[str, Any]) -> str:
    shared = {key: value for key, value in config.items() if key not in OF_A_MODEL}
    if not config.get("weights") and (size := config.get("network_input_size")) is not None:
        shared["network_input_size"] = size  # which a run was asked for; evaluated weights have their own
    if isinstance(measure := shared.get("measure"), dict):
        shared["measure"] = {key: value for key, value in measure.items() if key not in HOW_WELL_MEASURED}
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
    """Add the hash to the short text of a setting where two settings would have the same text."""
    pairs = frame[["setting", "setting_id"]].drop_duplicates()
    ambiguous = {name for name, count in Counter(pairs.setting).items() if count > 1}
    if ambiguous:
        clash = frame.setting.isin(ambiguous)
        frame.loc[clash, "setting"] = frame.setting[clash] + " · #" + frame.setting_id[clash]
    return frame
