"""Locks that the system releases when their holder dies: one process at a time does a run, or times on this machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from bench.data.cache import cache_folder
from bench.records import is_local, unwritable

LOCKS = ".locks"
"""In the results folder: an empty file, of which each run has a byte of its own."""
HAS_LOCKS = os.name == "posix"
NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def only_one(results: str, run_id: str, on_wait: Callable[[], object]) -> Iterator[None]:
    """Hold the run's lock, and call ``on_wait`` where another process has it; also between machines, on shared disks.

    Buckets have no locks: there two processes may do a run twice, and the first record counts. Raises `RecordError`.
    """
    if not HAS_LOCKS or not is_local(results):
        yield
        return
    import fcntl

    byte = _byte_of(run_id)
    with contextlib.ExitStack() as stack:
        try:
            Path(results).mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((Path(results) / LOCKS).open("a"))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except BlockingIOError:
                on_wait()
                fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise unwritable(results, error) from error
            warnings.warn(f"{results!r} has no locks: let no two commands do the same runs in it.", stacklevel=2)
        yield


def is_held(results: str, run_id: str) -> bool:
    """Whether another process has the run's lock; False where there are no locks."""
    if not HAS_LOCKS or not is_local(results):
        return False
    import fcntl

    try:
        with (Path(results) / LOCKS).open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte_of(run_id))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _byte_of(run_id: str) -> int:
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:7]) >> 1


WAITING, USING = 0, 1
"""Bytes of the machine's file. What waits for the machine or has it alone holds the first one shared, so that nothing
begins to share it meanwhile; using it is holding the second, shared or alone."""


class MachineLock:
    """A run's place on this machine: what is timed has it ``alone``, all else shares it.

    That holds between all runs of a user here that are done several at once, of whatever command, plan or results
    folder. Whoever waits to be alone goes before whoever waits to share: runs that train then end their training, and
    none begins. ``on_wait`` is called where a wait begins, ``waited_seconds`` says how long all waits took. A run that
    was asked for alone does not wait (``wanted`` is false): whose training it would wait for, nobody knows; what it
    shares the machine with becomes a flag.

    One in a process: the system counts these locks by process. Where there can be none, ``problem`` says why, and
    nothing waits.
    """

    def __init__(self, on_wait: Callable[[], object], wanted: bool = True) -> None:
        self.wanted = wanted
        self._on_wait = on_wait
        self._file: IO[str] | None = None
        self._shares = False
        self.waited_seconds = 0.0
        self.problem = "" if HAS_LOCKS else "this system has no locks of that kind"

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the machine with others that share it."""
        self._share()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the machine alone; within `shared`, that is given up for so long."""
        shared = self._shares
        self._leave()
        self._lock(WAITING, alone=False)
        self._lock(USING, alone=True)
        try:
            yield
        finally:
            self._leave()
            if shared:
                self._share()

    def _share(self) -> None:
        self._lock(WAITING, alone=True)  # when nobody waits to be alone
        self._lock(USING, alone=False)
        self._unlock(WAITING)
        self._shares = True

    def _lock(self, byte: int, *, alone: bool) -> None:
        if self.problem or not self.wanted:
            return
        import fcntl

        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            if self._file is None:
                machine_file().parent.mkdir(parents=True, exist_ok=True)
                self._file = machine_file().open("a+")
            try:
                fcntl.lockf(self._file, kind | fcntl.LOCK_NB, 1, byte)
            except BlockingIOError:
                self._on_wait()
                since = time.monotonic()
                fcntl.lockf(self._file, kind, 1, byte)
                self.waited_seconds += time.monotonic() - since
        except OSError as error:
            self.problem = f"{str(machine_file())!r} cannot be locked: {error.strerror or error}"

    def _unlock(self, byte: int) -> None:
        if self._file is not None:
            import fcntl

            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def _leave(self) -> None:
        self._shares = False
        if self._file is not None:
            self._file.close()  # which gives back what this process holds of it
            self._file = None


def machine_file() -> Path:
    """An empty file that stands for this machine, by its name: folders of users may be shared between machines."""
    return cache_folder() / "machines" / (platform.node() or "machine")
