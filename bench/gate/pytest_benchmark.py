"""What pytest-benchmark stored, read as benchmarks and made into baselines: seconds, relative to nothing. No torch.

Its JSON is written by ``pytest --benchmark-json FILE`` and ``pytest --benchmark-save NAME --benchmark-save-data``. Our
records go the other way by ``zoobench export --format pytest-benchmark``.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import RecordError
from bench.gate.baselines import Baseline, BaselineError, EmptyBaselineError, Entry
from bench.records import parse_json

_HOW_TO_WRITE = (
    "Write one with `pytest --benchmark-json FILE`, or with `--benchmark-save NAME` and `--benchmark-save-data`."
)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a stored session.

    ``seconds`` has a value per round: the mean seconds of one of its ``iterations``. Where the file has only a summary,
    as most that are kept in repositories, it is the median alone, and ``summarized_rounds`` says of how many rounds (0
    where all are there). ``machine_info`` is the session's, as stored; ``commit`` is its id, with ``+`` behind it where
    the tree was changed, and empty where there was none. ``fullname`` is unique within a session, ``name`` need not be.
    ``stats`` is all that the file says of the times.
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
    summarized_rounds: int = 0
    stats: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def median_seconds(self) -> float:
        """Over the rounds."""
        return statistics.median(self.seconds)


def load_pytest_benchmark(path: str | Path) -> list[Benchmark]:
    """All benchmarks of a file, in its order.

    Raises `RecordError` if the file is not one of pytest-benchmark's, if two of its benchmarks have one name, and if
    one lacks times, as one that failed does: a baseline must not lose it silently.
    """
    try:
        stored = parse_json(Path(path).read_bytes())
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
    benchmarks: dict[str, Benchmark] = {}
    for benchmark in map(_table, stored["benchmarks"]):
        stats = _table(benchmark.get("stats"))
        name, iterations = str(benchmark.get("name") or ""), stats.get("iterations", 1)
        fullname = str(benchmark.get("fullname") or name)
        summarized = "data" not in stats and _is_time(stats.get("median"))
        seconds, rounds = ([stats["median"]], stats.get("rounds")) if summarized else (stats.get("data"), 0)
        if not isinstance(seconds, list) or not seconds or not all(map(_is_time, seconds)) or not name:
            raise RecordError(
                f"the benchmark {name!r} in {str(path)!r} has no times, neither of its rounds nor their median: it may "
                "have failed. Remove it from the file, or measure again."
            )
        if not isinstance(rounds, int) or rounds < summarized:
            raise RecordError(
                f"the benchmark {name!r} in {str(path)!r} has a median and no number of rounds that it is of "
                f"(rounds: {rounds!r}). {_HOW_TO_WRITE}"
            )
        if fullname in benchmarks:
            raise RecordError(
                f"two benchmarks in {str(path)!r} are named {fullname!r}, so their times cannot be kept apart. Rename "
                "one, and measure again."
            )
        benchmarks[fullname] = Benchmark(
            name=name,
            fullname=fullname,
            seconds=tuple(map(float, seconds)),
            iterations=iterations if isinstance(iterations, int) and iterations > 0 else 1,
            machine_info=machine_info,
            commit=commit,
            recorded_at=recorded_at,
            params=_table(benchmark.get("params")),
            extra_info=_table(benchmark.get("extra_info")),
            summarized_rounds=rounds,
            stats=stats,
        )
    return list(benchmarks.values())


def import_pytest_benchmark(name: str, files: Sequence[str | Path]) -> Baseline:
    """A baseline of all benchmarks in pytest-benchmark's files, by their full names; one file per session.

    Raises:
        RecordError: a file that is not one of pytest-benchmark's.
        BaselineError: sessions of different machines or commits, with different benchmarks, or one session twice.
        EmptyBaselineError: no benchmark in any file.
    """
    sessions = [load_pytest_benchmark(file) for file in files]
    if not any(sessions):
        raise EmptyBaselineError(
            f"{', '.join(map(str, files))}: there is no benchmark in it. Write one with `pytest --benchmark-json FILE`."
        )
    origins = [_origin(session) for session in sessions]
    for number, (file, origin) in enumerate(zip(files, origins, strict=True)):
        for what, of_first, of_this in zip(("machine", "commit", "benchmarks"), origins[0], origin, strict=True):
            if of_first != of_this:
                raise BaselineError(
                    f"{file} and {files[0]} are not sessions of the same: they differ in their {what} "
                    f"({_shorten(of_this)} and {_shorten(of_first)}). The sessions of one baseline are repetitions; "
                    "import others as a baseline of their own."
                )
        times = [_times(session) for session in sessions[: number + 1]]
        if times[number] in times[:number]:
            same = files[times.index(times[number])]
            raise BaselineError(
                f"{file} and {same} are the same session. A session counts once, since several are what shows how much "
                "sessions differ: give each file once."
            )
    environment, commit, _ = origins[0]
    entries = {}
    for fullname in (each.fullname for each in sessions[0]):
        repeated = [each for session in sessions for each in session if each.fullname == fullname]
        summarized = any(each.summarized_rounds for each in repeated)
        entries[fullname] = Entry(
            step_ms=1000 * statistics.median(value for each in repeated for value in each.seconds),
            # Sessions are compared by one statistic: where one has only its median, so have the others.
            sessions_seconds=tuple((each.median_seconds,) if summarized else each.seconds for each in repeated),
            summarized_rounds=tuple(each.summarized_rounds or len(each.seconds) for each in repeated if summarized),
        )
    return Baseline(
        name=name,
        source="pytest-benchmark",
        saved_at=sessions[0][0].recorded_at or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        side="pytest-benchmark",
        commit=commit,
        zoobench=importlib.metadata.version("zoobench"),
        environment=dict(environment),
        entries=entries,
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _times(session: Sequence[Benchmark]) -> dict[str, Mapping[str, Any]]:
    """What no two sessions have in common to the last digit, whatever their files say about dates and versions."""
    return {each.fullname: each.stats for each in session}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _origin(session: Sequence[Benchmark]) -> tuple[Mapping[str, Any], str, list[str]]:
    """What repetitions of one session have in common: the machine, the commit, the names."""
    if not session:
        return {}, "", []
    info = session[0].machine_info
    cpu = _table(info.get("cpu"))
    environment = {
        "cpu": cpu.get("brand_raw") or info.get("processor"),
        "cores": cpu.get("count"),
        "system": f"{info.get('system')} {info.get('machine')}",
        "python": info.get("python_version"),
    }
    return environment, session[0].commit, sorted(each.fullname for each in session)


def _shorten(value: Any) -> str:
    text = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
