"""Temporary worktrees: gone however the call ends, and cleared up by the next call where it was killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.measure.worktrees import ended_by_signals, prune_worktrees, resolve_commit, worktree

HOLD = """
import sys, time
from pathlib import Path
from bench.measure.worktrees import ended_by_signals, resolve_commit, worktree
repository = Path(sys.argv[1])
with ended_by_signals(), worktree(repository, resolve_commit(repository, "HEAD")) as tree:
    print(tree, flush=True)
    sys.stdin.read()
"""


def hold(repository) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(repository.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, Path(process.stdout.readline().strip())


def end(process) -> int:
    process.stdin.close()
    process.stdout.close()
    return process.wait()


def fail_inside(repository, seen):
    with worktree(repository.path, resolve_commit(repository.path, "HEAD")) as tree:
        assert (tree / "zoo" / "__init__.py").is_file()
        seen.append(tree)
        raise ZeroDivisionError


def test_an_error_inside_leaves_nothing(repository):
    seen = []
    with pytest.raises(ZeroDivisionError):
        fail_inside(repository, seen)
    assert repository.worktrees() == [str(repository.path)]
    assert not seen[0].parent.exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_leaves_nothing(repository, number, status):
    process, tree = hold(repository)
    assert tree.is_dir()
    os.kill(process.pid, number)
    assert process.wait() == status
    end(process)
    assert repository.worktrees() == [str(repository.path)]
    assert not tree.parent.exists()


def test_what_a_killed_call_left_is_removed_by_the_next_but_not_what_a_living_one_holds(repository):
    (killed, left), (living, held) = hold(repository), hold(repository)
    killed.kill()
    end(killed)
    assert left.is_dir()
    assert prune_worktrees(repository.path) == [left.parent]
    assert not left.parent.exists()
    assert held.is_dir()
    assert str(held) in repository.worktrees()
    assert end(living) == 0
    assert repository.worktrees() == [str(repository.path)]


def test_other_peoples_worktrees_are_left_alone(repository, tmp_path):
    repository.git("worktree", "add", "-q", "--detach", str(tmp_path / "mine"))
    with worktree(repository.path, resolve_commit(repository.path, "HEAD")):
        pass
    assert repository.worktrees() == [str(repository.path), str(tmp_path / "mine")]


def test_outside_the_main_thread_signals_are_left_alone(repository):
    seen = []

    def work():
        with ended_by_signals(), worktree(repository.path, resolve_commit(repository.path, "HEAD")) as tree:
            seen.append(tree.is_dir())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
    assert repository.worktrees() == [str(repository.path)]
