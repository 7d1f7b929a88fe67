"""Throughput and latency of one step: timed after warm-up, until the interval is narrow or the time is over.

No network is known here: a step is a function, and who times a training step brings a copy that it may change.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from bench.config import MeasureConfig
from bench.measure.clock import Clock, HostClock, Step
from bench.measure.energy import MIN_SECONDS

WARM_UP_SHARE = 0.2
"""At most this share of the time goes into warming up."""
WINDOW, STABLE_WITHIN = 5, 0.05
"""Warm is when the medians of two windows of so many times, one after the other, differ by no more than this share."""
WARM_UP_BLOCK_SECONDS = 1e-4
"""Steps shorter than this are warmed up several at a time: the clock's own cost would hide their change."""
MIN_BLOCKS = 3
MIN_BLOCKS_FOR_INTERVAL = 6
"""With fewer blocks even their whole range is no 95% interval of the median."""
MIN_LATENCIES, MAX_LATENCIES = 100, 1000
"""Below a hundred samples the 99th percentile is the largest one; above a thousand the record grows, not the answer."""


@dataclass(frozen=True)
class WarmUp:
    """What came before the first timed block.

    ``first_step_seconds`` is the very first step alone, in which libraries are loaded, memory is allocated, kernels
    are chosen or compiled; it is on nobody's clock. ``steps`` counts it too. ``stable`` tells whether the step's time
    had settled before the warm-up's share of the time was over; ``step_seconds`` is what it had settled at.
    """

    first_step_seconds: float
    step_seconds: float
    steps: int
    stable: bool


