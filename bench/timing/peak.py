"""The machine's peak: the fastest of several dense operations, as a bound on what a network can reach (the roofline).

One matrix product is no such bound: libraries reach twice its rate with a 3×3 convolution on some processors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timing.clock import Clock, Step
from bench.timing.setting import Setting

FORM_SECONDS = 0.1
"""For each form, and at least `MIN_BLOCKS`, after two steps that warm up."""
MIN_BLOCKS, BLOCK_SECONDS = 2, 0.01
LEAST_STEPS = 2 + MIN_BLOCKS
SIDES, SIDES_CUDA = (512, 1024, 2048), (2048, 4096, 8192)
"""Of the matrices."""
MAX_STEP_SECONDS = 1.0
"""Forms that would take longer at the best rate so far are left out: a processor that has no instructions for a type
computes in it a hundred times more slowly."""
CHANNELS, MAP_SIDE = (256, 512), 28
BATCH_SIZE, BATCH_SIZE_CUDA = 8, 64
"""Of the convolutions."""


class Form(NamedTuple):
    """An operation: what it is, its multiply-accumulates, and a step of it."""

    name: str
    macs: int
    step: Step


class Peak(NamedTuple):
    """Multiply-accumulates per second of each form, by name."""

    by_form: dict[str, float]

    @property
    def form(self) -> str:
        """The fastest form."""
        return max(self.by_form, key=self.by_form.__getitem__)

    @property
    def macs_per_s(self) -> float:
        """What the fastest form reached."""
        return self.by_form[self.form]


def measure_peak(setting: Setting, clock: Clock, seconds: float = math.inf) -> Peak:
    """Time each form in the setting's layout and in the type that it multiplies; of each its fastest block counts.

    Forms that would take more than ``seconds`` each are left out, so that a short measurement stays short.
    """
    rates: dict[str, float] = {}
    limit = min(MAX_STEP_SECONDS, seconds / LEAST_STEPS)
    with setting.inference():
        for form in create_forms(setting):
            if not rates or form.macs / max(rates.values()) <= limit:
                rates[form.name] = form.macs / _fastest(form.step, clock)
    return Peak(rates)


def create_forms(setting: Setting) -> Iterator[Form]:
    """Matrix products of several sizes, and 1×1 and 3×3 convolutions; one at a time, for the memory that they take."""
    on_cuda = setting.device.type == "cuda"
    for side in SIDES_CUDA if on_cuda else SIDES:
        left, right = (_operand(setting, side, side) for _ in range(2))
        yield Form(f"matrix product, {side}×{side}", side**3, partial(torch.matmul, left, right))
    batch_size = BATCH_SIZE_CUDA if on_cuda else BATCH_SIZE
    for channels in CHANNELS:
        images = _operand(setting, batch_size, channels, MAP_SIDE, MAP_SIDE)
        for kernel in (1, 3):
            weight = _operand(setting, channels, channels, kernel, kernel)
            convolution = partial(F.conv2d, images, weight, padding=kernel // 2)
            name = f"{kernel}×{kernel} convolution, {channels} channels"
            yield Form(name, images.numel() * channels * kernel**2, convolution)


def _operand(setting: Setting, *shape: int) -> Tensor:
    """In the type that is multiplied: under autocast the cast of float32 would count as well."""
    operand = torch.randn(shape, device=setting.device).to(setting.multiplied_dtype)
    return operand.to(memory_format=setting.memory_format) if len(shape) == 4 else operand


def _fastest(step: Step, clock: Clock) -> float:
    """Seconds of a step in the fastest block."""
    clock.time_block(step, 1)
    deadline = time.perf_counter() + FORM_SECONDS
    steps = max(1, math.ceil(BLOCK_SECONDS / max(clock.time_block(step, 1), 1e-9)))
    blocks: list[float] = []
    while len(blocks) < MIN_BLOCKS or time.perf_counter() < deadline:
        blocks.append(clock.time_block(step, steps) / steps)
    return min(blocks)
