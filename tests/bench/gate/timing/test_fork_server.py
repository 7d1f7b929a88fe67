"""Forks in place of fresh processes: each starts from the same clean state, dies alone, and leaves nothing."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from bench.gate.timing.fork_server import serve_forks
from bench.gate.timing.process import WORKER, WorkerError
from bench.gate.timing.subject import Setting, Subject

ROOT = str(Path(__file__).parents[4])
SUBJECT = Subject("lenet5", root=ROOT)
SETTING = Setting()

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


OTHERS: set[int] = set()
"""Workers that tests of other files left."""


@pytest.fixture(scope="module")
def open_pair():
    OTHERS.update(processes())
    with serve_forks([SUBJECT]) as opening:
        yield opening


def processes():
    """The ids of our workers; a process that runs other tests as well may have other children."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one of the others ended meanwhile
            if str(WORKER) in each.cmdline() and each.pid not in OTHERS:
                found.add(each.pid)
    return found


def run_block(workers):
    with workers.build([SUBJECT], 2, [0], seed=0) as built:
        return built.places[0][0].ask("run", subject=0, steps=1)


def test_each_pair_is_a_fresh_fork_of_one_process(open_pair):
    seen = []
    for _ in range(3):
        with open_pair([sys.executable], SETTING) as workers:
            seen.append(processes())
            assert run_block(workers)["seconds"] > 0
    (parent,) = set.intersection(*seen)
    children = [pids - {parent} for pids in seen]
    assert all(len(pids) == 1 for pids in children)
    assert len(set.union(*children)) == 3
    assert processes() == {parent}


def test_a_fork_knows_nothing_of_the_one_before(open_pair):
    with open_pair([sys.executable], SETTING) as workers:
        run_block(workers)
    with (
        open_pair([sys.executable], SETTING) as workers,
        workers.build([], 2, [], seed=0),
        pytest.raises(WorkerError, match="index"),
    ):
        workers.workers[sys.executable].ask("run", subject=0, steps=1)


def test_a_fork_that_dies_is_reported_and_the_next_one_lives(open_pair):
    with open_pair([sys.executable], SETTING) as workers:
        newest = max(processes(), key=lambda pid: psutil.Process(pid).create_time())
        os.kill(newest, signal.SIGKILL)
        with pytest.raises(WorkerError, match="ended with status -9"):
            run_block(workers)
    with open_pair([sys.executable], SETTING) as workers:
        assert run_block(workers)["seconds"] > 0


def test_the_end_of_the_server_is_the_end_of_all_its_processes():
    before = processes()
    with serve_forks([SUBJECT]) as open_pair, open_pair([sys.executable], SETTING):
        assert len(processes() - before) == 2
    assert processes() == before


def test_an_interruption_leaves_no_answer_for_another_question(open_pair):
    with open_pair([sys.executable], SETTING) as workers:
        before = processes()
        workers.workers[sys.executable]._answered = False  # as it is while an answer is on its way
    assert not processes() & before
    with open_pair([sys.executable], SETTING) as workers:
        assert run_block(workers)["seconds"] > 0
