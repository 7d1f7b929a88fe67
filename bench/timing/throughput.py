"""Throughput and latency of one step, timed in several repeats.

No network is known here: a step is a function, and a `Meter` asks for a new one in every repeat.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bench.config import MeasureConfig
from bench.timing.clock import Clock, HostClock, Step
from bench.timing.energy import MIN_SECONDS
from bench.timing.repeats import MIN_REPEATS, half_width, median_interval, median_of_repeats, repeats_interval
from bench.timing.warm_up import WarmUp, warm_up

WARM_UP_SHARE = 0.2
"""At most this share of a repeat's time goes into warming up."""
MIN_BLOCKS_FOR_INTERVAL = 6
"""With fewer blocks even their whole range is no 95% interval of the median."""
MIN_LATENCIES, MAX_LATENCIES = 100, 1000
"""Below a hundred samples the 99th percentile is the largest one; above a thousand only the record grows."""
MAX_PADDING_BYTES = 2**22
"""Memory held while a repeat's step is created: no two repeats have the same addresses, which alone changes speed."""

CreateStep = Callable[[], Step]
"""Prepares a step, with memory of its own."""


class Meter:
    """Measures one quantity, a repeat at a time, so that others can be measured in between.

    In a repeat a new step is created and warmed up; then blocks of it are timed until their median is known to
    ``config.precision`` or the repeat's share of ``seconds`` is over. How many repeats there are never depends on the
    times found, else they would agree by selection; only where the time is over are there fewer, but at least three.

    Args:
        create_step: called once in a repeat.
        config: precision, number of repeats and the least length of a block.
        seconds: for all repeats together.
        clock: the device's; the host's own if not given.
        read_joules: reads a counter of energy; called before the first block of a repeat and after the last.
        steps_per_block: left open, as many as fill a block.
        samples: the least and the largest number of blocks in all; the time limit goes before the least.
        least_warm_up: seconds of warm-up in each repeat, even if the step's time has settled.
    """

    def __init__(
        self,
        create_step: CreateStep,
        config: MeasureConfig,
        seconds: float,
        clock: Clock | None = None,
        *,
        read_joules: Callable[[], float] | None = None,
        steps_per_block: int | None = None,
        samples: tuple[int, int | None] = (1, None),
        least_warm_up: float = 0.0,
    ) -> None:
        self._create_step, self._config, self.clock = create_step, config, clock or HostClock()
        self._seconds, self._spent = seconds, 0.0
        self._read_joules = read_joules
        self._least = math.ceil(samples[0] / config.repeats)
        self._most = math.inf if samples[1] is None else samples[1] // config.repeats
        self._least_warm_up = least_warm_up
        self._random = random.Random(0)  # noqa: S311 - sizes of padding
        self.steps_per_block = steps_per_block
        self.repeats: list[list[float]] = []
        self.warm_ups: list[WarmUp] = []
        self.joules, self.joules_seconds = 0.0, 0.0

    @property
    def done(self) -> bool:
        """Whether all repeats are measured, or three of them and the time is over."""
        return len(self.repeats) >= self._config.repeats or (
            len(self.repeats) >= MIN_REPEATS and self._spent >= self._seconds
        )

    def repeat(self) -> None:
        """Measure one repeat."""
        padding = bytearray(self._random.randrange(MAX_PADDING_BYTES))
        step = self._create_step()
        del padding
        begun = time.perf_counter()
        share = self._seconds / self._config.repeats
        warmed = warm_up(step, share * WARM_UP_SHARE, self.clock, at_least=self._least_warm_up)
        if self.steps_per_block is None:
            self.steps_per_block = max(1, math.ceil(self._config.block_seconds / max(warmed.step_seconds, 1e-9)))
        deadline = time.perf_counter() + share * (1 - WARM_UP_SHARE)
        blocks: list[float] = []
        joules, first_block = self._read_joules() if self._read_joules else 0.0, time.perf_counter()
        while not blocks or (time.perf_counter() < deadline and not self._suffice(blocks)):
            blocks.append(self.clock.time_block(step, self.steps_per_block))
        if self._read_joules:
            self.joules += self._read_joules() - joules
            self.joules_seconds += time.perf_counter() - first_block
        self.repeats.append(blocks)
        self.warm_ups.append(warmed)
        self._spent += time.perf_counter() - begun

    def _suffice(self, blocks: list[float]) -> bool:
        if len(blocks) >= self._most:
            return True
        if self._read_joules or len(blocks) < max(self._least, MIN_BLOCKS_FOR_INTERVAL):
            return False  # a counter of energy needs all the time that there is
        # Sorting must not take longer than the steps.
        return (len(blocks) < 20 or len(blocks) % 10 == 0) and is_precise(blocks, self._config.precision)


