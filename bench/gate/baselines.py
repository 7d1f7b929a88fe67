"""Baselines: measurements that are kept, to compare with when the old code can no longer run. Imports no torch.

A baseline is a JSON file in a folder, ``NAME.json``. It keeps every block that was timed in turn with the reference
workload (`bench.gate.timing.reference`), the exact counts, and where all of it was measured. One that was imported from
pytest-benchmark keeps the times of its rounds, which are relative to nothing.
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bench.errors import UserError, did_you_mean
from bench.gate.exact import Counts
from bench.gate.revisions import Side
from bench.gate.statistics.paired import estimate_log_ratio
from bench.gate.statistics.verdicts import Clocks
from bench.gate.timing.reference import REFERENCE, Workload, check_workload
from bench.gate.timing.rounds import estimate_clocks
from bench.gate.timing.sample import PairSample, Seconds
from bench.gate.timing.subject import Task
from bench.records import parse_json, write_atomically

SCHEMA_VERSION: Literal[1] = 1
PREFIX = "baseline:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


Found = tuple[dict[str, list[str]], dict[str, str]]
"""The names that each pattern stands for, and an error message for each plain name that is unknown."""


class BaselineError(UserError):
    """A baseline that is missing, damaged, or cannot be compared with."""


class EmptyBaselineError(BaselineError):
    """A baseline without entries: nothing was measured."""

    exit_code = 14


class UnlikeBaselineError(BaselineError):
    """Baselines that have no common measure."""

    exit_code = 13


class _Frozen(BaseModel):
    """Fields are stored under their alias, the name that they had in the first files."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )


class Entry(_Frozen):
    """One network's measurement, or one benchmark's.

    ``step_ms`` is the median of a step, ``reference_step_ms`` that of the ``workload`` beside it, ``relative`` the
    ratio of their times (from the mean of the pairs' log-ratios), ``peak_memory_bytes`` that of a step (the first files
    do not have it). ``sessions_seconds`` are the rounds of a benchmark, a list for each session of pytest; where the
    rounds were not stored, each list is their median, and ``summarized_rounds`` says for each session of how many.
    """

    batch_size: int | None = None
    step_ms: Seconds
    reference_step_ms: Seconds | None = None
    relative: Seconds | None = None
    counts: Counts | None = None
    peak_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    workload: Annotated[Workload, AfterValidator(check_workload)] | None = None
    pairs: tuple[PairSample, ...] = ()
    sessions_seconds: tuple[Annotated[tuple[Seconds, ...], Field(min_length=1)], ...] = ()
    summarized_rounds: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _has_times(self) -> Self:
        if bool(self.pairs) == bool(self.sessions_seconds):
            raise ValueError("expected either pairs or sessions_seconds")
        return self

    def clocks(self, with_cpu: bool, medians: bool = False) -> Clocks:
        """The estimates of the time: relative to the reference workload, or in seconds where there is none.

        ``medians`` takes a session's median in place of its rounds.
        """
        if self.pairs:
            return estimate_clocks(self.pairs, with_cpu)
        sessions = [(statistics.median(each),) if medians else each for each in self.sessions_seconds]
        return Clocks(estimate_log_ratio([[math.log(each) for each in rounds] for rounds in sessions]))


def _lay_out(environment: Any) -> Any:
    """A flat environment, as the first files and pytest-benchmark have it, as a `bench.machine.Environment`."""
    if not isinstance(environment, dict) or "machine" in environment:
        return environment
    tables = {
        "machine": ("device", "cpu", "cores", "system", "cuda"),
        "versions": ("python", "torch", "torchvision", "timm"),
    }
    laid_out = {key: environment[key] for key in ("threads", "process") if key in environment}
    for table, keys in tables.items():
        laid_out[table] = {key: environment[key] for key in keys if environment.get(key) is not None}
    if str(environment.get("device")).startswith("cuda"):
        laid_out["machine"]["gpu"] = environment.get("processor")
    return laid_out


