"""Known changes that fail no build: read from a TOML file, held against a comparison.

An entry accepts one thing of one model (or of all that a wildcard names), as far as one commit changed it: it holds
where head has that commit and base has not. It says why, and until when::

    [[accepted]]
    model = "resnet18"
    metric = "speed"
    commit = "9206a5b"
    reason = "mixing the colours first is worth 2 points of accuracy"
    expires = 2027-03-31
"""

from __future__ import annotations

import fnmatch
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import ConfigError, did_you_mean
from bench.gate.exact import TOTALS
from bench.gate.result import Comparison, ModelResult
from bench.gate.worktrees import find_repository, run_git

Metric = Literal[
    "speed", "memory", "params", "macs", "activations", "output_shape", "operators", "counts", "missing", "new"
]
"""``counts`` is all that the exact gates compare, from ``params`` to ``operators``."""

NO_ANCESTOR, NO_COMMIT = 1, 128
"""Exit statuses of ``git merge-base --is-ancestor``."""

NEARLY = ("slower", "inconclusive")
"""Statuses in which a speed's entry is not yet one that matches nothing."""

Introduced = Callable[[str], "str | None"]
"""Why a commit is not what head has and base has not; None if it is."""


class AcceptedChange(BaseModel):
    """An entry of the file. ``at_most`` bounds the accepted change of a speed or of the memory, as a share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    metric: Metric
    commit: str = Field(pattern="^[0-9a-f]{7,64}$")
    reason: str = Field(min_length=1)
    expires: date
    at_most: float | None = Field(default=None, gt=0)

    def __str__(self) -> str:
        return f"{self.metric} of {self.model} by {self.commit[:12]}"

    def covers(self, result: ModelResult, metric: str) -> bool:
        """Whether this is what changed of that model, and by no more than is accepted."""
        if not self.names(result.model) or self.metric not in (metric, _group(metric)):
            return False
        if self.at_most is None:
            return True
        change = None
        if metric == "speed" and result.judgement is not None:
            change = result.judgement.change
        elif metric == "memory" and result.memory is not None:
            change = result.memory.change
        return change is not None and change <= self.at_most

    def names(self, model: str) -> bool:
        """Whether the model is the entry's, or matches its wildcard."""
        return fnmatch.fnmatchcase(model, self.model)


def load_accepted(path: str | Path) -> tuple[AcceptedChange, ...]:
    """The entries of a file. Raises `ConfigError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--accept {str(path)!r} cannot be read: {why}. Name a TOML file of [[accepted]].") from error
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--accept {str(path)!r} is not valid TOML: {error}.") from error
    entries = table.pop("accepted", [])
    if table or not isinstance(entries, list):
        hint = did_you_mean(next(iter(table), ""), ["accepted"])
        raise ConfigError(
            f"--accept {str(path)!r} has {', '.join(map(repr, table)) or 'one [accepted]'}: expected nothing but "
            f"tables named [[accepted]], one for each known change.{hint}"
        )
    return tuple(_parse(entry, f"--accept {str(path)!r}, entry {k}") for k, entry in enumerate(entries, 1))


def accept(
    comparison: Comparison,
    entries: Sequence[AcceptedChange],
    today: date | None = None,
    introduced: Introduced | None = None,
) -> Comparison:
    """The comparison, in which what the entries cover fails nothing and is named with its reason.

    An entry that expired before ``today`` (the current day in UTC) covers nothing, and what it would have covered fails
    in those words. The notes name the entries that no change needs. ``introduced`` is git's answer in the current
    folder's repository if not given.
    """
    today = today or datetime.now(UTC).date()
    introduced = introduced or _ask_git(comparison)
    foreign = {entry: why for entry in dict.fromkeys(entries) if (why := introduced(entry.commit))}
    here = [entry for entry in entries if entry not in foreign]
    used: set[AcceptedChange] = set()
    results, notes = [], []
    for result in comparison.results:
        excused: dict[str, str] = {}
        for failure in comparison.failures_of(result):
            metrics = changed_metrics(result, failure)
            covering = [next((e for e in _best(here, today) if e.covers(result, metric)), None) for metric in metrics]
            found = [entry for entry in dict.fromkeys(covering) if entry is not None]
            used |= set(found)
            expired = [entry for entry in found if entry.expires < today]
            notes += [
                f"{result.model}: {entry.metric} was accepted until {entry.expires} ({entry.commit[:12]}: "
                f"{entry.reason}), which has passed: mend it, or renew the entry"
                for entry in expired
            ]
            if metrics and None not in covering and not expired:
                excused[failure] = "; ".join(
                    f"{entry.metric} is accepted until {entry.expires} ({entry.commit[:12]}: {entry.reason})"
                    for entry in found
                )
        if result.status in NEARLY:
            used |= {entry for entry in here if entry.metric == "speed" and entry.names(result.model)}
        results.append(replace(result, accepted=excused))
    for entry in entries if results else ():
        if entry not in used:
            why = foreign.get(entry, "no such change, or a larger one, was found")
            notes.append(f"Warning: the accepted change {entry} matches nothing: {why}. Remove or mend the entry")
    return replace(comparison, results=tuple(results), notes=(*comparison.notes, *notes))


def changed_metrics(result: ModelResult, failure: str) -> list[str]:
    """What has to be accepted of a model for a failure to be none; nothing where none can be."""
    if failure == "changed":
        whole = [each.what for each in result.differences if not each.layer]
        return list(dict.fromkeys(what if what in TOTALS else "operators" for what in whole))
    if failure == "missing":
        return [result.status]
    return {"regressed": ["speed"], "memory": ["memory"]}.get(failure, [])


def _best(entries: Iterable[AcceptedChange], today: date) -> list[AcceptedChange]:
    """Those that hold before those that have expired."""
    return sorted(entries, key=lambda entry: entry.expires < today)


def _group(metric: str) -> str:
    return "counts" if metric in (*TOTALS, "operators") else metric


def _ask_git(comparison: Comparison) -> Introduced:
    base, head = (
        None if side.commit is None else side.commit.rstrip("+") for side in (comparison.base, comparison.head)
    )

    def introduced(commit: str) -> str | None:
        if head is None:
            return f"{comparison.head.name} does not say of which revision it is (env:PATH@REV does)"
        repository = find_repository(Path.cwd())
        if not _has(repository, head, commit):
            return f"{comparison.head.name} does not have the commit"
        if base is not None and _has(repository, base, commit):
            return f"{comparison.base.name} has the commit already"
        return None

    return introduced


def _has(repository: Path, revision: str, commit: str) -> bool:
    """Whether a commit is a revision's or before it. False also for one that the repository does not have."""
    try:
        run_git(repository, "merge-base", "--is-ancestor", commit, revision)
    except subprocess.CalledProcessError as error:
        if error.returncode in (NO_ANCESTOR, NO_COMMIT):
            return False
        raise
    return True


def _parse(entry: object, where: str) -> AcceptedChange:
    try:
        return AcceptedChange.model_validate(entry)
    except ValidationError as error:
        raise ConfigError(f"{where}: {'; '.join(map(_explain, error.errors()))}.") from error


def _explain(problem: object) -> str:
    assert isinstance(problem, dict)
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        fields = list(AcceptedChange.model_fields)
        return f"no key is named {key!r}.{did_you_mean(key, fields)} Possible: {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    hint = did_you_mean(str(problem["input"]), Metric.__args__) if key == "metric" else ""  # type: ignore[attr-defined]
    return f"{key} = {str(problem['input'])!r} is not possible: {problem['msg']}.{hint}".rstrip(".")
