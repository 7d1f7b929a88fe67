"""How well training scales: images/s of all ranks together, over what as many single devices would give."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.config import RunConfig
from bench.device import is_out_of_memory, synchronize
from bench.disturbance import cgroup_quota, usable_cores
from bench.records import Flag
from bench.runs.job_description import Job

if TYPE_CHECKING:
    from torch import nn

    from bench.training.distributed import Ranks
    from bench.training.loop import Batches
    from bench.training.tuner import Form

REPEATS = 5
"""Blocks of each, in turns, so that both meet the machine in the same state; the median ratio counts."""
PHASE = "measure_scaling"

Measured = tuple[dict[str, Any], dict[str, list[list[float]]], list[Flag]]


def measure_scaling(
    model: nn.Module, train: Batches, config: RunConfig, job: Job, form: Form, ranks: Ranks
) -> Measured:
    """Metrics, samples and flags of training steps on the run's own batch, by the first rank alone and by all in turns.

    ``scaling_efficiency`` is images/s of N ranks over N times those of one: strong scaling, as the batch stays the
    same. Where it would say nothing, or one device cannot hold the batch, a flag says why it is left out. Called by
    all ranks; the results are the first one's.
    """
    from bench.timing.contention import TRAINING_LIMIT, Contention

    reason = _shares_cores(config.nproc // job.nodes, config.threads) if config.device == "cpu" else ""
    if reasons := [each for each in ranks.gather(reason) if each]:
        return {}, {}, [Flag(kind="shared_cores", phase=PHASE, message=reasons[0])]
    images = next(train.epoch(config.recipe.small_epochs))[0]
    together = _create_step(model, images, config, form, ranks)
    together()
    alone, count = None, 1
    if ranks.rank == 0:
        alone = _create_fitting_step(model, images, config, form)
        if alone is not None:
            count = max(1, math.ceil(config.measure.block_seconds / _time(alone, 1, images.device)))
    fits, count = map(int, ranks.first([alone is not None, count]))
    if not fits:
        message = f"scaling is not reported: one device cannot hold a batch of {len(images)} images"
        return {}, {}, [Flag(kind="out_of_memory", phase=PHASE, message=message)]
    blocks: list[list[float]] = [[], []]
    with Contention() as contention:
        for _ in range(REPEATS):
            if alone is not None:
                blocks[0].append(_time(alone, count, images.device))
            ranks.any(False)  # the others wait
            blocks[1].append(_time(together, count, images.device))
    if alone is None:
        return {}, {}, []
    one, all_of_them = (len(images) / statistics.median(each) for each in blocks)
    ratio = statistics.median(single / shared for single, shared in zip(*blocks, strict=True))
    metrics = {
        "scaling_one_img_per_s": one,
        "scaling_img_per_s": all_of_them,
        "scaling_efficiency": ratio / ranks.size,
    }
    flags = contention.flags(PHASE, TRAINING_LIMIT, f"above {TRAINING_LIMIT:.0%}")
    return metrics, {"scaling_step_seconds": blocks}, flags


def _shares_cores(processes: int, threads: int) -> str:
    """Why processes on this CPU cannot be compared with one; empty where each has cores of its own."""
    cores = int(min(len(usable_cores()), cgroup_quota()))
    if processes * threads <= cores:
        return ""
    return (
        f"scaling is not reported: {processes} processes of {threads} threads share {cores} cores, so that one process "
        "alone would have more of them than each of several"
    )


def _create_step(
    model: nn.Module, images: Any, config: RunConfig, form: Form, ranks: Ranks | None = None
) -> Callable[[], object]:
    """A step on a copy of the model: of this process alone, or of all ranks, each on its slice of the images."""
    import torch

    from bench.training.distributed import ALONE
    from bench.training.step import create_timed_step

    network = copy.deepcopy(model)
    compiled: Any = torch.compile(network) if form.compile else network
    return create_timed_step(network, compiled, images, form.autocast, recipe=config.recipe, ranks=ranks or ALONE)


def _create_fitting_step(model: nn.Module, images: Any, config: RunConfig, form: Form) -> Callable[[], object] | None:
    """A step of one process, warmed up; None where the batch does not fit."""
    try:
        step = _create_step(model, images, config, form)
        step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return step


def _time(step: Callable[[], object], count: int, device: Any) -> float:
    """Seconds a step."""
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - begun) / count