def is_precise(blocks: list[float], precision: float) -> bool:
    """Whether the median of one repeat's blocks is known: only says when to stop, never how precise the result is."""
    low, high = median_interval(blocks)
    return (high - low) / 2 <= precision * statistics.median(blocks)


@dataclass(frozen=True)
class Throughput:
    """Images per second: the median over repeats, its 95% interval, and the raw times.

    ``block_seconds`` has a list a repeat, with the lengths of its timed blocks; each is of ``steps_per_block`` steps of
    ``batch_size`` images. ``warm_up`` is the first repeat's. ``joules_per_img`` is None where energy was not measured,
    or for too short a time.
    """

    batch_size: int
    block_seconds: list[list[float]]
    steps_per_block: int
    warm_up: WarmUp
    precision: float
    joules_per_img: float | None = None

    @property
    def img_per_s(self) -> float:
        """By the median of the repeats' medians."""
        return self._images / median_of_repeats(self.block_seconds)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95% interval of images per second."""
        low, high = repeats_interval(self.block_seconds)
        return self._images / high, self._images / low

    @property
    def half_width(self) -> float:
        """Half the interval as a share of its centre."""
        return half_width(*self.interval)

    @property
    def reached_precision(self) -> bool:
        """Whether the interval is as narrow as asked."""
        return self.half_width <= self.precision

    @property
    def _images(self) -> int:
        return self.steps_per_block * self.batch_size

    @classmethod
    def of(cls, meter: Meter, batch_size: int, precision: float) -> Throughput:
        """What a meter has measured of a step that works on ``batch_size`` images. It must have two repeats."""
        assert meter.steps_per_block is not None, "nothing was measured"
        images = meter.steps_per_block * batch_size * sum(map(len, meter.repeats))
        long_enough = meter.joules_seconds >= MIN_SECONDS
        joules = meter.joules / images if long_enough else None
        return cls(batch_size, meter.repeats, meter.steps_per_block, meter.warm_ups[0], precision, joules)


@dataclass(frozen=True)
class Latency:
    """Milliseconds from an image to its result: percentiles of single steps, and the raw times in seconds a repeat."""

    seconds: list[list[float]] = field(repr=False)
    precision: float

    @property
    def p50_ms(self) -> float:
        """The median of the repeats' medians."""
        return 1000 * median_of_repeats(self.seconds)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The ends of the median's 95% interval, in milliseconds."""
        low, high = repeats_interval(self.seconds)
        return 1000 * low, 1000 * high

    @property
    def half_width(self) -> float:
        """Half the median's interval as a share of its centre."""
        return half_width(*self.interval)

    @property
    def reached_precision(self) -> bool:
        """Whether the median's interval is as narrow as asked."""
        return self.half_width <= self.precision

    def percentile_ms(self, percentile: int) -> float | None:
        """Of all samples together; None where there are too few for it to be more than the largest one."""
        samples = [value for repeat in self.seconds for value in repeat]
        if len(samples) * (100 - percentile) < 100:
            return None
        return 1000 * float(np.percentile(samples, percentile))


def measure_throughput(step: Step, batch_size: int, config: MeasureConfig, clock: Clock | None = None) -> Throughput:
    """Time ``step``, which works on one batch and leaves its result on the device, in repeats one after the other."""
    meter = Meter(lambda: step, config, config.seconds, clock)
    while not meter.done:
        meter.repeat()
    return Throughput.of(meter, batch_size, config.precision)
