"""Several runs at once on this machine: ``--jobs N``."""

from __future__ import annotations

import queue
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

from bench.config import Plan, RunConfig
from bench.device import thread_settings
from bench.disturbance import usable_cores
from bench.errors import ConfigError
from bench.events import Event, OnEvent, RunBegins
from bench.records import RunRecord
from bench.runs.executors import LocalExecutor
from bench.runs.job_description import Job
from bench.runs.locks import HAS_LOCKS
from bench.runs.resolve import resolve_plan


class ParallelExecutor:
    """Does up to ``jobs`` runs at once, each as `LocalExecutor` does one, and divides the threads among them.

    Training shares the machine; whatever is timed waits until it has it alone (`bench.runs.locks.MachineLock`). Raises
    `ConfigError` on entry where the system has no locks for that.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._slots: list[LocalExecutor] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if not HAS_LOCKS:
            raise ConfigError("--jobs needs file locks of POSIX, so that no two runs are timed at once. Leave it out.")
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        for slot in self._slots:
            slot.stop(SystemExit if kind is SystemExit else KeyboardInterrupt)
        for thread in self._threads:
            thread.join()
        for slot in self._slots:
            slot.close()

    def resolve(self, plan: Plan, data_dir: str | None, on: OnEvent) -> list[RunConfig]:
        """The plan's runs, on this machine; each has its share of the threads where the plan does not name them.

        Raises `ConfigError` for a budget in seconds.
        """
        runs = resolve_plan(plan, data_dir=data_dir, on=on, share=self._jobs)
        if any(run.budget.seconds is not None for run in runs):
            raise ConfigError(
                f"--jobs {self._jobs} and a budget in seconds exclude each other: runs that share a machine get less "
                "done in a second, each by what trains beside it. Give the budget in epochs (--epochs N) or MACs, or "
                "leave --jobs out."
            )
        if plan.nproc > 1:
            raise ConfigError(
                f"--jobs {self._jobs} and --nproc {plan.nproc} exclude each other: several runs at once, or several "
                "processes for each run, one after the other. Leave one of them out."
            )
        threads, cores = runs[0].threads, len(usable_cores())
        if self._jobs * threads > cores:
            warnings.warn(
                f"{self._jobs} runs of {threads} threads share {cores} cores: that is slower than fewer at a time.",
                stacklevel=2,
            )
        return runs

    def run_all(self, jobs: Sequence[Job], notify: OnEvent) -> Iterator[RunRecord]:
        """Do the jobs in their order, as many at once as there are slots. Observers are called by this thread alone."""
        waiting = deque(job.model_copy(update={"jobs": self._jobs}) for job in jobs)
        said: queue.SimpleQueue[Event | RunRecord | BaseException] = queue.SimpleQueue()

        def work(slot: LocalExecutor) -> None:
            try:
                while True:
                    try:
                        job = waiting.popleft()
                    except IndexError:
                        return
                    said.put(RunBegins(job.config))
                    said.put(slot.run(job, said.put))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                said.put(error)

        # Looked at once, before anything runs: later each would take the others for a disturbance.
        crowded = self._jobs * max((job.config.threads for job in jobs), default=1) > len(usable_cores())
        settings = {threads: thread_settings(threads, crowded) for threads in {job.config.threads for job in jobs}}
        self._slots = [LocalExecutor(settings) for _ in range(min(self._jobs, len(jobs)))]
        self._threads = [threading.Thread(target=work, args=(slot,)) for slot in self._slots]
        for thread in self._threads:
            thread.start()
        left = len(jobs)
        while left:
            message = said.get()
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, RunRecord):
                left -= 1
                yield message
            else:
                notify(message)
