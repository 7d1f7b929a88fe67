"""The program of a process that has imported what runs need and computed nothing: each run is a fork of it.

Importing takes seconds, a fork milliseconds. `main` is the program of a `bench.subprocesses.Subprocess`: each line of
its input is a job, which a fork does as `bench.runs.job` would; when that has ended, the server answers with its exit
status. Only on Linux and for runs on the CPU: a GPU's driver, and macOS's libraries, do not survive a fork.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import signal
import sys

from bench.device import keep_allocator_pages
from bench.runs.job import do_job
from bench.subprocesses import open_answers

ENDED = "ended with exit status "
"""Before the status, in the line that is no event."""
IMPORTED = (
    "torch",
    "torch._dynamo",
    "fvcore.nn",
    "sklearn.datasets",
    "zoo",
    "bench.counting.card",
    "bench.data.sources",
    "bench.timing.probes",
    "bench.timing.speed",
    "bench.training.loop",
)
"""torch imports its compiler when a network is counted on the meta device, which would cost each fork two seconds.
Architectures are not among them: an entry point of others may do anything when it is imported, such as to fail."""
PR_SET_PDEATHSIG = 1  # from sys/prctl.h


def main() -> None:
    """Fork for each job, until the input is closed."""
    keep_allocator_pages()
    faulthandler.enable()
    answers = open_answers()
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is here no fork will free: its collections need not walk it, which would copy all its pages
    server = os.getpid()
    while job := sys.stdin.readline():
        fork = os.fork()
        if fork == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == server:  # else it died before the line above
                do_job(job, answers, start_method="fork")
            return
        status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        answers.write(f"{ENDED}{status}\n")