@dataclass(frozen=True)
class Throughput:
    """Images per second: the median over blocks, its 95% interval, and the raw times.

    ``block_seconds`` are the lengths of the timed blocks, each of ``steps_per_block`` steps of ``batch_size`` images.
    ``reached_precision`` tells whether the interval became as narrow as asked before the time was over.
    ``joules_per_img`` is None where energy was not measured, or for too short a time.
    """

    img_per_s: float
    low: float
    high: float
    block_seconds: list[float]
    steps_per_block: int
    batch_size: int
    warm_up: WarmUp
    reached_precision: bool
    joules_per_img: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether there are blocks enough for ``low`` and ``high`` to be a 95% interval, not just the range."""
        return len(self.block_seconds) >= MIN_BLOCKS_FOR_INTERVAL


@dataclass(frozen=True)
class Latency:
    """Milliseconds from an image to its result: percentiles of single steps, and the raw times in seconds.

    ``p50_low_ms`` and ``p50_high_ms`` are the ends of the median's 95% interval; ``reached_precision`` is about it.
    """

    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p95_ms: float
    p99_ms: float
    seconds: list[float] = field(repr=False)
    warm_up: WarmUp
    reached_precision: bool

    @property
    def has_tail(self) -> bool:
        """Whether there are samples enough for the 99th percentile to be more than the largest one."""
        return len(self.seconds) >= MIN_LATENCIES


@dataclass(frozen=True)
class Sweep:
    """Throughput by batch size, smallest first, and what ended the sweep early, if it was out of memory."""

    measured: list[Throughput]
    out_of_memory: str | None = None

    @property
    def best(self) -> Throughput | None:
        """The batch size with the highest throughput; None where not even the smallest fitted."""
        return max(self.measured, key=lambda each: each.img_per_s, default=None)


def measure_throughput(
    step: Step,
    batch_size: int,
    config: MeasureConfig,
    clock: Clock | None = None,
    read_joules: Callable[[], float] | None = None,
) -> Throughput:
    """Time ``step``, which works on one batch and leaves its result on the device.

    Args:
        step: one step on ``batch_size`` images.
        batch_size: images a step.
        config: precision, seconds and the least length of a block.
        clock: the device's; the host's own if not given.
        read_joules: reads a counter of energy; called before the first block and after the last.
    """
    clock = clock or HostClock()
    warm_up = _warm_up(step, config.seconds * WARM_UP_SHARE, clock)
    steps = max(1, math.ceil(config.block_seconds / max(warm_up.step_seconds, 1e-9)))
    deadline = time.perf_counter() + config.seconds * (1 - WARM_UP_SHARE)
    blocks: list[float] = []
    reached = False
    joules, begun = read_joules() if read_joules else 0.0, time.perf_counter()
    while len(blocks) < MIN_BLOCKS or (time.perf_counter() < deadline and not reached):
        blocks.append(clock.time_block(step, steps))
        reached = len(blocks) >= MIN_BLOCKS_FOR_INTERVAL and _is_narrow(blocks, config.precision)
    images = steps * batch_size
    long_enough = time.perf_counter() - begun >= MIN_SECONDS
    joules_per_img = (read_joules() - joules) / (images * len(blocks)) if read_joules and long_enough else None
    low, high = median_interval(blocks)
    return Throughput(
        img_per_s=images / statistics.median(blocks),
        low=images / high,
        high=images / low,
        block_seconds=blocks,
        steps_per_block=steps,
        batch_size=batch_size,
        warm_up=warm_up,
        reached_precision=reached,
        joules_per_img=joules_per_img,
    )


def measure_latency(step: Step, config: MeasureConfig, clock: Clock | None = None) -> Latency:
    """Time single steps of one image each, the device waited for after every one.

    At least a hundred unless the time is over, then until the median's interval is as narrow as asked, or a thousand.
    """
    clock = clock or HostClock()
    warm_up = _warm_up(step, config.seconds * WARM_UP_SHARE, clock)
    deadline = time.perf_counter() + config.seconds * (1 - WARM_UP_SHARE)
    samples: list[float] = []
    reached = False
    while len(samples) < MIN_BLOCKS or (time.perf_counter() < deadline and not reached):
        samples.append(clock.time_block(step, 1))
        if len(samples) >= MIN_LATENCIES and len(samples) % 10 == 0:  # sorting must not take longer than the steps
            reached = _is_narrow(samples, config.precision)
        if len(samples) == MAX_LATENCIES:
            break
    low, high = median_interval(samples)
    p50, p95, p99 = (1000 * float(value) for value in np.percentile(samples, (50, 95, 99)))
    return Latency(p50, 1000 * low, 1000 * high, p95, p99, samples, warm_up, reached)


def sweep_batch_sizes(
    create_step: Callable[[int], Step],
    batch_sizes: Iterable[int],
    config: MeasureConfig,
    is_out_of_memory: Callable[[Exception], bool],
    clock: Clock | None = None,
    read_joules: Callable[[], float] | None = None,
) -> Sweep:
    """Throughput at each batch size, smallest first, in ``config.seconds`` for each.

    ``create_step`` prepares a step for a batch size. An error that ``is_out_of_memory`` ends the sweep; any other is
    raised.
    """
    measured: list[Throughput] = []
    for batch_size in sorted(set(batch_sizes)):
        try:
            measured.append(measure_throughput(create_step(batch_size), batch_size, config, clock, read_joules))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Sweep(measured, f"batch size {batch_size} does not fit: {str(error).splitlines()[0]}")
    return Sweep(measured)


def measure_peak_macs(product: Step, macs: int, seconds: float, clock: Clock | None = None) -> float:
    """Multiply-accumulates per second of the machine's own matrix product: the best of the blocks in that time.

    ``product`` does one of ``macs`` multiply-accumulates. It bounds what any network can reach (the roofline).
    """
    measured = measure_throughput(product, 1, MeasureConfig(seconds=seconds, precision=1e-9), clock)
    return macs * measured.steps_per_block / min(measured.block_seconds)


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the median from order statistics: no assumption on the distribution (Conover 1999, §3.2).

    Its coverage is at least ``confidence`` from six values on; with fewer it is their range.
    """
    ordered = sorted(values)
    count = len(ordered)
    # The largest rank k such that P(Binomial(count, 1/2) < k) is at most the error allowed on one side.
    rank, below = 0, 0.0
    while rank < count // 2:
        below += math.comb(count, rank) / 2**count
        if below > (1 - confidence) / 2:
            break
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def _is_narrow(values: list[float], precision: float) -> bool:
    low, high = median_interval(values)
    return (high - low) / 2 <= precision * statistics.median(values)


def has_settled(times: list[float]) -> bool:
    """Whether the last times no longer change: the medians of the last two windows of five differ by at most 5%.

    Two equal neighbours may be luck; one slow step among five is forgiven.
    """
    if len(times) < 2 * WINDOW:
        return False
    before, latest = statistics.median(times[-2 * WINDOW : -WINDOW]), statistics.median(times[-WINDOW:])
    return abs(latest - before) <= STABLE_WITHIN * before


def _warm_up(step: Step, seconds: float, clock: Clock) -> WarmUp:
    """Step until the time of a step has settled, or for ``seconds`` after the first step."""
    first = clock.time_block(step, 1)
    deadline = time.perf_counter() + seconds
    times = [clock.time_block(step, 1)]
    steps = 2
    at_once = max(1, math.ceil(WARM_UP_BLOCK_SECONDS / max(times[0], 1e-9)))
    while not (settled := has_settled(times)) and time.perf_counter() < deadline:
        times.append(clock.time_block(step, at_once) / at_once)
        steps += at_once
    return WarmUp(first, statistics.median(times[-WINDOW:]), steps, stable=settled)
