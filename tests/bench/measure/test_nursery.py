"""Forks in place of fresh processes: each starts from the same clean state, dies alone, and leaves nothing."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from bench.measure.duet import WORKER, Lane, Setting, WorkerError
from bench.measure.nursery import Nursery

ROOT = str(Path(__file__).parents[3])
LANE = Lane(sys.executable, ROOT, "lenet5")
SETTING = Setting()

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture
def nursery():
    with Nursery([LANE]) as nursery:
        yield nursery


def workers():
    """The ids of our workers; a process that runs other tests as well may have other children."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one of the others ended meanwhile
            if str(WORKER) in each.cmdline():
                found.add(each.pid)
    return found


def run_block(duet):
    with duet.build([LANE], 2, [0], seed=0) as stage:
        return stage.places[0][0].ask("run", lane=0, steps=1)


def test_each_duet_is_a_fresh_fork_of_one_process(nursery):
    seen = []
    for _ in range(3):
        with nursery.open([sys.executable], SETTING) as duet:
            seen.append(workers())
            assert run_block(duet)["seconds"] > 0
    (parent,) = set.intersection(*seen)
    children = [pids - {parent} for pids in seen]
    assert all(len(pids) == 1 for pids in children)
    assert len(set.union(*children)) == 3
    assert workers() == {parent}


def test_a_fork_knows_nothing_of_the_one_before(nursery):
    with nursery.open([sys.executable], SETTING) as duet, duet.build([LANE], 2, [0], seed=0) as stage:
        worker = stage.places[0][0]
        worker.ask("run", lane=0, steps=1)
    with (
        nursery.open([sys.executable], SETTING) as duet,
        duet.build([], 2, [], seed=0),
        pytest.raises(WorkerError, match="index"),
    ):
        duet._workers[sys.executable].ask("run", lane=0, steps=1)


def test_a_fork_that_dies_is_told_and_the_next_one_lives(nursery):
    with nursery.open([sys.executable], SETTING) as duet:
        before = workers()
        newest = max(before, key=lambda pid: psutil.Process(pid).create_time())
        os.kill(newest, signal.SIGKILL)
        with pytest.raises(WorkerError, match="ended with status -9"):
            run_block(duet)
    with nursery.open([sys.executable], SETTING) as duet:
        assert run_block(duet)["seconds"] > 0


def test_the_end_of_the_nursery_is_the_end_of_all_its_processes():
    with Nursery([LANE]) as nursery:
        nursery.open([sys.executable], SETTING)
        assert len(workers()) == 2
    assert workers() == set()


def test_an_interruption_leaves_no_answer_for_another_question(nursery):
    duet = nursery.open([sys.executable], SETTING)
    duet._workers[sys.executable]._answered = False  # as it is while an answer is on its way
    duet.close()
    with nursery.open([sys.executable], SETTING) as duet:
        assert run_block(duet)["seconds"] > 0
