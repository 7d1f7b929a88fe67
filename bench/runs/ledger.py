"""What became of each attempt at a run, kept beside its checkpoints until the run has a record that says it.

An attempt is a small file of its own, ``checkpoints/RUN_ID/attempts/0001.json``: the process that makes it writes it
when it begins, while it holds the run's lock; what ended it is added by that process, or by the one that waits for it.
One that nobody could say the end of was ``lost``: with its machine, or with all of its processes.
"""

from __future__ import annotations

import contextlib
import json
import signal
from typing import Any, Literal, Self

from bench.machine import describe_environment
from bench.records import RunFailure, RunRecord, parse_json, write_atomically
from bench.runs.job_description import Job
from bench.stores import file_system, names_in

Ending = Literal[
    "completed",
    "diverged",
    "failed",
    "out_of_memory",
    "killed",
    "crashed",
    "exited",
    "interrupted",
    "preempted",
    "lost",
]
"""``failed`` is an exception, ``killed`` a signal from outside, ``crashed`` one of the process's own such as SIGSEGV,
``exited`` an end without a record; ``interrupted`` is Ctrl-C, ``preempted`` SIGTERM to the command."""

PREEMPTIONS = ("preempted", "lost")

Attempt = dict[str, Any]
"""``started_at``, ``job_id``, perhaps ``node``, the ``step`` of the checkpoint that it goes on from, and how it
``ended``."""


class Ledger:
    """The attempts at a run, as the job of that id sees them."""

    def __init__(self, results: str, run_id: str, job_id: str) -> None:
        self._url = f"{results.rstrip('/')}/checkpoints/{run_id}/attempts"
        self._job_id = job_id
        self._own: Attempt | None = None

    @classmethod
    def of(cls, job: Job) -> Self:
        """The attempts at a job's run."""
        return cls(job.results, job.config.run_id, job.job_id)

    def has_begun(self) -> bool:
        """Whether the job has tried the run before, as where an executor lost its machine."""
        return any(each.get("job_id") == self._job_id for each in self._read().values())

    def begin(self, attempt: Attempt) -> None:
        """Note that the job tries the run."""
        self._own = attempt | {"job_id": self._job_id}
        self._name = f"{len(self._read()) + 1:04}"
        self._write(self._name, self._own)

    def end(self, ending: Ending) -> None:
        """Note how the job's last attempt ended, unless that is known; this process's own, or that of one now gone."""
        if self._own is not None:
            self._own = self._own | {"ended": ending}
            self._write(self._name, self._own)
            return
        own = {name: each for name, each in self._read().items() if each.get("job_id") == self._job_id}
        if own and "ended" not in own[last := max(own)]:
            self._write(last, own[last] | {"ended": ending})

    def describe(self) -> dict[str, Any]:
        """What the environment of a record says: all ``attempts`` in order, and in ``ledger`` how many of what."""
        found = self._read()
        if self._own is not None:
            found[self._name] = self._own  # also where it could not be written
        if not found:
            return {}
        last = max(found)
        attempts = [
            each if "ended" in each or name == last else each | {"ended": "lost"} for name, each in found.items()
        ]
        ended = [each.get("ended") for each in attempts]
        counts = {
            "attempts": len(attempts),
            "retries": len(attempts) - 1,
            "preemptions": sum(each in PREEMPTIONS for each in ended),
            "out_of_memory": ended.count("out_of_memory"),
        }
        return {"attempts": attempts, "ledger": counts}

    def _read(self) -> dict[str, Attempt]:
        """By number, in order; a file that is damaged is an attempt of which nothing is known."""
        fs, folder = file_system(self._url)
        found = {}
        for name in (name for name in names_in(fs, folder) if name.endswith(".json")):
            try:
                content = parse_json(fs.cat_file(f"{folder}/{name}"))
            except (OSError, ValueError):
                content = None
            found[name.removesuffix(".json")] = content if isinstance(content, dict) else {}
        return found

    def _write(self, name: str, attempt: Attempt) -> None:
        with contextlib.suppress(OSError):  # the first checkpoint will say that nothing can be written here
            write_atomically(f"{self._url}/{name}.json", json.dumps(attempt))


def died(job: Job, ending: Ending, failure: RunFailure) -> RunRecord:
    """The record of a run whose process left none, with what is known of its attempts, this one's end included."""
    ledger = Ledger.of(job)
    ledger.end(ending)
    asked = {"plan": job.plan, "command": job.command, "job_id": job.job_id}
    return RunRecord(
        run_id=job.config.run_id,
        status="failed",
        config=job.config.model_dump(mode="json"),
        environment=describe_environment(job.config.device, job.config.threads) | asked | ledger.describe(),
        error=failure,
    )


def explain_death(exit_code: int, oom_kills: int | None, who: str = "the process") -> tuple[Ending, RunFailure]:
    """Why a process left no record.

    Args:
        exit_code: its exit status, negative for a signal.
        oom_kills: how many processes the kernel has killed meanwhile because memory ran out; None if unknown.
        who: what the message calls it.
    """
    if exit_code >= 0:
        message = f"{who} ended with exit status {exit_code} and left no record"
        return "exited", RunFailure(kind="ProcessExit", message=message)
    name = signal.Signals(-exit_code).name
    message = f"{who} was ended by {name}"
    if name != "SIGKILL":
        return "killed" if name in ("SIGTERM", "SIGHUP", "SIGINT") else "crashed", RunFailure(
            kind=name, message=message
        )
    if oom_kills:
        message += f": the system ran out of memory, for which the kernel ended {oom_kills} processes meanwhile"
        return "out_of_memory", RunFailure(kind="OutOfMemory", message=message)
    if oom_kills == 0:
        return "killed", RunFailure(kind=name, message=f"{message} from outside: the system did not run out of memory")
    return "killed", RunFailure(kind=name, message=f"{message}; where nobody sent it, the system ran out of memory")
