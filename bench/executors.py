"""Where runs go: a process on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import psutil

from bench.environment import FOREIGN_SHARE, describe_environment
from bench.errors import RecordError
from bench.records import RunFailure, RunRecord, find_record, save_record
from bench.stages import Job

STDERR_TAIL = 8000
BUSY_LOOK_SECONDS = 0.3
SHORT_SPIN = "1000"
"""Iterations; a few microseconds."""


class LocalExecutor:
    """Runs each job in a fresh Python process, one at a time, so that a crash ends that run only."""

    def run(self, job: Job, on_event: Callable[[dict[str, Any]], None]) -> RunRecord:
        """Do the job and return its record; a process that dies without one leaves a ``failed`` record.

        Raises `RecordError` if the record cannot be saved. An interruption ends the process and leaves no record.
        """
        unsaved: str | None = None
        with tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.job"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                env={**os.environ, **thread_settings(job.config.threads)},
                start_new_session=True,  # Ctrl-C comes to us alone; we then end the process
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                # A process that died at once is told by its exit status, below.
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(job.model_dump_json() + "\n")
                    process.stdin.flush()
                for line in process.stdout:
                    event = json.loads(line)
                    if event["event"] == "unsaved":
                        unsaved = event["message"]
                    else:
                        on_event(event)
                exit_code = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                process.stdout.close()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")[-STDERR_TAIL:]
        if unsaved is not None:
            raise RecordError(unsaved)
        record = find_record(job.results, job.config.run_id) if exit_code == 0 else None
        if record is None:
            record = _died(job, exit_code, said)
            save_record(record, job.results)
        return record


def thread_settings(threads: int) -> dict[str, str]:
    """The environment of a process that computes with so many threads.

    OpenMP's threads spin while they wait for one another. Where another program holds one of the cores, the spinning
    burns the time slices that the last thread needs: with one such program on two cores, a training step becomes ten
    times slower. So on a busy machine they fall asleep after a short spin; on a quiet one that would cost small
    networks a quarter of their speed.
    """
    settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    chosen_by_user = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if not chosen_by_user and psutil.cpu_percent(interval=BUSY_LOOK_SECONDS) / 100 > FOREIGN_SHARE:
        settings["GOMP_SPINCOUNT"] = SHORT_SPIN
    return settings


def _died(job: Job, exit_code: int, said: str) -> RunRecord:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        message = f"the process was ended by {name}"
        if name == "SIGKILL":
            message += "; where nobody sent it, the system ran out of memory"
    else:
        name, message = "ProcessExit", f"the process ended with exit status {exit_code} and left no record"
    return RunRecord(
        run_id=job.config.run_id,
        status="failed",
        config=job.config.model_dump(mode="json"),
        environment=describe_environment("cpu", job.config.threads) | {"plan": job.plan, "command": job.command},
        error=RunFailure(kind=name, message=message, traceback=said),
    )
