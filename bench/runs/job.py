"""One run: its configuration in, its record out. The job that an executor gives to a process or a cluster.

`main` is the program of a `bench.subprocesses.Subprocess`: it reads a `Job` as a line of JSON and answers with each
`RunEvent` of `bench.events` as a line of JSON. It ends when its input is closed, so that it never outlives the process
that waits for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
from typing import TextIO

from bench.device import keep_allocator_pages
from bench.errors import RecordError
from bench.events import Emit, Phase, RunEvent, Unsaved, ignore, to_json
from bench.records import RunRecord
from bench.runs.execution import execute, find_done
from bench.runs.job_description import Job
from bench.runs.launch import StartMethod, launch
from bench.runs.locks import only_one
from bench.subprocesses import open_answers


def run_job(job: Job, emit: Emit = ignore, start_method: StartMethod = "spawn") -> RunRecord:
    """Do the run and save its record; an exception becomes a record with status ``failed``.

    A run of several processes starts them by the ``start_method``; ``fork`` is for a process that has computed nothing.

    A job that was done before, by this process or another, is not repeated: its record is returned. While another
    process does the same run in the same folder, this waits. Raises `RecordError` if the record cannot be saved.
    """
    # The machines that do a run together each have its job, and none must wait for another to be done.
    locked = only_one(job.results, job.config.run_id, lambda: emit(Phase("waiting")))
    with locked if job.nodes == 1 else contextlib.nullcontext():
        if (done := find_done(job)) is not None:
            return done
        return execute(job, emit) if job.config.nproc == 1 else launch(job, emit, start_method)


def main() -> None:
    """Do the job that standard input holds."""
    keep_allocator_pages()
    faulthandler.enable()
    answers = open_answers()
    do_job(sys.stdin.readline(), answers)


def do_job(line: str, answers: TextIO, start_method: StartMethod = "spawn") -> None:
    """Do a `Job`, given as JSON, and write its events to ``answers``; end when standard input is closed."""
    job = Job.model_validate_json(line)
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()

    def emit(event: RunEvent) -> None:
        answers.write(to_json(event) + "\n")

    try:
        run_job(job, emit, start_method)
    except RecordError as error:
        emit(Unsaved(str(error)))
        sys.exit(error.exit_code)


def _end_with(descriptor: int) -> None:
    """End this process when the stream is closed: the one who waits for the record is gone.

    Not by way of ``sys.stdin``: a fork, as of a rank, would find it locked when it closes it.
    """
    while os.read(descriptor, 4096):
        pass
    os._exit(1)
