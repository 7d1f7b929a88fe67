"""A job's run in this process, and the record that makes a job superfluous."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.events import Emit
from bench.records import RunRecord, find_intact_record, find_record_of_job, save_record
from bench.runs.job_description import Job
from bench.runs.stages import Run

if TYPE_CHECKING:
    from bench.training.distributed import Ranks


def find_done(job: Job) -> RunRecord | None:
    """The record that makes a job superfluous: its own, or where it only wants the run to be done, any good one."""
    if (own := find_record_of_job(job.results, job.config.run_id, job.job_id)) is not None:
        return own
    record = None if job.fresh or job.trained else find_intact_record(job.results, job.config.run_id)
    return record if record is not None and record.status != "failed" else None


def execute(job: Job, emit: Emit, ranks: Ranks | None = None) -> RunRecord:
    """Do the run and save its record, or this process's part of it: of several ``ranks`` the first one saves.

    An exception becomes a record with status ``failed``; among several ranks it is raised, for the launcher to record.
    Raises `RecordError` if the record cannot be saved.
    """
    run = Run(job, emit, ranks)
    run.environment["job_id"] = job.job_id
    record = run.to_record()
    if run.ranks.rank > 0:
        return record
    if (done := find_done(job)) is not None:  # on a file system without locks another process was faster
        return done
    save_record(record, job.results)
    if run.checkpoints is not None and record.status != "failed":
        run.checkpoints.remove()
    return record
