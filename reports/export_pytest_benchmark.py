"""Records as pytest-benchmark's JSON, so that ``pytest-benchmark compare`` shows them beside other benchmarks.

A benchmark is a timed phase of a run, named by the run id: equal names are equal configurations. A round is a timed
block, an iteration a step on one batch. A file holds what one machine measured at one commit.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.errors import RecordError
from bench.records import RunRecord
from reports.data.loading import get, text

FOLDER = "pytest-benchmark"
_PHASES = {
    "infer": ("infer_block_seconds", "throughput_steps_per_block"),
    "train": ("train_block_seconds", "train_throughput_steps_per_block"),
    "latency": ("latency_seconds", ""),
}
"""A phase: its raw times in the record, and the metric that says how many steps each is of (one if none)."""


def write_pytest_benchmark(records: Iterable[RunRecord], folder: Path) -> list[Path]:
    """Write ``folder/pytest-benchmark/NNNN_COMMIT.json``, one file per machine and commit, the oldest first.

    Raises `RecordError` if no record has timed blocks, and `OSError` if the folder cannot be written.
    """
    sessions: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda record: text(record.environment.get("started_at"))):
        if any(_times(record, phase) for phase in _PHASES):
            session = [_machine_info(record), _commit_info(record)]
            sessions.setdefault(json.dumps(session, sort_keys=True, default=str), []).append(record)
    if not sessions:
        raise RecordError(
            "no record has timed blocks, so there is nothing to write in the format of pytest-benchmark. "
            "`zoobench run` measures; a run that failed before it measured has none."
        )
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    written = []
    for number, own in enumerate(sessions.values(), start=1):
        commit = "".join(character for character in _commit_info(own[0])["id"] if character.isalnum())[:12]
        path = folder / FOLDER / f"{number:04}_{commit}.json"
        path.write_text(json.dumps(_session(own), indent=4, default=str) + "\n", encoding="utf-8")
        written.append(path)
    return written


def summarize_rounds(seconds: list[float]) -> dict[str, Any]:
    """The summary of rounds that pytest-benchmark stores: its names, its quartiles (Tukey's hinges, without median)."""
    data = sorted(seconds)
    mean, deviation = statistics.mean(data), statistics.stdev(data) if len(data) > 1 else 0.0
    low, high = _quartiles(data)
    spread = high - low
    inside = [value for value in data if low - 1.5 * spread <= value <= high + 1.5 * spread]
    far = sum(abs(value - mean) > deviation for value in data)
    outside = len(data) - len(inside)
    return {
        "min": data[0], "max": data[-1], "mean": mean, "stddev": deviation, "rounds": len(data),
        "median": statistics.median(data), "iqr": spread, "q1": low, "q3": high, "iqr_outliers": outside,
        "stddev_outliers": far, "outliers": f"{far};{outside}", "ld15iqr": inside[0], "hd15iqr": inside[-1],
        "ops": len(data) / sum(data), "total": sum(data),
    }  # fmt: skip


def _quartiles(data: list[float]) -> tuple[float, float]:
    """By the methods that pytest-benchmark takes from Wikipedia's list: the second for even counts, else the third."""
    count = len(data)
    if count == 1:
        return data[0], data[0]
    if count % 2 == 0:
        return statistics.median(data[: count // 2]), statistics.median(data[count // 2 :])
    n = count // 4
    if count % 4 == 1:
        return 0.25 * data[n - 1] + 0.75 * data[n], 0.75 * data[3 * n] + 0.25 * data[3 * n + 1]
    return 0.75 * data[n] + 0.25 * data[n + 1], 0.25 * data[3 * n + 1] + 0.75 * data[3 * n + 2]


def _session(records: list[RunRecord]) -> dict[str, Any]:
    return {
        "machine_info": _machine_info(records[0]),
        "commit_info": _commit_info(records[0]),
        "benchmarks": [_benchmark(record, phase) for record in records for phase in _PHASES if _times(record, phase)],
        "datetime": text(records[0].environment.get("started_at")),
        "version": f"zoobench {text(get(records[0].environment, 'versions', 'zoobench'))}".strip(),
    }


def _benchmark(record: RunRecord, phase: str) -> dict[str, Any]:
    steps = _steps(record, phase)
    seconds = [block / steps for block in _times(record, phase)]
    batch_size = 1 if phase == "latency" else record.metrics.get("throughput_batch_size")
    name = f"{phase}[{text(record.run_id)}]"
    return {
        "group": phase,
        "name": name,
        "fullname": f"zoobench::{name}",
        "params": {"model": text(record.config.get("model")), "seed": record.config.get("seed")},
        "param": text(record.run_id),
        "extra_info": {
            "batch_size": batch_size,
            "disturbed": [str(flag) for flag in record.flags],
        },
        "options": {"timer": "zoobench"},
        "stats": summarize_rounds(seconds) | {"data": seconds, "iterations": steps},
    }


def _times(record: RunRecord, phase: str) -> list[float]:
    """The raw times of a phase; none if the record's are not times."""
    found: list[Any] = []
    for item in record.samples.get(_PHASES[phase][0], []):
        found += item if isinstance(item, list) else [item]  # a list a repeat; earlier records have one for all
    times = [value for value in found if isinstance(value, float) and math.isfinite(value) and value > 0]
    return times if len(times) == len(found) else []


def _steps(record: RunRecord, phase: str) -> int:
    steps = record.metrics.get(_PHASES[phase][1])
    return steps if isinstance(steps, int) and steps > 0 else 1


def _machine_info(record: RunRecord) -> dict[str, Any]:
    environment = record.environment
    machine = environment.get("machine")
    return {
        **(machine if isinstance(machine, dict) else {}),
        "threads": environment.get("threads", record.config.get("threads")),
        "versions": environment.get("versions"),
    }


def _commit_info(record: RunRecord) -> dict[str, Any]:
    git = record.environment.get("git")
    known = git if isinstance(git, dict) else {}
    return {
        "id": text(known.get("commit")) or "unversioned",
        "dirty": bool(known.get("dirty")),
        "time": None,
        "author_time": None,
        "project": "zoobench",
        "branch": "(unknown)",
    }