class Baseline(_Frozen):
    """What was measured of one side at one time.

    ``side`` is what the user named, ``commit`` its revision (with ``+`` behind it where the tree was changed, empty
    where there is none), ``counter`` the digest of the code that counted, ``environment`` a
    `bench.machine.Environment`.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    source: Literal["measured", "pytest-benchmark"]
    saved_at: str
    side: str
    commit: str = ""
    zoobench: str = ""
    reference: str | None = None
    counter: str = ""
    task: Task = Task()
    environment: Annotated[dict[str, Any], BeforeValidator(_lay_out)]
    entries: Annotated[dict[str, Entry], Field(alias="figures")]

    @model_validator(mode="after")
    def _has_workloads(self) -> Self:
        lacking = [name for name, entry in self.entries.items() if entry.pairs and entry.workload is None]
        if self.reference == REFERENCE and lacking:
            raise ValueError(f"timed beside {REFERENCE}, but without their workload: {', '.join(lacking)}")
        return self

    @property
    def title(self) -> str:
        """As the user names it."""
        return f"{PREFIX}{self.name}"

    @property
    def origin(self) -> Side:
        """As a side of a comparison."""
        return Side(self.title, commit=self.commit or None)

    def find(self, patterns: Sequence[str]) -> Found:
        """Entries by their full name or by wildcards."""
        names, unknown = {}, {}
        for pattern in patterns:
            # The full name first: those of parametrized benchmarks have brackets.
            names[pattern] = [pattern] if pattern in self.entries else fnmatch.filter(self.entries, pattern)
            if not names[pattern] and not pattern.startswith("@") and not set("*?[") & set(pattern):
                hint = did_you_mean(pattern, self.entries)
                unknown[pattern] = f"{self.title} has no entry named {pattern!r}.{hint}"
        return names, unknown

    def lacks(self, names: Sequence[str]) -> set[str]:
        """Those that have no entry."""
        return {name for name in names if name not in self.entries}

    def count(self, name: str) -> Counts | None:
        """As they were counted when the baseline was saved; None where nothing was."""
        return self.entries[name].counts

    def measure_memory(self, name: str, batch_size: int) -> int | None:
        """As it was measured, for the batch size of the entry."""
        return self.entries[name].peak_memory_bytes


def baseline_path(folder: str | Path, name: str) -> Path:
    """Where a baseline is, or would be. Raises `BaselineError` for a name that no file can have."""
    if not NAME.fullmatch(name):
        raise BaselineError(
            f"{name!r} cannot be the name of a baseline: expected letters, digits, '.', '_', '+' and '-', as in "
            "main or v1.2."
        )
    return Path(folder) / f"{name}.json"


def load_baseline(folder: str | Path, name: str) -> Baseline:
    """Read a baseline. Raises `BaselineError` if there is none of that name, or it is damaged."""
    path = baseline_path(folder, name)
    try:
        content = parse_json(path.read_bytes())
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version == SCHEMA_VERSION:
            return Baseline.model_validate(content)
        problem = f"has schema version {version!r}, this zoobench reads version {SCHEMA_VERSION}"
    except FileNotFoundError as error:
        here = baseline_names(folder)
        known = f" There are {', '.join(here)}." if here else " There are none yet."
        raise BaselineError(
            f"there is no baseline {name!r} in {folder}.{did_you_mean(name, here)}{known} "
            f"`zoobench baseline save {name}` measures one."
        ) from error
    except OSError as error:
        raise BaselineError(f"the baseline {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        problem = f"is damaged: {'; '.join(problems)}"
    except ValueError as error:
        problem = f"is damaged, it is not JSON ({error})"
    raise BaselineError(
        f"the baseline {str(path)!r} {problem}. Save it anew, or restore the file from version control."
    )


def load_entries(folder: str | Path, name: str) -> Baseline:
    """As `load_baseline`, and raises `EmptyBaselineError` if it has no entry."""
    baseline = load_baseline(folder, name)
    if not baseline.entries:
        raise EmptyBaselineError(
            f"the baseline {name!r} in {folder} is empty, so there is nothing to compare with. "
            f"`zoobench baseline save {name} --overwrite` measures one."
        )
    return baseline


def save_baseline(folder: str | Path, baseline: Baseline) -> Path:
    """Write a baseline, atomically. Raises `BaselineError` if the folder cannot be written."""
    path = baseline_path(folder, baseline.name)
    try:
        write_atomically(str(path), baseline.model_dump_json() + "\n")
    except OSError as error:
        raise BaselineError(
            f"the folder of baselines {str(folder)!r} cannot be written: {error.strerror or error}. Name another."
        ) from error
    return path


def check_new(folder: str | Path, name: str, overwrite: bool) -> None:
    """Raise `BaselineError` before anything is measured, if one of that name must stay or none can be written."""
    if baseline_path(folder, name).exists() and not overwrite:
        raise BaselineError(
            f"there is a baseline {name!r} in {folder} already. Choose another name, or replace it with --overwrite."
        )
    place = next(each for each in (Path(folder).absolute(), *Path(folder).absolute().parents) if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise BaselineError(
            f"the folder of baselines {str(folder)!r} cannot be written. Name another with --baselines."
        )


def baseline_names(folder: str | Path) -> list[str]:
    """The names of all baselines in a folder, in order."""
    return sorted(path.stem for path in Path(folder).glob("*.json") if NAME.fullmatch(path.stem))


def list_baselines(folder: str | Path) -> tuple[list[Baseline], list[BaselineError]]:
    """All baselines of a folder, by name, and an error for each one that cannot be read."""
    baselines, damaged = [], []
    for name in baseline_names(folder):
        try:
            baselines.append(load_baseline(folder, name))
        except BaselineError as error:
            damaged.append(error)
    return baselines, damaged
