"""One run: its configuration in, its record out. The job that an executor gives to a process or a cluster.

``python -m bench.job`` reads a `Job` as a line of JSON from its standard input, and writes events as lines of JSON to
its standard output: ``{"event": "phase", …}`` and ``{"event": "row", …}``. It ends when its input is closed, so that it
never outlives the process that waits for it.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from bench.environment import keep_allocator_pages
from bench.errors import RecordError
from bench.records import RunFailure, RunRecord, Status, save_record
from bench.stages import Emit, Job, Run


def run_job(job: Job, emit: Emit = lambda event: None) -> RunRecord:
    """Do the run and save its record; an exception becomes a record with status ``failed``.

    Raises `RecordError` if the record cannot be saved.
    """
    run = Run(job, emit)
    started = datetime.datetime.now(datetime.UTC)
    clock = time.perf_counter()
    status: Status = "failed"
    failure: RunFailure | None = None
    try:
        status = run.execute()
    except Exception as error:  # noqa: BLE001 - whatever happens in a run becomes its record
        failure = RunFailure(kind=type(error).__name__, message=str(error), traceback=traceback.format_exc())
    run.metrics["wall_seconds"] = time.perf_counter() - clock
    record = RunRecord(
        run_id=job.config.run_id,
        status=status,
        config=job.config.model_dump(mode="json"),
        environment=run.environment | {"started_at": started.isoformat(timespec="seconds")},
        metrics=run.metrics,
        history=run.history,
        samples=run.samples,
        flags=run.flags,
        error=failure,
    )
    save_record(record, job.results)
    if run.checkpoints is not None and status != "failed":
        run.checkpoints.remove()
    return record


def main() -> None:
    """Do the job that standard input holds."""
    keep_allocator_pages()
    faulthandler.enable()
    # Events own the real standard output; what a library prints goes with the errors.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = Job.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        run_job(job, emit)
    except RecordError as error:
        emit({"event": "unsaved", "message": str(error)})
        sys.exit(error.exit_code)


def _end_with(stream: TextIO) -> None:
    """End this process when the stream is closed: the one who waits for the record is gone."""
    stream.read()
    os._exit(1)


if __name__ == "__main__":
    main()
