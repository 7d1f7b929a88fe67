"""The choices that a plan leaves at ``auto``: timed once for all seeds of a model, and kept beside the records.

So that seeds can be compared, and a run that goes on after it was killed computes as it began, on whatever machine.
``tuning/MODEL-HASH.json`` in the results folder holds a choice, and the machine that it was timed on; without it the
choice is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from bench.config import Budget, RunConfig
from bench.machine import describe_machine
from bench.recipe import Choice
from bench.records import RunRecord, write_atomically
from bench.runs.determinism import deterministic_algorithms
from bench.runs.resolve import training_defaults
from bench.stores import file_system

if TYPE_CHECKING:
    from torch import nn

    from bench.training.loop import Batches
    from bench.training.tuner import Form, Tuning


class Choices(Protocol):
    """What a configuration says of how to compute."""

    @property
    def device(self) -> str:
        """The resolved device."""

    @property
    def autocast(self) -> Choice:
        """Whether to compute in bfloat16."""

    @property
    def channels_last(self) -> Choice:
        """The memory layout."""

    @property
    def compile(self) -> Choice:
        """Whether to use torch.compile."""


def start_form(config: Choices) -> Form:
    """The form that the plan names; where it leaves that open, the one that the device is known to like."""
    from bench.training.tuner import Form

    defaults = training_defaults(config.device)
    return Form(
        autocast=defaults.autocast if config.autocast == "auto" else config.autocast,
        channels_last=defaults.channels_last if config.channels_last == "auto" else config.channels_last,
        compile=False if config.compile == "auto" else config.compile,
    )


def form_of(record: RunRecord) -> Form:
    """The form that a run was trained in, also of a record from before there was a choice."""
    from bench.training.tuner import Form, Tuning

    if "tuning" in record.environment:
        return Tuning.from_dict(record.environment["tuning"]).form
    return Form(*(bool(record.config.get(name)) for name in ("autocast", "channels_last", "compile")))


def open_choices(config: RunConfig) -> set[str]:
    """The options that the plan leaves at ``auto``."""
    from bench.training.tuner import OPTIONS

    return {name for name in OPTIONS if getattr(config, name) == "auto"}


def tune_run(
    config: RunConfig,
    start: Form,
    open_options: Collection[str],
    model: nn.Module,
    train: Batches,
    macs: int,
    results: str,
    alone: Callable[[], AbstractContextManager[None]],
) -> Tuning:
    """The choice that is kept for this model under this plan, or a new one, which is then kept.

    ``train`` are the training batches, ``macs`` those of one image's forward pass; within ``alone`` no other run is on
    the machine.
    """
    from bench.training.tuner import FormTimer, Tuning, tune

    if not open_options:
        return Tuning(start, reason="every choice was named")
    path = _path(config, results)
    if (kept := _read(path)) is not None:
        return kept
    with alone():
        if (kept := _read(path)) is not None:  # another process has chosen meanwhile
            return kept
        timer = FormTimer(model, next(train.epoch(config.recipe.small_epochs))[0], config.recipe)
        expected = _expectation(config.budget, len(train) * train.batch_size, macs)
        # On a GPU with the algorithms that training uses there: some are slower than others.
        on_gpu = config.device.startswith("cuda")
        with deterministic_algorithms("tune", []) if on_gpu else nullcontext():
            made = tune(start, open_options, timer, training_seconds=expected, batch_size=train.batch_size)
        # On another machine one may have been as fast; the first one's choice holds.
        if (kept := _read(path)) is None:
            machine = describe_machine(config.device)
            write_atomically(path, json.dumps({"tuning": made.to_dict(), "machine": machine}, indent=1))
            kept = made
    return kept


def _path(config: RunConfig, results: str) -> str:
    return f"{results.rstrip('/')}/tuning/{config.model_copy(update={'seed': 0}).run_id}.json"


def _read(path: str) -> Tuning | None:
    from bench.training.tuner import Tuning

    fs, local = file_system(path)
    if not fs.exists(local):
        return None
    return Tuning.from_dict(json.loads(fs.cat_file(local))["tuning"])


def _expectation(budget: Budget, images_per_epoch: int, macs: int) -> Callable[[float], float]:
    """Seconds that the budget will take, from seconds an image."""
    from bench.training.loop import STEP_COST

    if (limit := budget.seconds) is not None:
        return lambda seconds: limit
    images = budget.macs / (STEP_COST * macs) if budget.macs is not None else (budget.epochs or 0) * images_per_epoch
    return lambda seconds: seconds * images
