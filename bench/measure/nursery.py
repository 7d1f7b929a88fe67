"""Processes that have imported everything and computed nothing, of which each pair of a comparison is a fork.

Importing torch takes seconds, a fork milliseconds, so that in the same time there are more pairs and more blocks in
each. A fork has memory of its own for all that it builds, which is where pairs differ from one another. Only on the
CPU, and where there is ``fork``: a GPU's driver does not survive one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from bench.measure.duet import Duet, Lane, Setting, WorkerError, WorkerProcess
from bench.measure.duet_worker import FORK_DIED


class Nursery:
    """Opens duets for the rounds of one call; ``with`` ends all processes.

    ``lanes`` are those that the duets will build: what they import is imported once.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._parents: dict[str, WorkerProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for parent in self._parents.values():
            parent.close()

    def open(self, interpreters: Sequence[str], setting: Setting) -> Duet:
        """Fresh processes, one for each interpreter. Raises `bench.measure.duet.InterpreterError`."""
        if setting.device != "cpu" or not hasattr(os, "fork"):
            return Duet(interpreters, setting)
        begun = time.monotonic()
        names = list(dict.fromkeys(interpreters))
        missing = {name: WorkerProcess(name, setting) for name in names if name not in self._parents}
        self._parents |= missing
        for name, parent in missing.items():
            parent.wait()
            for lane in self._lanes:
                if lane.interpreter == name and lane.program is None:
                    with contextlib.suppress(WorkerError):  # building it for the clock will tell
                        parent.ask("prepare", root=lane.root, model=lane.model, options=lane.options)
        parents_ready = time.monotonic()
        forks = {name: _Fork(self, name, self._parents[name]) for name in names}
        now = time.monotonic()
        return Duet.of(forks, setting, start_seconds=now - begun, next_start_seconds=now - parents_ready)

    def forget(self, name: str, parent: WorkerProcess) -> None:
        """End a process that can no longer be talked to; the next duet gets another."""
        parent.close()
        self._parents.pop(name, None)


class _Fork:
    """The child of a process of the nursery, which waits until it has ended and then answers again."""

    def __init__(self, nursery: Nursery, name: str, parent: WorkerProcess) -> None:
        self._nursery, self._name, self._parent = nursery, name, parent
        self._answered = False
        self.ask("fork")

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self._answered = False
        try:
            answer = self._parent.ask(command, **arguments)
        except WorkerError as error:
            # Of one that died it is not known whether the command had reached it, or waits for the parent.
            self._answered = bool(error.kinds) and FORK_DIED not in error.kinds
            raise
        self._answered = True
        return answer

    def close(self) -> None:
        try:
            if self._answered:
                self.ask("end")
        except WorkerError:
            self._answered = False
        if not self._answered:  # interrupted, or all of it is gone
            self._nursery.forget(self._name, self._parent)
