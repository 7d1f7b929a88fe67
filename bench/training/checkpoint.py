"""Checkpoints: the whole state of a training, saved atomically, so that a killed run resumes bit for bit.

A checkpoint is a folder, on this machine or on any file system that fsspec reaches: weights as safetensors, the
optimizer and the rest as torch saves them (read back with ``weights_only=True``, so that no code in them can run), and
their checksums. These are written last: a folder without them is no checkpoint. The previous one is kept, and is used
if the newer one turns out to be damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

from bench.records import parse_json, write_atomically
from bench.stores import file_system, names_in
from zoo.checkpoints import separate

KEPT = 2
WEIGHTS, STATE, SUMS = "weights.safetensors", "state.pt", "sha256.json"


class Checkpoints:
    """The checkpoints of one run, in ``folder``: one at the end of each epoch, and one every ``every_seconds``.

    Nothing here ends a training that could go on: what cannot be written is warned about, and ``failure`` says why.
    """

    def __init__(self, folder: str | Path, every_seconds: float = 60.0) -> None:
        self._fs, path = file_system(str(folder))
        self._url, self._folder = str(folder).rstrip("/"), path.rstrip("/")
        self._every_seconds = every_seconds
        self._saved = time.monotonic()
        self.failure: str | None = None
        """Why the last checkpoint that failed could not be written."""

    def is_due(self) -> bool:
        """Whether ``every_seconds`` have passed since the last save."""
        return time.monotonic() - self._saved >= self._every_seconds

    def save(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint and remove all but the previous one; where that fails, warn and keep those there are."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        contents = {
            # Serialised in memory, so that a full disk is an OSError of the write.
            WEIGHTS: serialize(separate(weights)),
            STATE: buffer.getvalue(),
        }
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        name = f"step-{step:012}"
        self._saved = time.monotonic()
        try:
            self._discard(name)  # the run was killed after this step and has got here again
            for file, content in contents.items():
                write_atomically(f"{self._url}/{name}/{file}", content)
            write_atomically(f"{self._url}/{name}/{SUMS}", json.dumps(sums))
            for old in self._found()[KEPT:]:
                self._discard(old)
        except Exception as error:  # noqa: BLE001 - the errors of stores have no common base
            with contextlib.suppress(Exception):  # what is half written is no checkpoint, and takes room
                if name not in self._complete():
                    self._discard(name)
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            if self.failure is None:
                warnings.warn(
                    f"no checkpoint could be written to {self._url!r}: {why}. Training goes on; if it is killed, it "
                    "starts again from the last one.",
                    stacklevel=2,
                )
            self.failure = why

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and state of the newest intact checkpoint, on the CPU, or None. Warns about damaged ones."""
        for name in self._complete():
            try:
                contents = {file: self._fs.cat_file(f"{self._folder}/{name}/{file}") for file in (SUMS, WEIGHTS, STATE)}
                sums = parse_json(contents[SUMS])
                for file in (WEIGHTS, STATE):
                    if hashlib.sha256(contents[file]).hexdigest() != sums[file]:
                        raise ValueError(f"{file} does not have the checksum it was written with")
                state = torch.load(io.BytesIO(contents[STATE]), map_location="cpu", weights_only=True)
                return deserialize(contents[WEIGHTS]), state
            except Exception as error:  # noqa: BLE001 - zip, pickle and format errors have no common base
                folder = f"{self._url}/{name}"
                warnings.warn(f"the checkpoint {folder} is damaged ({error}); the one before it is used.", stacklevel=2)
        return None

    def remove(self) -> None:
        """Remove all checkpoints, once the run has its record; what cannot be removed stays."""
        with contextlib.suppress(Exception):
            if self._fs.exists(self._folder):
                self._fs.rm(self._folder, recursive=True)
        with contextlib.suppress(Exception):  # other runs may have theirs beside it
            self._fs.rmdir(self._folder.rpartition("/")[0])

    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return max((int(name.removeprefix("step-")) for name in self._complete()), default=0)

    def _discard(self, name: str) -> None:
        """Remove a checkpoint, its checksums first: what a kill leaves of it is none."""
        folder = f"{self._folder}/{name}"
        for path in (f"{folder}/{SUMS}", folder):
            if self._fs.exists(path):
                self._fs.rm(path, recursive=path == folder)

    def _found(self) -> list[str]:
        """The names of what there is, complete or not: newest first, and what is not complete last."""
        complete = self._complete()
        return complete + sorted(set(self._steps()) - set(complete))

    def _complete(self) -> list[str]:
        """The names of the checkpoints that have their checksums, newest first."""
        self._fs.invalidate_cache()
        complete = (name for name in self._steps() if self._fs.exists(f"{self._folder}/{name}/{SUMS}"))
        return sorted(complete, reverse=True)

    def _steps(self) -> list[str]:
        return [name for name in names_in(self._fs, self._folder) if name.startswith("step-")]
