"""Throughput of one model: blocks of steps, timed after warm-up, until the interval is narrow or the time is over."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.config import MeasureConfig

WARM_UP_SHARE = 0.2
"""At most this share of the time goes into warming up."""
STABLE_WITHIN = 0.05
MIN_BLOCKS = 3
MIN_BLOCKS_FOR_INTERVAL = 6
"""With fewer blocks even their whole range is no 95% interval of the median."""


@dataclass(frozen=True)
class Throughput:
    """Images per second: the median over blocks, its 95% interval, and the raw times.

    ``block_seconds`` are the lengths of the timed blocks, each of ``steps_per_block`` steps of ``batch_size`` images.
    ``reached_precision`` tells whether the interval became as narrow as asked before the time was over.
    """

    img_per_s: float
    low: float
    high: float
    block_seconds: list[float]
    steps_per_block: int
    batch_size: int
    warm_up_steps: int
    reached_precision: bool

    @property
    def has_interval(self) -> bool:
        """Whether there are blocks enough for ``low`` and ``high`` to be a 95% interval, not just the range."""
        return len(self.block_seconds) >= MIN_BLOCKS_FOR_INTERVAL


def measure_throughput(
    step: Callable[[], object],
    batch_size: int,
    config: MeasureConfig,
    synchronize: Callable[[], None] = lambda: None,
) -> Throughput:
    """Time ``step``, which works on one batch and leaves its result on the device.

    Args:
        step: one step on ``batch_size`` images.
        batch_size: images a step.
        config: precision, seconds and the least length of a block.
        synchronize: waits for the device; called at both ends of a block.
    """
    deadline = time.perf_counter() + config.seconds
    step_seconds, warm_up_steps = _warm_up(step, config.seconds * WARM_UP_SHARE, synchronize)
    steps = max(1, math.ceil(config.block_seconds / step_seconds))
    blocks: list[float] = []
    reached = False
    while len(blocks) < MIN_BLOCKS or (time.perf_counter() < deadline and not reached):
        blocks.append(_time_block(step, steps, synchronize))
        low, high = median_interval(blocks)
        narrow = (high - low) / 2 <= config.precision * statistics.median(blocks)
        reached = narrow and len(blocks) >= MIN_BLOCKS_FOR_INTERVAL
    images = steps * batch_size
    low, high = median_interval(blocks)
    return Throughput(
        img_per_s=images / statistics.median(blocks),
        low=images / high,
        high=images / low,
        block_seconds=blocks,
        steps_per_block=steps,
        batch_size=batch_size,
        warm_up_steps=warm_up_steps,
        reached_precision=reached,
    )


def measure_peak_macs(
    product: Callable[[], object], macs: int, seconds: float, synchronize: Callable[[], None]
) -> float:
    """Multiply-accumulates per second of the machine's own matrix product: the best of the blocks in that time.

    ``product`` does one of ``macs`` multiply-accumulates. It bounds what any network can reach (the roofline).
    """
    measured = measure_throughput(product, 1, MeasureConfig(seconds=seconds, precision=1e-9), synchronize)
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


def _warm_up(step: Callable[[], object], seconds: float, synchronize: Callable[[], None]) -> tuple[float, int]:
    """Step until two steps in a row take the same time within 5%, or for ``seconds``. Returns a step's seconds."""
    deadline = time.perf_counter() + seconds
    previous = _time_block(step, 1, synchronize)
    steps = 1
    while True:
        latest = _time_block(step, 1, synchronize)
        steps += 1
        if abs(latest - previous) <= STABLE_WITHIN * previous or time.perf_counter() > deadline:
            return latest, steps
        previous = latest


def _time_block(step: Callable[[], object], steps: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return time.perf_counter() - start
