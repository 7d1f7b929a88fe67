"""Baselines made of what pytest-benchmark stored: the seconds of its rounds, relative to nothing."""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.baselines import Baseline, BaselineError, EmptyBaselineError, Figure
from bench.pytest_benchmark import BenchmarkFigure, load_pytest_benchmark


def import_pytest_benchmark(name: str, files: Sequence[str | Path]) -> Baseline:
    """A baseline of all benchmarks in pytest-benchmark's files, by their full names; one file a session.

    Raises:
        RecordError: a file that is none of pytest-benchmark's.
        BaselineError: sessions of unlike machines or commits, or with unlike benchmarks.
        EmptyBaselineError: no benchmark in any file.
    """
    sessions = [load_pytest_benchmark(file) for file in files]
    if not any(sessions):
        raise EmptyBaselineError(
            f"{', '.join(map(str, files))}: no benchmark in it, so there is nothing to make a baseline of. Write one "
            "with `pytest --benchmark-json FILE`."
        )
    origins = [_origin(session) for session in sessions]
    for file, origin in zip(files, origins, strict=True):
        for what, of_first, of_this in zip(("machine", "commit", "benchmarks"), origins[0], origin, strict=True):
            if of_first != of_this:
                raise BaselineError(
                    f"{file} and {files[0]} are of unlike sessions: they differ in their {what} ({_shown(of_this)} and "
                    f"{_shown(of_first)}). The sessions of one baseline are repetitions of the same; import others "
                    "as a baseline of their own."
                )
    environment, commit, _ = origins[0]
    figures = {}
    for fullname in (figure.fullname for figure in sessions[0]):
        rounds = [figure.seconds for session in sessions for figure in session if figure.fullname == fullname]
        step_ms = 1000 * statistics.median(value for each in rounds for value in each)
        figures[fullname] = Figure(step_ms=step_ms, sessions_seconds=tuple(rounds))
    return Baseline(
        name=name,
        source="pytest-benchmark",
        saved_at=sessions[0][0].recorded_at or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        side="pytest-benchmark",
        commit=commit,
        zoobench=importlib.metadata.version("zoobench"),
        environment=dict(environment),
        figures=figures,
    )


def _origin(session: Sequence[BenchmarkFigure]) -> tuple[Mapping[str, Any], str, list[str]]:
    """What repetitions of one session have in common: the machine, the commit, the names."""
    if not session:
        return {}, "", []
    info = session[0].machine_info
    cpu = info.get("cpu") if isinstance(info.get("cpu"), dict) else {}
    assert isinstance(cpu, dict)
    environment = {
        "cpu": cpu.get("brand_raw") or info.get("processor"),
        "cores": cpu.get("count"),
        "system": f"{info.get('system')} {info.get('machine')}",
        "python": info.get("python_version"),
    }
    return environment, session[0].commit, sorted(figure.fullname for figure in session)


def _shown(value: Any) -> str:
    text = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
