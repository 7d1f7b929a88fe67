"""Where runs go: by default a process on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, Self

from bench.config import Plan, RunConfig
from bench.device import repeatable_settings, thread_settings
from bench.disturbance import count_oom_kills
from bench.errors import ConfigError, UnwritableError
from bench.events import Emit, OnEvent, RunBegins, Unsaved, read_events
from bench.records import RunRecord, save_record
from bench.runs.execution import find_done
from bench.runs.fork_server import ENDED
from bench.runs.job_description import Job
from bench.runs.ledger import Ledger, died, explain_death
from bench.runs.resolve import resolve_plan
from bench.subprocesses import Subprocess, module_command

STDERR_TAIL = 8000


class ForkServer:
    """A process that has imported torch, and forks for each job; as a `Subprocess` for one job at a time.

    OpenMP reads its settings when it is loaded, so a server is for jobs of the same ``settings``.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = settings
        self._process = Subprocess(module_command("bench.runs.fork_server"), {**os.environ, **settings})
        self.pid = self._process.pid
        self._errors_of_others = 0
        self._status: int | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the last job's fork has ended as the server says, and the server waits for the next."""
        return self._status is not None

    @property
    def answers(self) -> Iterator[str]:
        """The lines of the job's fork, until it has ended."""
        for line in self._process.answers:
            if line.startswith(ENDED):
                self._status = int(line.removeprefix(ENDED))
                return
            yield line

    def send(self, line: str) -> None:
        """Fork for a job."""
        self._status = None
        self._errors_of_others = self._process.errors_size()
        self._process.send(line)

    def wait(self) -> int:
        """The exit status of the fork; of the server where that died."""
        return self._process.wait() if self._status is None else self._status

    def errors(self, at_most: int) -> str:
        """The last bytes of what the fork has written to its standard error and output."""
        return self._process.errors(min(at_most, self._process.errors_size() - self._errors_of_others))

    def kill(self) -> None:
        """End the server and its fork; `answers` then end, for who reads them."""
        self._process.kill()

    def close(self) -> None:
        """End the server and its fork, and forget all of them."""
        self._process.close()


class Executor(Protocol):
    """Where a plan's runs are done; ``with`` ends whatever still runs."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *raised: object) -> None:
        """End all."""

    def resolve(self, plan: Plan, data_dir: str | None, on: OnEvent) -> list[RunConfig]:
        """The plan's runs, with what it leaves open resolved where they will run. Raises a `UserError`."""

    def run_all(self, jobs: Sequence[Job], notify: OnEvent) -> Iterator[RunRecord]:
        """Do the jobs and return their records as they end; of each run, `RunBegins` and its events are reported.

        Raises `UnwritableError` if a record cannot be saved.
        """


class LocalExecutor:
    """Runs each job in a process of its own, one at a time, so that a crash ends that run only.

    On a CPU under Linux that is a fork of a process that has imported torch, elsewhere a fresh one. ``with`` ends all.
    ``settings`` are the processes' environment by their number of threads; where they are not given, the machine is
    looked at before each run.

    Runs of several processes may be spread over ``nodes``: the same plan is then done by as many machines, which find
    one another at ``rendezvous``, the HOST:PORT of one of them.
    """

    def __init__(
        self, settings: Mapping[int, Mapping[str, str]] | None = None, nodes: int = 1, rendezvous: str = ""
    ) -> None:
        self._settings = settings
        self._nodes, self._rendezvous = nodes, rendezvous
        self._server: ForkServer | None = None
        self._working: Subprocess | ForkServer | None = None
        self._stopping = threading.Lock()
        self._stopped: type[BaseException] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, if there is one, and the job that it does."""
        self._end_server()

    def stop(self, reason: type[KeyboardInterrupt] | type[SystemExit]) -> None:
        """From another thread: end the job in progress, whose `run` raises ``reason``, and take no more."""
        with self._stopping:
            self._stopped = reason
            if self._working is not None:
                self._working.kill()

    def _end_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def resolve(self, plan: Plan, data_dir: str | None, on: OnEvent) -> list[RunConfig]:
        """The plan's runs, on this machine."""
        return resolve_plan(plan, data_dir=data_dir, on=on, nodes=self._nodes)

    def run_all(self, jobs: Sequence[Job], notify: OnEvent) -> Iterator[RunRecord]:
        """Do the jobs, one after the other, and report each run's begin and events."""
        for job in jobs:
            notify(RunBegins(job.config))
            yield self.run(job, notify)

    def run(self, job: Job, emit: Emit) -> RunRecord:
        """Do the job and return its record; a process that dies without one leaves a ``failed`` record.

        Raises `UnwritableError` if the record cannot be saved. An interruption ends the process and leaves no record,
        and the run's ledger says which it was.
        """
        try:
            return self._run(job, emit)
        except (KeyboardInterrupt, SystemExit) as error:
            Ledger.of(job).end("preempted" if isinstance(error, SystemExit) else "interrupted")
            raise

    def _run(self, job: Job, emit: Emit) -> RunRecord:
        if self._nodes > 1:
            if job.trained is not None:
                raise ConfigError(
                    f"{job.config.run_id} is trained and was measured with other settings. Runs of several machines "
                    "are not measured again: name another folder with --results, which all of them reach."
                )
            job = job.model_copy(update={"nodes": self._nodes, "rendezvous": self._rendezvous})
        unsaved: str | None = None
        oom_kills = count_oom_kills()
        with self._process(job) as process:
            process.send(job.model_dump_json())
            for event in read_events(process.answers):
                if isinstance(event, Unsaved):
                    unsaved = event.message
                else:
                    emit(dataclasses.replace(event, run_id=job.config.run_id))
            exit_code = process.wait()
            if self._stopped is not None:
                raise self._stopped
            said = process.errors(STDERR_TAIL)
        if unsaved is not None:
            raise UnwritableError(unsaved)
        record = find_done(job) if exit_code == 0 else None
        if record is None:
            after = count_oom_kills()
            ending, failure = explain_death(
                exit_code, None if after is None or oom_kills is None else after - oom_kills
            )
            record = died(job, ending, failure.model_copy(update={"traceback": said}))
            save_record(record, job.results)
        return record

    @contextlib.contextmanager
    def _process(self, job: Job) -> Iterator[Subprocess | ForkServer]:
        """A process for the job, which `stop` ends; a server stays for the next job unless it has been interrupted."""
        threads = job.config.threads
        settings = dict(thread_settings(threads) if self._settings is None else self._settings[threads])
        settings |= repeatable_settings(job.config.device)
        forks = sys.platform == "linux" and job.config.device == "cpu"
        with self._stopping:
            if self._stopped is not None:
                raise self._stopped
            self._working = process = self._server_with(settings) if forks else _fresh_process(settings)
        try:
            yield process
        finally:
            with self._stopping:
                self._working = None
            if process is not self._server:
                process.close()
            elif not self._server.is_ready:  # interrupted, or gone
                self._end_server()

    def _server_with(self, settings: dict[str, str]) -> ForkServer:
        if self._server is not None and self._server.settings != settings:
            self._end_server()
        self._server = self._server or ForkServer(settings)
        return self._server


def _fresh_process(settings: Mapping[str, str]) -> Subprocess:
    return Subprocess(module_command("bench.runs.job"), {**os.environ, **settings})
