"""The process of a worker: started, asked, ended."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from bench.device import SHORT_SPIN, has_glibc
from bench.errors import UserError
from bench.gate.timing.subject import Setting
from bench.subprocesses import Subprocess

WORKER = Path(__file__).with_name("worker.py")
STDERR_TAIL = 2000
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(64 * 2**20)}
"""glibc keeps the memory that tensors give back; see `bench.device.keep_allocator_pages`."""


class WorkerError(Exception):
    """A command that a worker could not carry out; ``kinds`` names the error's class and its bases."""

    def __init__(self, message: str, kinds: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.kinds = tuple(kinds)


class InterpreterError(UserError):
    """An interpreter that does not run, or lacks torch."""


class Worker(Protocol):
    """Something that carries out the commands of `bench.gate.timing.worker`."""

    environment: dict[str, Any]
    """A `bench.machine.Environment`."""

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command. Raises `WorkerError`."""


class WorkerProcess:
    """A `Worker` in a process of its own; ``with`` ends it.

    It starts in the background; `wait` until it is ready, so that several can start at once.
    """

    def __init__(self, interpreter: str, setting: Setting) -> None:
        self._interpreter, self._setting = interpreter, setting
        self.environment: dict[str, Any] = {}
        environment = dict(os.environ)
        if interpreter != sys.executable:
            # What our own interpreter imports first would take the place of what that one has.
            for name in ("PYTHONPATH", "PYTHONHOME"):
                environment.pop(name, None)
        environment |= ALLOCATOR | {name: str(setting.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if setting.threads > 1 and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
            # See `bench.device.thread_settings`. Not only on a busy machine: all pairs need equal terms.
            environment["GOMP_SPINCOUNT"] = SHORT_SPIN
        try:
            self._process = Subprocess([interpreter, str(WORKER)], environment)
        except OSError as error:
            raise InterpreterError(
                f"the interpreter {interpreter} does not run: {error.strerror}. Name a virtual environment whose "
                "bin/python exists: env:/path/to/venv."
            ) from error

    def wait(self) -> Self:
        """Until torch is imported and the device is there. Raises `InterpreterError` if that fails."""
        try:
            self.environment = self.ask("start", device=self._setting.device, threads=self._setting.threads)
        except WorkerError as error:
            raise InterpreterError(
                f"the interpreter {self._interpreter} cannot measure on {self._setting.device}: {error}. It needs "
                "torch, and the device; `zoobench doctor` says what is here."
            ) from error
        self.environment |= {"process": "its own", "allocator": "pages kept" if has_glibc() else "default"}
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """See `Worker`; an error too if the process died."""
        self._process.send(json.dumps({"do": command, **arguments}))
        line = self._process.answers.readline()
        if not line:
            status = self._process.wait()
            said = self._process.errors(STDERR_TAIL).strip()
            raise WorkerError(f"the process ended with status {status}" + (f": {said}" if said else ""))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer.get("kinds", ()))
        return answer

    def close(self) -> None:
        """End the process, and a fork of it, whatever they are doing."""
        self._process.close()


@contextlib.contextmanager
def start_workers(interpreters: Iterable[str], setting: Setting) -> Iterator[dict[str, WorkerProcess]]:
    """Inside, a fresh process for each interpreter, ready. Raises `InterpreterError`."""
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(WorkerProcess(name, setting)) for name in dict.fromkeys(interpreters)}
        for worker in workers.values():
            worker.wait()
        yield workers
