"""One job: what an executor is given."""

from __future__ import annotations

import datetime
import uuid

from pydantic import BaseModel, ConfigDict, Field

from bench.config import RunConfig
from bench.records import RunRecord


class Job(BaseModel):
    """A run's configuration, where its record goes, where data lies, and what asked for it.

    ``checkpoint_seconds`` is the time between checkpoints; a ``fresh`` job does not go on from one. A run that has
    been ``trained`` is only measured again. Up to ``jobs`` runs train on the machine at once. However often a job is
    tried, it leaves one record, which has its ``job_id``. A run of several processes may be spread over ``nodes``,
    machines that meet at ``rendezvous``, the HOST:PORT of one of them; each has such a job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: RunConfig
    results: str
    data_dir: str | None = None
    checkpoint_seconds: float = 60.0
    fresh: bool = False
    trained: RunRecord | None = None
    save_weights: bool = False
    plan: str = ""
    command: str = ""
    node: str = ""
    jobs: int = 1
    nodes: int = 1
    rendezvous: str = ""
    job_id: str = Field(default_factory=lambda: uuid.uuid4().hex)

    def attempt(self) -> dict[str, str]:
        """What the record says of an attempt that begins now: when, and on which ``node`` of a cluster."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {"started_at": now} | ({"node": self.node} if self.node else {})
