"""Temporary git worktrees that do not outlive the call, however it ends.

Each lies in a folder of its own under the system's temporary folder, beside a file that its owner keeps locked. A call
that was killed leaves both behind; its lock is gone with it, which is how the next call knows what to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bench.errors import UserError

PREFIX = "zoobench-compare-"
TREE, LOCK = "tree", "owner.lock"


class RevisionError(UserError):
    """A git revision, or a repository, that is not here."""


def find_repository(folder: Path) -> Path:
    """The root of the git repository that holds ``folder``. Raises `RevisionError`."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel"))
    except subprocess.CalledProcessError as error:
        raise RevisionError(
            f"{folder} is in no git repository ({error.stderr.strip()}). Run the command inside the repository whose "
            "revisions are to be compared."
        ) from error
    except FileNotFoundError as error:
        raise RevisionError(
            "git is not installed here; git:REV needs it. Install git, or compare env: sides."
        ) from error


def resolve_commit(repository: Path, revision: str) -> str:
    """The full hash of a revision's commit. Raises `RevisionError`."""
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError as error:
        shallow = _git(repository, "rev-parse", "--is-shallow-repository") == "true"
        remedy = (
            "The clone is shallow: fetch more of its history, in GitHub Actions by `fetch-depth: 0`."
            if shallow
            else "Name a branch, a tag or a commit; `git log --oneline` shows the latest."
        )
        raise RevisionError(f"git:{revision} is no revision of {repository}. {remedy}") from error


@contextlib.contextmanager
def worktree(repository: Path, commit: str) -> Iterator[Path]:
    """Inside, the folder holds the files of ``commit``, detached; afterwards nothing of it is left."""
    prune_worktrees(repository)
    with contextlib.ExitStack() as stack:
        with uninterrupted():
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            stack.callback(_remove, repository, folder)
            lock = stack.enter_context((folder / LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                _git(repository, "worktree", "add", "--detach", "--quiet", str(folder / TREE), commit)
            except subprocess.CalledProcessError as error:
                told = error.stderr.strip()
                raise RevisionError(f"{commit[:12]} cannot be checked out to {folder}: {told}") from error
        yield folder / TREE


def prune_worktrees(repository: Path) -> list[Path]:
    """Remove what calls that were killed left behind; the folders that were removed."""
    removed = []
    for line in _git(repository, "worktree", "list", "--porcelain").splitlines():
        kind, _, path = line.partition(" ")
        folder = Path(path).parent
        if kind != "worktree" or not folder.name.startswith(PREFIX) or Path(path).name != TREE or _is_owned(folder):
            continue
        _remove(repository, folder)
        removed.append(folder)
    return removed


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that all is tidied; the exit is then 128+N."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, signals that ask for the end wait: a second Ctrl-C does not stop the tidying."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_owned(folder: Path) -> bool:
    """Whether the call that made the folder still lives: it holds the lock."""
    try:
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _remove(repository: Path, folder: Path) -> None:
    with uninterrupted():
        tree = str(folder / TREE)
        with contextlib.suppress(subprocess.CalledProcessError):  # one that was half made is none to git
            _git(repository, "worktree", "remove", "--force", "--force", tree)
        shutil.rmtree(folder, ignore_errors=True)
        if f"worktree {tree}" in _git(repository, "worktree", "list", "--porcelain").splitlines():
            _git(repository, "worktree", "prune", "--expire=now")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    # A session of its own: Ctrl-C in the terminal is ours to answer, not git's.
    return subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True).stdout.strip()
