"""The two sides of a comparison: what BASE and HEAD may name, and where their code is.

- ``git:REV``: a revision of the repository of the current folder, checked out to a temporary worktree;
- ``.``: that repository's working tree as it is;
- ``env:PATH``: a virtual environment, its interpreter and the zoo that is installed there;
- ``resnet18`` or ``resnet18,channels_last=true,drop_rate=0.1``: a model with options, of the zoo installed here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError, did_you_mean
from bench.measure.duet import Lane
from bench.measure.worktrees import find_repository, resolve_commit, worktree

DTYPES = ("float32", "bfloat16", "float16")
KINDS = "git:REV, . (the working tree), env:/path/to/venv, baseline:NAME (as BASE), "
KINDS += "or a model such as resnet18,channels_last=true"


class SideError(UserError):
    """BASE or HEAD names nothing that can be compared."""


@dataclass(frozen=True)
class ModelSpec:
    """A model with the options of its builder and those of its measurement."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    channels_last: bool = False
    dtype: str = "float32"
    compile: bool = False


@dataclass(frozen=True)
class Side:
    """One side, resolved: its code is at ``root`` (None: the interpreter's own), run by ``interpreter``.

    ``name`` is what the user wrote, ``commit`` the revision's full hash, ``spec`` the model where the side names one.
    """

    name: str
    interpreter: str
    root: str | None
    commit: str | None = None
    spec: ModelSpec | None = None

    def lane(self, model: str) -> Lane:
        """The side's network: the one that it names, or ``model`` as its code builds it."""
        spec = self.spec or ModelSpec(model)
        return Lane(
            self.interpreter,
            self.root,
            spec.model,
            dict(spec.options),
            channels_last=spec.channels_last,
            dtype=spec.dtype,
            compile=spec.compile,
        )


def parse_model_spec(text: str) -> ModelSpec:
    """``NAME[,KEY=VALUE…]``; values are read as TOML reads them, else as text. Raises `SideError`."""
    name, *assignments = (part.strip() for part in text.split(","))
    if not name:
        raise SideError(f"{text!r} names no model: expected NAME or NAME,KEY=VALUE, as resnet18,channels_last=true.")
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign or not key.strip():
            raise SideError(
                f"{assignment!r} in {text!r} is no option: expected KEY=VALUE, as in {name},channels_last=true."
            )
        if key.strip() in values:
            raise SideError(f"{key.strip()!r} stands twice in {text!r}: give it once.")
        values[key.strip()] = _parse_value(value.strip())
    for key in ("channels_last", "compile"):
        if not isinstance(values.get(key, False), bool):
            raise SideError(f"{key}={values[key]} in {text!r} is not possible: expected true or false.")
    dtype = values.pop("dtype", "float32")
    if dtype not in DTYPES:
        hint = did_you_mean(str(dtype), DTYPES)
        raise SideError(f"dtype={dtype} in {text!r} is not possible: expected one of {', '.join(DTYPES)}.{hint}")
    taken = {key: values.pop(key, False) for key in ("channels_last", "compile")}
    for key in ("num_classes", "input_size"):
        if key in values:
            raise SideError(
                f"{key} in {text!r} would set one side only: give it for both by --{key.replace('_', '-')}."
            )
    return ModelSpec(name, values, dtype=dtype, **taken)


@contextlib.contextmanager
def open_sides(base: str, head: str) -> Iterator[tuple[Side, Side]]:
    """Inside, both sides' code is there. Raises `UserError` for what is not.

    Both sides are models, or neither is: a model's name alone says nothing of the code that another side has.
    """
    if _is_model(base) != _is_model(head):
        model, other = (base, head) if _is_model(base) else (head, base)
        raise SideError(
            f"{model!r} names a model and {other!r} does not. Compare two models by name; or two revisions, working "
            "trees or environments (git:REV, ., env:PATH), and choose their models by --models."
        )
    with contextlib.ExitStack() as stack:
        yield _open(base, stack), _open(head, stack)


@contextlib.contextmanager
def open_side(text: str | None) -> Iterator[Side]:
    """Inside, the side's code is there; None is the zoo that is installed here. Raises `UserError` if it is not."""
    with contextlib.ExitStack() as stack:
        yield Side("the installed zoo", sys.executable, _own_root()) if text is None else _open(text, stack)


def _is_model(text: str) -> bool:
    return text != "." and not text.startswith(("git:", "env:"))


def _open(text: str, stack: contextlib.ExitStack) -> Side:
    kind, _, rest = text.partition(":")
    if kind == "git":
        repository = find_repository(Path.cwd())
        commit = resolve_commit(repository, rest or "HEAD")
        root = stack.enter_context(worktree(repository, commit))
        return Side(text, sys.executable, _with_zoo(root, text), commit=commit)
    if text == ".":
        return Side(text, sys.executable, _with_zoo(find_repository(Path.cwd()), text))
    if kind == "env":
        return Side(text, _interpreter_of(rest), None)
    spec = parse_model_spec(text)
    if ":" in spec.model:
        raise SideError(f"{text!r} is no side of a comparison: expected {KINDS}.")
    return Side(text, sys.executable, _own_root(), spec=spec)


def _with_zoo(root: Path, text: str) -> str:
    if not (root / "zoo" / "__init__.py").is_file():
        raise SideError(f"{text} holds no package zoo at its top: there are no models to compare in it.")
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
    """Where the zoo of this process lies, found without importing it."""
    found = importlib.util.find_spec("zoo")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent.parent)


def _parse_value(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
