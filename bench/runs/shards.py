"""A part of a plan for each of several machines that know nothing of one another: ``--shard I/N``.

Every machine computes the same partition from the plan alone, so that each run belongs to exactly one shard.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.config import RunConfig
from bench.errors import ConfigError

OVERHEAD_SECONDS = 5.0
"""Of a run besides training and measuring: start, data, test, probes."""
MACS_PER_SECOND = 20e9
"""Of a processor's training, roughly: it weighs the overhead against training under a budget in epochs or MACs."""


class Shard(NamedTuple):
    """The ``number``-th, from 1, of ``parts`` of a plan."""

    number: int
    parts: int


def parse_shard(text: str) -> Shard:
    """``2/4`` to the second of four. Raises `ConfigError`."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", text.strip())
    if match is None or (shard := Shard(*map(int, match.groups()))).number > shard.parts:
        raise ConfigError(f"--shard {text!r} is no part of a plan. Write I/N with I from 1 to N: --shard 2/4.")
    return shard


def partition(costs: Sequence[float], count: int) -> list[list[int]]:
    """The positions of the runs with these expected costs, split into ``count`` parts of about equal cost.

    The most expensive goes first, always to the cheapest part so far, and of equals to the part with fewest runs
    (Graham 1969: at most 4/3 of the best possible). Each position is in exactly one part, in the plan's order.
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    totals = [0.0] * count
    for position in sorted(range(len(costs)), key=lambda position: (-costs[position], position)):
        cheapest = min(range(count), key=lambda part: (totals[part], len(parts[part]), part))
        parts[cheapest].append(position)
        totals[cheapest] += costs[position]
    return [sorted(part) for part in parts]


def choose_shard(runs: Sequence[RunConfig], shard: Shard, data_dir: str | Path | None) -> list[RunConfig]:
    """The runs that belong to the shard."""
    from bench.runs.resolve import count_train_images

    images = 0 if runs[0].budget.seconds else count_train_images(runs[0], data_dir)
    of_model = {run.model: run for run in runs}  # their cost does not depend on the seed
    macs = {name: 0 if run.budget.epochs is None else _count_macs(run) for name, run in of_model.items()}
    costs = [expected_seconds(run, macs[run.model], images) for run in runs]
    return [runs[position] for position in partition(costs, shard.parts)[shard.number - 1]]


def expected_seconds(run: RunConfig, macs: int, images: int) -> float:
    """How long a run takes, roughly; ``macs`` are an image's in the forward pass, ``images`` an epoch's."""
    from bench.training.loop import STEP_COST

    if run.budget.seconds is not None:
        training = run.budget.seconds
    elif run.budget.macs is not None:
        training = run.budget.macs / MACS_PER_SECOND
    else:
        training = STEP_COST * macs * images * (run.budget.epochs or 0) / MACS_PER_SECOND
    return OVERHEAD_SECONDS + training + 2 * run.measure.seconds


def _count_macs(run: RunConfig) -> int:
    """Of one image's forward pass; 0 where the network cannot be counted, since its run will fail at once as well."""
    from bench.counting.complexity import count_macs
    from bench.runs.resolve import count_of_run

    return count_of_run(run, lambda model, size: count_macs(model, (3, size, size))) or 0
