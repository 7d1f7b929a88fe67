"""A run of several processes, started and watched by torchrun's elastic launcher.

The launcher never restarts a rank by itself: when one fails or is killed it ends the others, and the run is tried again
as any other is, from its checkpoint.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal

from bench.device import keep_allocator_pages
from bench.errors import RecordError, UnwritableError
from bench.events import Emit, RunEvent, from_json, ignore, to_json
from bench.records import RunFailure, RunRecord, find_intact_record, save_record
from bench.runs.execution import execute, find_done
from bench.runs.job_description import Job
from bench.runs.ledger import died, explain_death

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

StartMethod = Literal["fork", "spawn"]
SHUTDOWN_SECONDS = 5
"""Between telling a rank to end and killing it."""
LOST_SECONDS = 10
"""How long a rank that has lost another waits for the launcher to end it, before it fails itself."""
JOIN_SECONDS = 900
"""How long one machine waits for the others."""
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
PR_SET_PDEATHSIG = 1  # from sys/prctl.h
LOOPBACK = "127.0.0.1"


def launch(job: Job, emit: Emit, start_method: StartMethod) -> RunRecord:
    """Do a run in its processes and return its record; a rank that fails ends all and leaves a ``failed`` record.

    Raises `RecordError` if the record cannot be saved.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    alone = job.nodes == 1
    received, sent = multiprocessing.get_context(start_method).Pipe(duplex=False)
    relay = threading.Thread(target=_relay, args=(received, emit), daemon=True)
    relay.start()
    with tempfile.TemporaryDirectory(prefix="zoobench-ranks-") as folder:  # a rank that fails says there why
        config = LaunchConfig(
            min_nodes=job.nodes,
            max_nodes=job.nodes,
            nproc_per_node=job.config.nproc // job.nodes,
            run_id=job.config.run_id,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOOPBACK}:0" if alone else job.rendezvous,
            rdzv_configs={"timeout": JOIN_SECONDS},
            local_addr=LOOPBACK if alone else None,
            max_restarts=0,
            start_method=start_method,
            shutdown_timeout=SHUTDOWN_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, do_rank)(job, sent)
        except ChildFailedError as error:
            if not alone:  # every machine says so, and each one's executor records what its launcher left
                raise
            record = _failed(job, error.failures)
            save_record(record, job.results)
            return record
        finally:
            sent.send("")
            relay.join()
    done = find_done(job) if alone else find_intact_record(job.results, job.config.run_id)
    if done is None:
        raise RecordError(f"the record of {job.config.run_id} is not in {job.results!r}: all machines must reach it.")
    return done


def do_rank(job: Job, events: Connection) -> None:
    """A rank's part of the run, in a process of its own; the first rank's events are sent."""
    _end_as_told()
    if job.nodes == 1 and sys.platform == "linux":  # gloo would listen where the machine's name leads
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    keep_allocator_pages()
    faulthandler.enable()
    from bench.training.distributed import is_lost_connection, joined

    def send(event: RunEvent) -> None:
        events.send(to_json(event))

    try:
        with joined(job.config.device) as ranks:
            execute(job, send if ranks.rank == 0 else ignore, ranks)
    except RuntimeError as error:
        if is_lost_connection(error):  # the launcher should first see the rank that ended, and then ends this one
            time.sleep(LOST_SECONDS)
        raise


def _end_as_told() -> None:
    """Let a signal end this rank whatever it waits for, and end it when its launcher is gone."""
    for each in (signal.SIGTERM, signal.SIGINT):  # the launcher's handlers, where this is a fork of it
        signal.signal(each, signal.SIG_DFL)
    if sys.platform == "linux":
        launcher = multiprocessing.parent_process()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if launcher is not None and os.getppid() != launcher.pid:  # it died before the line above
            os._exit(1)


def _relay(received: Connection, emit: Emit) -> None:
    """Pass events on, until an empty message."""
    while line := received.recv():
        emit(from_json(line))


def _failed(job: Job, failures: dict[int, ProcessFailure]) -> RunRecord:
    """The record of what failed first: a signal before an exception, which may only say that the connection broke."""
    rank, failure = min(failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
    raised: Any = failure.message  # said to be a str; of an exception it is a dict
    if not isinstance(raised, dict):
        return died(job, *explain_death(failure.exitcode, None, f"rank {rank} of {job.config.nproc}"))
    kind, _, message = raised["message"].partition(": ")
    if kind == UnwritableError.__name__:
        raise UnwritableError(message)
    failed = RunFailure(kind=kind, message=message, traceback=raised["extraInfo"]["py_callstack"])
    return died(job, "out_of_memory" if kind in OUT_OF_MEMORY else "failed", failed)
