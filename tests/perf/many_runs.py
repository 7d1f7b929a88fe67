"""What the process that watches over a plan costs when the plan is long; writes a JSON result.

    python tests/perf/many_runs.py --runs 60 --replayed 1000 --out results/many_runs.json

``--runs`` very short runs are done as `zoobench run` does them, with its display and `live.json`. Then a plan of
``--replayed`` runs is done by an executor that sends the events and saves the record of one of these for each, so that
only the watching process computes: its memory is read after every run, and its processor time is held against that of
as many real ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import psutil  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from shard_campaign import TINY  # noqa: E402

from bench.config import load_plan  # noqa: E402
from bench.events import Event, OnEvent, PlanBegins, RunBegins, RunEnds, RunEvent  # noqa: E402
from bench.records import RunRecord, save_record  # noqa: E402
from bench.runs.executors import LocalExecutor  # noqa: E402
from bench.runs.job_description import Job  # noqa: E402
from bench.runs.observers.display import create_display  # noqa: E402
from bench.runs.observers.live import LiveLog  # noqa: E402
from bench.runs.parallel_executor import ParallelExecutor  # noqa: E402
from bench.runs.runner import run_plan  # noqa: E402


class Replay(LocalExecutor):
    """For each job, the events and the record of a run that was done before."""

    def __init__(self, events: Sequence[RunEvent], record: RunRecord) -> None:
        super().__init__()
        self._events, self._record = events, record

    def run_all(self, jobs: Sequence[Job], notify: OnEvent) -> Iterator[RunRecord]:
        """Replay them, one after the other."""
        for job in jobs:
            run_id = job.config.run_id
            notify(RunBegins(job.config))
            for event in self._events:
                notify(dataclasses.replace(event, run_id=run_id))
            environment = self._record.environment | {"job_id": job.job_id}
            # As if read: no two records share what they hold.
            text = self._record.model_copy(
                update={"run_id": run_id, "config": job.config.model_dump(mode="json"),
                        "environment": environment}
            ).model_dump_json()  # fmt: skip
            record = RunRecord.model_validate_json(text)
            save_record(record, job.results)
            yield record


class Watch:
    """Keeps the first run's events, and this process's memory and processor time after each run."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.rss: list[int] = []
        self.seconds: list[float] = []
        self._first = ""
        self._first_ended = False

    def on(self, event: Event) -> None:
        """Take notice of an event."""
        if isinstance(event, PlanBegins):
            self.seconds.append(time.process_time())
        elif isinstance(event, RunEnds):
            self._first_ended |= event.record.run_id == self._first
            self.rss.append(psutil.Process().memory_info().rss)
            self.seconds.append(time.process_time())
        elif isinstance(event, RunBegins):
            self._first = self._first or event.config.run_id
        elif isinstance(event, RunEvent) and event.run_id == self._first and not self._first_ended:
            self.events.append(event)


def do_plan(runs: int, results: Path, executor: Any, watch: Watch) -> Any:
    """A plan as `zoobench run` does it, but for the report."""
    plan = load_plan("quick", TINY | {"seeds": list(range(runs))})
    with Path(os.devnull).open("w") as nowhere:
        observers = [create_display(Console(file=nowhere)), LiveLog(str(results)), watch]
        return run_plan(plan, str(results), observers, executor=executor)


def main() -> None:
    """Do both plans and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--replayed", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        os.environ["ZOOBENCH_CACHE"] = f"{name}/cache"
        began, real = time.perf_counter(), Watch()
        outcome = do_plan(options.runs, Path(name) / "real", ParallelExecutor(options.jobs), real)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        of_runs = (used.ru_utime + used.ru_stime) / options.runs
        done = {record.status for record in outcome.records}
        record = outcome.records[0]
        del outcome
        replayed = Watch()
        own_work = _own_work(record, options.replayed)
        before = time.process_time()
        do_plan(options.replayed, Path(name) / "replayed", Replay(real.events, record), replayed)
        watching = time.process_time() - before - own_work
    tenth = len(replayed.rss) // 10
    result = {
        "runs": options.runs, "jobs": options.jobs, "statuses": sorted(done), "events_each": len(real.events),
        "run_cpu_seconds": round(of_runs, 3),
        "watching_cpu_seconds_each": round((real.seconds[-1] - real.seconds[0]) / options.runs, 4),
        "watching_share": round((real.seconds[-1] - real.seconds[0]) / (of_runs * options.runs), 4),
        "replayed": options.replayed,
        "replayed_watching_cpu_seconds_each": round(watching / options.replayed, 4),
        "replayed_watching_share": round(watching / options.replayed / of_runs, 4),
        "rss_bytes_after_a_tenth": replayed.rss[tenth - 1],
        "rss_bytes_at_the_end": replayed.rss[-1],
        "record_bytes": len(record.model_dump_json()),
        "seconds": round(time.perf_counter() - began, 1), "torch": torch.__version__,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    options.out.write_text(text + "\n") if options.out else print(text)


def _own_work(record: RunRecord, count: int) -> float:
    """Processor seconds that `Replay` spends on ``count`` records, and a real run would spend in its own process."""
    sample = min(count, 50)
    with tempfile.TemporaryDirectory() as name:
        began = time.process_time()
        for number in range(sample):
            again = RunRecord.model_validate_json(
                record.model_copy(update={"run_id": f"{record.run_id}-{number}"}).model_dump_json()
            )
            save_record(again, name)
        return (time.process_time() - began) / sample * count


if __name__ == "__main__":
    main()
