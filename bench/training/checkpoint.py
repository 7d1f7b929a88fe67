"""Checkpoints: a training's whole state on disk, atomically, so that a killed run goes on bit for bit.

A checkpoint is a folder: weights as safetensors, the optimizer and the rest as torch saves them (read back with
``weights_only=True``, so that no code in them can run), and their checksums. It appears under its name only when it is
whole and on disk; the one before it stays until then, and is used where the newer one turns out to be damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

KEPT = 2
WEIGHTS, STATE, SUMS = "weights.safetensors", "state.pt", "sha256.json"


class Checkpoints:
    """The checkpoints of one run, in ``folder``; due every ``every_seconds`` besides at each epoch's end."""

    def __init__(self, folder: Path, every_seconds: float = 60.0) -> None:
        self._folder, self._every_seconds = folder, every_seconds
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last save is longer ago than ``every_seconds``."""
        return time.monotonic() - self._saved >= self._every_seconds

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint and remove those before the previous one. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self._folder, prefix=".writing-"))
        try:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            contents = {
                # Serialised in memory: a full disk is then told by the write, as an OSError.
                WEIGHTS: serialize({name: tensor.contiguous() for name, tensor in weights.items()}),
                STATE: buffer.getvalue(),
            }
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
            sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            (temporary / SUMS).write_text(json.dumps(sums))
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            target = self._folder / f"step-{step:012}"
            if target.exists():  # of a run that was killed after this step and has got here again
                shutil.rmtree(target)
            temporary.rename(target)
            _sync(self._folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self._found()[KEPT:]:
            shutil.rmtree(old)
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and state of the newest checkpoint that is whole, or None; a damaged one is told by a warning."""
        for folder in self._found():
            try:
                sums = json.loads((folder / SUMS).read_text())
                for name in (WEIGHTS, STATE):
                    if _sha256(folder / name) != sums[name]:
                        raise ValueError(f"{name} does not have the checksum it was written with")
                return load_file(folder / WEIGHTS), torch.load(folder / STATE, weights_only=True)
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"the checkpoint {folder} is damaged ({error}); the one before it is used.", stacklevel=2)
        return None

    def remove(self) -> None:
        """Remove all: the run has its record."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other runs may have theirs beside it
            self._folder.parent.rmdir()

    def _found(self) -> list[Path]:
        """Newest first."""
        return sorted(self._folder.glob("step-*"), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable; only POSIX systems can open a folder for that."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
