"""Processes of ours: they import our code alone, and answer on a descriptor that nothing else writes to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

PROGRAM = Path(__file__).resolve().parent.parent / "zoobench.py"
"""Run by its path it finds our packages, wherever they are installed."""
OWN_DESCRIPTOR = os.name == "posix"
AUTOGROUP = Path("/proc/self/autogroup")
"""Linux may share the processor among sessions first, and a session of its own begins with no niceness."""


def module_command(module: str) -> list[str]:
    """The command that runs a module of ours (its ``main``) by this interpreter, without the current folder."""
    return [sys.executable, "-P", str(PROGRAM), "-m", module]


class Subprocess:
    """A process that reads lines from its standard input and writes lines to a descriptor of its own.

    The descriptor's number is its last argument; `open_answers` is the process's part. So neither a
    ``sitecustomize`` that prints nor a library that writes to descriptor 1 comes between the answers: that goes with
    the errors, of which `errors` gives the end. Only Windows cannot hand a descriptor on: there it is the standard
    output, until `open_answers` redirects what others write.

    Raises `OSError` if the program cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        read, write = os.pipe() if OWN_DESCRIPTOR else (-1, 1)
        try:
            self._process = subprocess.Popen(
                [*command, str(write)],
                stdin=subprocess.PIPE,
                stdout=self._errors if OWN_DESCRIPTOR else subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                env={**environment, "PYTHONPATH": _absolute_entries(environment.get("PYTHONPATH", ""))},
                pass_fds=[write] if OWN_DESCRIPTOR else (),
                start_new_session=True,  # Ctrl-C comes to us alone; we then end the process
            )
        except BaseException:
            self._errors.close()
            if OWN_DESCRIPTOR:
                os.close(read)
            raise
        finally:
            if OWN_DESCRIPTOR:
                os.close(write)
        assert self._process.stdin is not None
        self._input: TextIO = self._process.stdin  # type: ignore[assignment]
        self.answers: TextIO = (
            os.fdopen(read, encoding="utf-8") if OWN_DESCRIPTOR else self._process.stdout  # type: ignore[assignment]
        )
        """What the process writes to its descriptor, line by line; it ends when the process does."""
        self.pid = self._process.pid

    def send(self, line: str) -> None:
        """Write a line to the process. One that has died is noticed by the missing answer."""
        with contextlib.suppress(BrokenPipeError):
            self._input.write(line + "\n")
            self._input.flush()

    def wait(self) -> int:
        """The exit status, when the process has ended; negative for a signal."""
        return self._process.wait()

    def errors(self, at_most: int) -> str:
        """The last bytes that were written to standard error and standard output."""
        self._errors.seek(max(0, self.errors_size() - at_most))
        return self._errors.read().decode(errors="replace")  # to the end, where the process goes on writing

    def errors_size(self) -> int:
        """Bytes that were written to standard error and standard output so far."""
        return os.fstat(self._errors.fileno()).st_size

    def kill(self) -> None:
        """End the process, and what it has forked, whatever they are doing; `answers` then end, for who reads them."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own
        else:
            self._process.kill()

    def close(self) -> None:
        """End the process, and what it has forked, and forget all of it."""
        self.kill()
        self._process.wait()
        for stream in (self._input, self.answers, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def open_answers() -> TextIO:
    """In a process that `Subprocess` has started: where its answers go. Takes the last argument away.

    What was started with ``nice`` stays as nice.
    """
    if OWN_DESCRIPTOR and os.nice(0) > 0 and AUTOGROUP.exists():
        with contextlib.suppress(OSError):  # where a container forbids it, it is only less nice
            AUTOGROUP.write_text(str(os.nice(0)))
    descriptor = int(sys.argv.pop())
    if descriptor == sys.__stdout__.fileno():  # type: ignore[union-attr]
        descriptor = os.dup(descriptor)
        os.dup2(2, 1)
    os.set_inheritable(descriptor, False)
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")


def _absolute_entries(python_path: str) -> str:
    """PYTHONPATH without empty and relative entries; `zoobench` does the same before it can import this."""
    return os.pathsep.join(entry for entry in python_path.split(os.pathsep) if Path(entry).is_absolute())
