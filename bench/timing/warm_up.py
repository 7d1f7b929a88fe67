"""Steps before the first timed block, until the time of a step has settled."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

from bench.timing.clock import Clock, Step

WARM_UP_SECONDS_GPU = 0.15
"""At least, also where the first steps agree: a GPU's clock takes longer to rise. The gate has the same."""
WINDOW, STABLE_WITHIN = 5, 0.05
"""Settled is when the medians of two consecutive windows of five steps differ by no more than 5%."""
BLOCK_SECONDS = 1e-4
"""Steps shorter than this are warmed up several at a time: the clock's own cost would hide their change."""


@dataclass(frozen=True)
class WarmUp:
    """What came before the first timed block.

    ``first_step_seconds`` is the first step alone, in which libraries are loaded, memory is allocated, kernels are
    chosen or compiled; it counts nowhere. ``steps`` includes it. ``stable`` is whether the time of a step had settled
    before the warm-up's time was over; ``step_seconds`` is what it was at the end.
    """

    first_step_seconds: float
    step_seconds: float
    steps: int
    stable: bool


def warm_up(step: Step, seconds: float, clock: Clock, *, at_least: float = 0.0) -> WarmUp:
    """Step until the time of a step has settled, or for ``seconds`` after the first step, but for ``at_least``."""
    first = clock.time_block(step, 1)
    begun = time.perf_counter()
    times = [clock.time_block(step, 1)]
    steps = 2
    at_once = max(1, math.ceil(BLOCK_SECONDS / max(times[0], 1e-9)))
    while True:
        settled, spent = has_settled(times), time.perf_counter() - begun
        if spent >= at_least and (settled or spent >= seconds):
            return WarmUp(first, statistics.median(times[-WINDOW:]), steps, stable=settled)
        times.append(clock.time_block(step, at_once) / at_once)
        steps += at_once


def has_settled(times: list[float]) -> bool:
    """Whether the medians of the last two windows of five differ by at most 5%.

    Two equal neighbours may be luck; one slow step among five is forgiven.
    """
    if len(times) < 2 * WINDOW:
        return False
    before, latest = statistics.median(times[-2 * WINDOW : -WINDOW]), statistics.median(times[-WINDOW:])
    return abs(latest - before) <= STABLE_WITHIN * before
