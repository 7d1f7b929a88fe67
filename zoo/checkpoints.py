"""State dicts out of files, freed of what training programs put around them.

A file may hold the tensors themselves, or a checkpoint: nested dicts with optimizer, epoch and arguments, perhaps with
averaged weights beside the last ones. Files are read without running code: of Python objects only those that hold plain
values are let in.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar

from zoo.info import ZooError

# Where programs keep the weights: averaged ones first, since those are what their authors evaluate.
WRAPPERS = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "weights", "net", "network", "params", "module"),
)
# Entries with tensors that are no network's: never taken for its weights.
TRAINING_STATE = re.compile(r"optim|sched|scaler|rng|callback|loop", re.IGNORECASE)
# Components that wrappers add to parameters' names: data-parallel training, compilation, sharding, checkpointing.
WRAPPER_COMPONENTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What averaging (`torch.optim.swa_utils.AveragedModel`) and the profiler thop leave beside the weights.
BOOKKEEPING = frozenset({"n_averaged", "total_ops", "total_params"})
LISTED = 8
"""Names that a message lists of each kind."""


@dataclass(frozen=True)
class Checkpoint:
    """The state dict of a file.

    ``wrappers`` are the keys under which it was found, the outermost first. ``ordered`` says whether its order is that
    in which the network's author defined the layers; ``.safetensors`` files are sorted by name. ``metadata`` is what
    such a file says besides. ``notes`` are sentences for the user.
    """

    source: str
    tensors: dict[str, torch.Tensor]
    wrappers: tuple[str, ...] = ()
    ordered: bool = True
    metadata: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as safetensors takes them: contiguous, and none in the memory of another.

    Where a network has a layer under two names, both have their copy.
    """
    result: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        place = own.untyped_storage().data_ptr()
        result[name] = own.clone() if place in places else own
        places.add(place)
    return result


def read_checkpoint(path: Path) -> Checkpoint:
    """The state dict in a ``.safetensors`` file or one of `torch.save`, whatever it is wrapped in.

    Raises `ZooError` if the file is missing or damaged, holds no state dict, or cannot be read without running code.
    """
    if not path.is_file():
        raise ZooError(f"there is no file {str(path)!r} to load weights from.")
    content: Any
    metadata: Mapping[str, str] | None = None
    ordered = path.suffix != ".safetensors"
    try:
        if ordered:
            with torch.serialization.safe_globals(list(_plain_objects())):
                content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except Exception as error:  # noqa: BLE001 - zip, pickle and format errors have no common base
        raise ZooError(_unreadable(path, error)) from None
    state, wrappers, notes = _unwrap(content, path)
    if state and all(re.fullmatch(r"\d+", name.rpartition(".")[2]) for name in state):
        raise ZooError(f"{str(path)!r} holds tensors without names of parameters; expected a network's state dict.")
    return Checkpoint(str(path), state, wrappers, ordered, metadata, notes)


def _unwrap(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...], tuple[str, ...]]:
    """The innermost dict of tensors, the keys that lead to it, and notes on what was passed over."""
    wrappers: list[str] = []
    notes: list[str] = []
    while isinstance(content, Mapping):
        known = [key for key in WRAPPERS if _holds_tensors(content.get(key))]
        if not known and not _tensors_of(content):
            # A wrapper of a name that we have not seen is clear enough where it is the only one.
            known = [key for key, value in content.items() if _holds_tensors(value) and not TRAINING_STATE.search(key)]
            if len(known) > 1:
                raise ZooError(
                    f"{str(path)!r} holds several networks: {', '.join(map(repr, known[:LISTED]))}. "
                    "Save the state dict of one of them in a file of its own."
                )
        if not known:
            break
        if len(known) > 1:
            others = ", ".join(map(repr, known[1:]))
            notes.append(f"the file holds several sets of weights; {known[0]!r} was taken, not {others}")
        wrappers.append(known[0])
        content = content[known[0]]
    state = _tensors_of(content)
    if not state:
        found = (
            f"a dict of {', '.join(map(str, list(content)[:LISTED]))}"
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise ZooError(f"{str(path)!r} holds no state dict: expected names with tensors, found {found}.")
    return state, tuple(wrappers), tuple(notes)


def _tensors_of(content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def _holds_tensors(content: Any) -> bool:
    if not isinstance(content, Mapping):
        return False
    nested = (value for key, value in content.items() if isinstance(key, str) and not TRAINING_STATE.search(key))
    return bool(_tensors_of(content)) or any(_holds_tensors(value) for value in nested)


def _plain_objects() -> Iterator[Any]:
    """Classes that hold plain values and run no code when they are read; training scripts store them beside weights."""
    yield argparse.Namespace
    yield from ((kind, f"pathlib.{kind.__name__}") for kind in (pathlib.PosixPath, pathlib.PurePosixPath))
    # A best accuracy is often a numpy scalar; the module was renamed with numpy 2.
    yield from ((scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core"))
    yield np.dtype
    yield from {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}


def _unreadable(path: Path, error: Exception) -> str:
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"{str(path)!r} holds a Python object of {refused[1]}, which is refused because loading it could run code. "
            "In a program that has this class, save the state dict alone: torch.save(model.state_dict(), …)."
        )
    if "TorchScript" in str(error):
        return (
            f"{str(path)!r} is a TorchScript archive, a program rather than weights. "
            "Save its state dict: torch.save(torch.jit.load(…).state_dict(), …)."
        )
    return (
        f"{str(path)!r} cannot be read as weights ({type(error).__name__}). Expected a state dict of tensors, saved by "
        "torch.save or as .safetensors; the file is damaged, incomplete or of another format."
    )
