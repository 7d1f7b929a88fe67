"""What pytest-benchmark stored, read as figures that a baseline can be made of. Imports no torch.

Its JSON is written by ``pytest --benchmark-json FILE`` and ``pytest --benchmark-save NAME --benchmark-save-data``. Our
records go the other way by ``zoobench export --format pytest-benchmark``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import RecordError


@dataclass(frozen=True)
class BenchmarkFigure:
    """One benchmark of a stored session.

    ``seconds`` has a value a round: the mean seconds of one of its ``iterations``. ``machine_info`` and
    ``commit_info`` are the session's, as stored; ``commit`` is its id, with ``+`` behind it where the tree was
    changed, and empty where there was none. ``fullname`` is unique within a session, ``name`` need not be.
    """

    name: str
    fullname: str
    seconds: tuple[float, ...]
    iterations: int
    machine_info: Mapping[str, Any]
    commit: str
    recorded_at: str
    params: Mapping[str, Any] = field(default_factory=dict)
    extra_info: Mapping[str, Any] = field(default_factory=dict)


def load_pytest_benchmark(path: str | Path) -> list[BenchmarkFigure]:
    """All benchmarks of a file, in its order. Raises `RecordError` if it is none of pytest-benchmark's, or lacks times.

    A benchmark that failed has no times and is an error too: a baseline must not lose one silently.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"the file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise RecordError(f"the file {str(path)!r} is not JSON ({error}). {_HOW_TO_WRITE}") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("benchmarks"), list):
        raise RecordError(f"the file {str(path)!r} is not one of pytest-benchmark's. {_HOW_TO_WRITE}")
    machine_info, commit_info = (_table(stored.get(key)) for key in ("machine_info", "commit_info"))
    commit = str(commit_info.get("id") or "")
    commit += "+" if commit and commit_info.get("dirty") else ""
    recorded_at = str(stored.get("datetime") or "")
    figures = []
    for benchmark in map(_table, stored["benchmarks"]):
        stats = _table(benchmark.get("stats"))
        name, iterations = str(benchmark.get("name") or ""), stats.get("iterations", 1)
        seconds = stats.get("data")
        if not isinstance(seconds, list) or not seconds or not all(map(_is_time, seconds)) or not name:
            raise RecordError(
                f"the benchmark {name!r} in {str(path)!r} has no times of its rounds, at most a summary. "
                f"{_HOW_TO_WRITE}"
            )
        figures.append(
            BenchmarkFigure(
                name=name,
                fullname=str(benchmark.get("fullname") or name),
                seconds=tuple(map(float, seconds)),
                iterations=iterations if isinstance(iterations, int) and iterations > 0 else 1,
                machine_info=machine_info,
                commit=commit,
                recorded_at=recorded_at,
                params=_table(benchmark.get("params")),
                extra_info=_table(benchmark.get("extra_info")),
            )
        )
    return figures


_HOW_TO_WRITE = (
    "Write one with `pytest --benchmark-json FILE`, or with `--benchmark-save NAME` and `--benchmark-save-data`."
)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
