"""How a run computes where its plan says ``auto``: each open choice is timed, both ways in turn, off the clock.

What is faster depends on the processor more than on the network: bfloat16 doubles the speed of ResNet-18 on a CPU that
has instructions for it, and halves it on one that does not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.config import Recipe
from bench.device import is_out_of_memory, synchronize
from bench.training.step import create_timed_step, leaving_no_trace

Option = Literal["autocast", "channels_last", "compile"]
OPTIONS: tuple[Option, ...] = ("autocast", "channels_last", "compile")
"""In the order in which they are decided on; compiling, the most expensive to try, comes last."""

GAIN = 1.1
"""A choice must be this many times as fast to be taken; below that, timing on a shared machine proves nothing."""
HOPELESS = 4.0
"""A form that takes this many times as long in the first round is not timed again: each of its steps may take minutes
where a processor has no instructions for it."""
ROUNDS = 3
"""Times that two forms are timed in turn; the best time counts, as disturbances only ever slow a step down."""
BLOCK_SECONDS = 0.1
"""Length of a timed block, unless a single step is longer."""
MIN_TRAINING_SECONDS = 5.0
TUNING_PAYS = 2
"""Trainings that are shorter, or less than this many times as long as tuning, are not tuned: a form that is twice as
fast saves half of the training."""
COMPILE_PAYS = 10
"""Compiling is tried if training is expected to take this many times `COMPILE_SECONDS`."""
COMPILE_SECONDS = 60.0
"""What compiling a training step takes on a CPU: 50 to 65 seconds were measured."""


@dataclass(frozen=True)
class Form:
    """How the network computes: bfloat16 autocast, the memory layout, torch.compile."""

    autocast: bool = False
    channels_last: bool = False
    compile: bool = False

    def __str__(self) -> str:
        precision = "bfloat16" if self.autocast else "float32"
        layout = "channels_last" if self.channels_last else "contiguous"
        return ", ".join([precision, layout, *(["compiled"] if self.compile else [])])


class FormUnavailableError(Exception):
    """The network, or this machine, cannot compute in a form; the message says why."""


@dataclass(frozen=True)
class Tuning:
    """The form that was chosen, images/s of each that was tried, why others failed, and why some were not tried."""

    form: Form
    images_per_s: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a record keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Tuning:
        """What `to_dict` gave."""
        return cls(**stored | {"form": Form(**stored["form"])})


def tune(
    start: Form,
    open_options: Collection[str],
    measure: Callable[[Form], float],
    *,
    training_seconds: Callable[[float], float],
    batch_size: int = 1,
) -> Tuning:
    """Decide on the open options one after the other, each with what was decided before.

    Args:
        start: the form to begin with; named options keep what it says.
        open_options: those of `OPTIONS` that are open.
        measure: seconds that an image takes in a form, in one short block; raises `FormUnavailableError` where it does
            not work, which is an error only for ``start``.
        training_seconds: what training is expected to take at this many seconds an image.
        batch_size: images of a step, the least that ``measure`` can time.
    """
    best: dict[Form, float] = {}
    failed: dict[str, str] = {}

    def time_once(form: Form) -> None:
        best[form] = min(measure(form), best.get(form, math.inf))

    if not open_options:
        return Tuning(start, reason="every choice was named")
    time_once(start)
    expected = training_seconds(best[start])
    tuning = 2 * ROUNDS * len(open_options) * max(BLOCK_SECONDS, best[start] * batch_size)
    if expected < max(MIN_TRAINING_SECONDS, TUNING_PAYS * tuning):
        return Tuning(start, reason=f"training takes about {expected:.1g} seconds: too short to be tuned")
    form, reason = start, ""
    for option in (option for option in OPTIONS if option in open_options):
        if option == "compile" and training_seconds(best[form]) < COMPILE_PAYS * COMPILE_SECONDS:
            reason = f"training takes about {training_seconds(best[form]):.2g} seconds: too short for compiling to pay"
            continue
        other = replace(form, **{option: not getattr(form, option)})
        try:
            for turn in range(ROUNDS):
                for each in (form, other) if turn % 2 else (other, form):
                    time_once(each)
                if best[other] > HOPELESS * best[form]:
                    break
        except FormUnavailableError as error:
            failed[str(other)] = str(error)
        else:
            form = other if best[other] * GAIN < best[form] else form
    return Tuning(form, {str(tried): 1 / seconds for tried, seconds in best.items()}, failed, reason)


class FormTimer:
    """Times training steps of a model in any form, on copies: model and random streams stay as they were.

    A batch that does not fit into memory is halved, for all forms.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, recipe: Recipe, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._model, self._images, self._recipe, self._clock = model, images, recipe, clock
        self._steps: dict[Form, Callable[[], object]] = {}
        self._first: Form | None = None

    def __call__(self, form: Form) -> float:
        """Seconds an image, over one block of steps.

        Raises `FormUnavailableError` where a later form does not work, and whatever it was where the first does not.
        """
        self._first = self._first or form
        with leaving_no_trace(self._model, self._images.device):
            while True:
                try:
                    return self._block(form) / len(self._images)
                except (RuntimeError, MemoryError) as error:
                    if is_out_of_memory(error) and len(self._images) > 1:
                        self._images = self._images[: len(self._images) // 2]
                        self._steps.clear()
                    elif form == self._first:
                        raise
                    else:
                        raise FormUnavailableError(f"{type(error).__name__}: {error}") from error

    def _block(self, form: Form) -> float:
        """Seconds of a step."""
        if form not in self._steps:
            self._steps[form] = self._create(form)
            self._steps[form]()  # what is compiled and allocated only once
        device, count = self._images.device, 0
        synchronize(device)
        begun = self._clock()
        while True:
            self._steps[form]()
            synchronize(device)
            count += 1
            if (seconds := self._clock() - begun) >= BLOCK_SECONDS:
                return seconds / count

    def _create(self, form: Form) -> Callable[[], object]:
        layout = torch.channels_last if form.channels_last else torch.contiguous_format
        network = copy.deepcopy(self._model).to(memory_format=layout)
        images = self._images.contiguous(memory_format=layout)
        compiled: Any = torch.compile(network) if form.compile else network
        return create_timed_step(network, compiled, images, form.autocast, recipe=self._recipe)
