"""What a plan is expected to take on a GPU, before any of it has been measured there: arithmetic, and guesses named so.

The rates are guesses for one H100 with bfloat16: 15% of its peak in multiply-adds, 70% of its memory's rate, and 8 µs
for Python to launch a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.config import Plan, RunConfig
from bench.events import Event, PlanBegins

if TYPE_CHECKING:
    from torch import nn

FLOPS_PER_SECOND, BYTES_PER_SECOND, LAUNCH_SECONDS = 150e12, 2.3e12, 8e-6
PASSES = 18
"""Over each convolution's outputs, of two bytes an element: norm and activation, forward and backward."""
KERNELS_A_LAYER, KERNELS_A_PARAMETER, KERNELS_A_STEP = 3, 2, 60


class Cost(NamedTuple):
    """Seconds that some steps of training take to compute, to move bytes, and to launch kernels."""

    compute: float
    bytes: float
    launches: float

    @property
    def seconds(self) -> float:
        """The kernels' time, or that of launching them where it is longer."""
        return max(self.compute + self.bytes, self.launches)


def step_cost(model: nn.Module, input_size: int, batch_size: int) -> Cost:
    """Of one step of training a network, which may be on the meta device."""
    from bench.counting.complexity import count_complexity
    from bench.training.loop import STEP_COST

    counts = count_complexity(model, (1, 3, input_size, input_size))
    layers = sum(not any(module.children()) for module in model.modules())
    parameters = sum(1 for _ in model.parameters())
    return Cost(
        compute=batch_size * STEP_COST * counts.macs * 2 / FLOPS_PER_SECOND,
        bytes=batch_size * PASSES * counts.activations * 2 / BYTES_PER_SECOND,
        launches=(KERNELS_A_LAYER * layers + KERNELS_A_PARAMETER * parameters + KERNELS_A_STEP) * LAUNCH_SECONDS,
    )


class Expectation:
    """Before the first of a plan's runs on a GPU, says what they are expected to take and what others publish."""

    def __init__(self, plan: Plan, data_dir: str | Path | None, say: Callable[[str], None]) -> None:
        self._plan, self._data_dir, self._say = plan.gpu or plan, data_dir, say

    def on(self, event: Event) -> None:
        """See `bench.events.Observer`."""
        if isinstance(event, PlanBegins):
            done = {record.run_id for record in event.done}
            left = [run for run in event.runs if run.device.startswith("cuda") and run.run_id not in done]
            for line in describe(left, self._plan, self._data_dir) if left else ():
                self._say(line)


def describe(runs: Sequence[RunConfig], plan: Plan, data_dir: str | Path | None) -> Iterator[str]:
    """A line for all runs and one for each network, each marked as not measured."""
    from bench.runs.resolve import count_train_images

    steps = count_train_images(runs[0], data_dir) // runs[0].recipe.batch_size
    first = {run.model: run for run in reversed(runs)}
    seconds = {model: _training_seconds(run, steps) for model, run in first.items()}
    known = [each for run in runs if (each := seconds[run.model]) is not None]
    yield (
        f"expected, NOT YET MEASURED: {sum(known) / 60:.1f} minutes of training for {len(known)} runs on one H100, by "
        "arithmetic of MACs, bytes and launches"
    )
    for model in reversed(first):
        took = seconds[model]
        words = "a time that cannot be told" if took is None else f"{took / 60:.1f} minutes a run"
        published = plan.published_top1.get(model)
        yield f"  {model}: {words}" + (f", and {published} top-1, as others publish" if published else "")


def _training_seconds(run: RunConfig, steps: int) -> float | None:
    """None where the network cannot be counted: its run says why."""
    from bench.runs.resolve import count_of_run

    if run.budget.seconds is not None:
        return run.budget.seconds
    cost = count_of_run(run, lambda model, size: step_cost(model, size, run.recipe.batch_size))
    if cost is None:
        return None
    if run.budget.macs is not None:
        return run.budget.macs * 2 / FLOPS_PER_SECOND * cost.seconds / cost.compute
    return (run.budget.epochs or 0) * steps * cost.seconds
