"""Temporary working trees of old revisions, which do not outlive the call however it ends.

Each is in a folder of its own under the system's temporary folder, beside a file that its owner keeps locked. A call
that was killed leaves both behind, but not the lock, which is how the next call knows what to remove. The repository is
only read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

from bench.errors import UserError

PREFIX = "zoobench-compare-"
TREE, LOCK = "tree", "owner.lock"


class RevisionError(UserError):
    """A git revision, or a repository, that is not here."""


def find_repository(folder: Path) -> Path:
    """The root of the git repository that holds ``folder``. Raises `RevisionError`."""
    try:
        return Path(run_git(folder, "rev-parse", "--show-toplevel"))
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
        return run_git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError as error:
        shallow = run_git(repository, "rev-parse", "--is-shallow-repository") == "true"
        remedy = (
            "The clone is shallow: fetch more of its history, in GitHub Actions by `fetch-depth: 0`."
            if shallow
            else "Name a branch, a tag or a commit; `git log --oneline` shows the latest."
        )
        raise RevisionError(f"git:{revision} is no revision of {repository}. {remedy}") from error


@contextlib.contextmanager
def worktree(repository: Path, commit: str) -> Iterator[Path]:
    """Inside, the folder holds the files of ``commit``; afterwards nothing of it is left."""
    remove_abandoned()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)))
        lock = stack.enter_context((folder / LOCK).open("w"))
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)
        tree = folder / TREE  # made when the lock is held: until then no other call takes the folder for abandoned
        tree.mkdir()
        index = {"GIT_INDEX_FILE": str(folder / "index")}
        try:
            git_folder = run_git(repository, "rev-parse", "--absolute-git-dir")
            folders = f"--git-dir={git_folder}", f"--work-tree={tree}"
            run_git(tree, *folders, "-c", f"core.hooksPath={os.devnull}", "checkout", commit, "--", ".", **index)
        except subprocess.CalledProcessError as error:
            raise RevisionError(f"{commit[:12]} cannot be checked out to {folder}: {error.stderr.strip()}.") from error
        yield tree


def remove_abandoned() -> list[Path]:
    """Remove what calls that were killed left behind; the folders that were removed. Not on Windows."""
    removed: list[Path] = []
    if sys.platform != "win32":
        for folder in (tree.parent for tree in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{TREE}")):
            # Somebody else's, or one whose owner is alive or is removing it.
            with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


def run_git(folder: Path, *arguments: str, **environment: str) -> str:
    """What git prints. Raises `subprocess.CalledProcessError`."""
    command = ["git", "-C", str(folder), *arguments]
    # A session of its own: Ctrl-C in the terminal is ours to answer, not git's.
    return subprocess.run(
        command, check=True, capture_output=True, text=True, start_new_session=True, env=os.environ | environment
    ).stdout.strip()
