"""Temporary working trees: gone however the call ends, and cleared up by the next call where it was killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.gate.worktrees import remove_abandoned, resolve_commit, worktree
from bench.signals import ended_by_signals

HOLD = """
import sys, time
from pathlib import Path
from bench.gate.worktrees import resolve_commit, worktree
from bench.signals import ended_by_signals
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
    assert not tree.parent.exists()


def test_what_a_killed_call_left_is_removed_by_the_next_but_not_what_a_living_one_holds(repository):
    (killed, left), (living, held) = hold(repository), hold(repository)
    killed.kill()
    end(killed)
    assert left.is_dir()
    removed = remove_abandoned()
    assert left.parent in removed
    assert held.parent not in removed
    assert not left.parent.exists()
    assert (held / "zoo" / "__init__.py").is_file()
    assert end(living) == 0
    assert not held.parent.exists()


def test_the_repository_is_only_read(repository, tmp_path):
    """Neither its index, its files, its worktrees nor its HEAD; and a linked worktree's revisions can be had."""
    repository.write("zoo/__init__.py", "changed = True\n")
    repository.write("zoo/more.py", "")
    repository.git("add", "zoo/more.py")
    repository.git("worktree", "add", "-q", "--detach", str(tmp_path / "mine"))
    before = repository.git("status", "--porcelain=v2", "--branch"), repository.worktrees()
    for place in (repository.path, tmp_path / "mine"):
        with worktree(place, resolve_commit(place, "HEAD")) as tree:
            assert "BUILDERS" in (tree / "zoo" / "__init__.py").read_text()
            assert not (tree / "zoo" / "more.py").exists()
            assert sorted(path.name for path in tree.iterdir()) == [".gitignore", "zoo"]
        assert not tree.parent.exists()
    assert (repository.git("status", "--porcelain=v2", "--branch"), repository.worktrees()) == before


def test_outside_the_main_thread_signals_are_left_alone(repository):
    seen = []

    def work():
        with ended_by_signals(), worktree(repository.path, resolve_commit(repository.path, "HEAD")) as tree:
            seen.append(tree.is_dir())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
