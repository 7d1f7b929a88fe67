"""Processes that have imported everything and computed nothing; the workers of each pair are forks of them.

Importing torch takes seconds, a fork milliseconds, so that the same time has room for more pairs and more blocks in
each. A fork has memory of its own for all that it builds, which is where pairs differ from one another. Only on the
CPU, and only where there is ``fork``: a GPU's driver does not survive one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from bench.gate.timing.pair import Host, OpenPair, WorkerPair, open_fresh_pair
from bench.gate.timing.process import WorkerError, WorkerProcess, start_workers
from bench.gate.timing.subject import Setting, Subject
from bench.gate.timing.worker import FORK_DIED


@contextlib.contextmanager
def serve_forks(subjects: Sequence[Subject]) -> Iterator[OpenPair]:
    """Inside, what opens the worker pairs of one call; afterwards all processes have ended.

    ``subjects`` are those that the workers will build: what they import is imported once.
    """
    parents: dict[str, WorkerProcess] = {}

    @contextlib.contextmanager
    def open_pair(interpreters: Sequence[str], setting: Setting) -> Iterator[WorkerPair]:
        if setting.device != "cpu" or not hasattr(os, "fork"):
            with open_fresh_pair(interpreters, setting) as fresh:
                yield fresh
            return
        begun = time.monotonic()
        names = list(dict.fromkeys(interpreters))
        missing = {name: WorkerProcess(name, setting) for name in names if name not in parents}
        parents.update(missing)
        for name, parent in missing.items():
            parent.wait()
            for subject in subjects:
                if subject.interpreter == name and subject.workload is None:
                    with contextlib.suppress(WorkerError):  # building it for the clock will report the error
                        parent.ask("prepare", subject=subject.to_worker(setting))
        parents_ready = time.monotonic()
        with contextlib.ExitStack() as stack:
            forks = {name: stack.enter_context(_Fork(parents, name)) for name in names}
            now = time.monotonic()
            yield WorkerPair(forks, setting, start_seconds=now - begun, next_start_seconds=now - parents_ready)

    try:
        yield open_pair
    finally:
        for parent in parents.values():
            parent.close()


PROCESSES = Host(start_workers, serve_forks)
"""Processes of their own: for counting one for each interpreter, for timing forks where that is possible."""


class _Fork:
    """The child of one of ``parents``, which waits until the child has ended and then answers again.

    A parent that can no longer be talked to is ended too; the next pair gets another.
    """

    def __init__(self, parents: dict[str, WorkerProcess], name: str) -> None:
        self._parents, self._name, self._parent = parents, name, parents[name]
        self.environment = self._parent.environment
        self._answered = False

    def __enter__(self) -> Self:
        self.ask("fork")
        return self

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """See `bench.gate.timing.process.Worker`."""
        self._answered = False
        try:
            answer = self._parent.ask(command, **arguments)
        except WorkerError as error:
            # If the child died, nobody knows whether the command had reached it or waits for the parent.
            self._answered = bool(error.kinds) and FORK_DIED not in error.kinds
            raise
        self._answered = True
        return answer

    def __exit__(self, *raised: object) -> None:
        with contextlib.suppress(WorkerError):
            if self._answered:
                self.ask("end")
        if not self._answered:  # interrupted, or all of it is gone
            self._parent.close()
            self._parents.pop(self._name, None)
