"""The sides of a comparison: what BASE and HEAD may name, and where their code is.

- ``git:REV``: a revision of the repository of the current folder, checked out to a temporary folder;
- ``.``: that repository's working tree as it is;
- ``env:PATH``: a virtual environment, with its interpreter and the zoo that is installed there; ``env:PATH@REV`` says
  which revision of the current folder's repository it was made of, for ``--accept``;
- ``resnet18`` or ``resnet18,channels_last=true,drop_rate=0.1``: a model with options, of the zoo installed here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UserError, did_you_mean
from bench.gate.timing.subject import DTYPES, Subject
from bench.gate.worktrees import find_repository, resolve_commit, worktree
from bench.machine import describe_commit
from bench.runtimes import RUNTIMES

KINDS = "git:REV, . (the working tree), env:/path/to/venv, baseline:NAME (as BASE), "
KINDS += "or a model such as resnet18,channels_last=true"


class SideError(UserError):
    """BASE or HEAD names nothing that can be compared."""


@dataclass(frozen=True)
class Side:
    """One side, resolved: its code is at ``root`` (None: the interpreter's own), run by ``interpreter``.

    ``name`` is what the user wrote, ``commit`` the full hash of the revision, with ``+`` behind it where the tree was
    changed. ``model`` is the network of a side that names one.
    """

    name: str
    interpreter: str = sys.executable
    root: str | None = None
    commit: str | None = None
    model: Subject | None = None

    def subject(self, name: str) -> Subject:
        """The side's network: the one that it names, or ``name`` (with options) as its code builds it."""
        return replace(self.model or parse_subject(name), interpreter=self.interpreter, root=self.root)


def parse_subject(text: str) -> Subject:
    """``NAME[,KEY=VALUE…]``: options of the builder, and channels_last, dtype and runtime. Raises `SideError`.

    ``compile=true`` is ``runtime=compile``.
    """
    name, comma, _ = text.partition(",")
    if not name.strip():
        raise SideError(f"{text!r} names no model: expected NAME or NAME,KEY=VALUE, as in resnet18,channels_last=true.")
    if not comma:
        return Subject(name.strip())
    from zoo.info import ZooError
    from zoo.registry import split_options

    try:
        name, options = split_options(text)
    except ZooError as error:
        raise SideError(str(error)) from error
    keys = [part.partition("=")[0].strip() for part in text.split(",")[1:]]
    for key in keys:
        if keys.count(key) > 1:
            raise SideError(f"{key!r} is given twice in {text!r}: give it once.")
    for key in ("channels_last", "compile"):
        if not isinstance(options.get(key, False), bool):
            raise SideError(f"{key}={options[key]} in {text!r} is not possible: expected true or false.")
    for key in ("num_classes", "input_size", "in_chans"):
        if key in options:
            option = f"--{key.replace('_', '-')}"
            raise SideError(f"{key} in {text!r} would set one side only: give it for both sides by {option}.")
    dtype = options.pop("dtype", None)
    if dtype is not None and dtype not in DTYPES:
        hint = did_you_mean(str(dtype), DTYPES)
        raise SideError(f"dtype={dtype} in {text!r} is not possible: expected one of {', '.join(DTYPES)}.{hint}")
    channels_last = options.pop("channels_last", None)
    if options.pop("compile", False) and options.setdefault("runtime", "compile") != "compile":
        raise SideError(f"compile=true in {text!r} is runtime=compile, and another runtime is given: leave one out.")
    runtime = str(options.pop("runtime", "eager"))
    if runtime not in RUNTIMES:
        hint = did_you_mean(runtime, RUNTIMES)
        raise SideError(f"runtime={runtime} in {text!r} is not possible: expected one of {', '.join(RUNTIMES)}.{hint}")
    return Subject(name, options, channels_last, dtype, runtime)


@contextlib.contextmanager
def open_sides(base: str, head: str) -> Iterator[tuple[Side, Side]]:
    """Inside, the code of both sides is there. Raises `UserError` for what is not.

    Both sides are models, or neither is: a model's name alone says nothing about the code of another side.
    """
    if is_model(base) != is_model(head):
        model, other = (base, head) if is_model(base) else (head, base)
        raise SideError(
            f"{model!r} names a model and {other!r} does not. Compare two models by name; or two revisions, working "
            "trees or environments (git:REV, ., env:PATH), with --models to choose their models."
        )
    with contextlib.ExitStack() as stack:
        yield _open(base, stack), _open(head, stack)


@contextlib.contextmanager
def open_side(text: str | None) -> Iterator[Side]:
    """Inside, the code of the side is there; None is the zoo that is installed here. Raises `UserError`."""
    with contextlib.ExitStack() as stack:
        yield _with_commit(Side("the installed zoo", root=_own_root())) if text is None else _open(text, stack)


def is_model(text: str) -> bool:
    """Whether a side names a model of the installed zoo, and no revision, working tree or environment."""
    return text != "." and not text.startswith(("git:", "env:"))


def _open(text: str, stack: contextlib.ExitStack) -> Side:
    kind, _, rest = text.partition(":")
    if kind == "git":
        repository = find_repository(Path.cwd())
        commit = resolve_commit(repository, rest or "HEAD")
        root = stack.enter_context(worktree(repository, commit))
        return Side(text, root=_with_zoo(root, text), commit=commit)
    if text == ".":
        return _with_commit(Side(text, root=_with_zoo(find_repository(Path.cwd()), text)))
    if kind == "env":
        folder, made_of, revision = rest.rpartition("@")
        if not made_of or Path(rest).expanduser().exists():
            return Side(text, _interpreter_of(rest))
        return Side(text, _interpreter_of(folder), commit=resolve_commit(find_repository(Path.cwd()), revision))
    model = parse_subject(text)
    if ":" in model.model:
        raise SideError(f"{text!r} is no side of a comparison: expected {KINDS}.")
    return _with_commit(Side(text, root=_own_root(), model=model))


def _with_commit(side: Side) -> Side:
    assert side.root is not None
    described = describe_commit(Path(side.root))
    return side if described is None else replace(side, commit=described["commit"] + "+" * described["dirty"])


def _with_zoo(root: Path, text: str) -> str:
    if not (root / "zoo" / "__init__.py").is_file():
        raise SideError(f"{text} has no package zoo at its top: there are no models in it to compare.")
    return str(root)


def _interpreter_of(path: str) -> str:
    folder = Path(path).expanduser()
    interpreter = folder / "bin" / "python"
    if not path or not interpreter.exists():
        raise SideError(
            f"env:{path} is no virtual environment: {interpreter} does not exist. Name the folder of one in which "
            "zoobench is installed."
        )
    return os.path.abspath(interpreter)  # noqa: PTH100 - not resolved: a link leads out of the environment


def _own_root() -> str:
    """Where the zoo of this process is, found without importing it."""
    found = importlib.util.find_spec("zoo")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent.parent)
