"""One network of somebody's own, in this process: kept as a baseline, compared with one, or with another network.

What `bench.pytest_plugin` does for a test. The rounds, the statistics, the gates and the baselines are those of
`zoobench compare`; only where the networks live differs.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.baselines import Baseline, Counts, Figure, Task, UnlikeBaselineError
from bench.environment import describe_commit
from bench.errors import UserError
from bench.measure.compare import CompareOptions, Comparison, ModelResult, compare_environments, result_of
from bench.measure.duet import Lane, Setting
from bench.measure.gates import find_differences
from bench.measure.local import Build, duet_opener, local_worker
from bench.measure.past import REFERENCE_PROGRAM
from bench.measure.reference import REFERENCE
from bench.measure.relative import INSIDE_SPREAD, PastJury, PatientJury
from bench.measure.rounds import Contest, Timing, measure_rounds
from bench.measure.sessions import (
    changed_detail,
    check_reference,
    create_baseline,
    create_figure,
    describe_session,
    figures_beside,
    find_count_differences,
    notes_on,
    side_of,
)
from bench.measure.sides import Side
from bench.measure.verdicts import Jury

if TYPE_CHECKING:
    from torch import nn

    Model = nn.Module | Callable[[], nn.Module] | str

PROCESS = "the tests'"


@dataclass(frozen=True)
class Work:
    """What is timed: so many images of ``in_chans × input_size × input_size`` a step.

    ``device`` None is where the network is; ``num_classes`` is for models that are named; ``threads`` are torch's.
    """

    input_size: int = 32
    batch_size: int = 64
    mode: Literal["infer", "train"] = "infer"
    in_chans: int = 3
    num_classes: int = 10
    device: str | None = None
    threads: int = 1
    channels_last: bool = False


@dataclass(frozen=True)
class Subject:
    """A network that can be built again and again: its counts, and the setting that it is timed in."""

    name: str
    build: Build
    counts: Counts
    setting: Setting
    work: Work

    @property
    def task(self) -> Task:
        """As a baseline keeps it."""
        of = self.setting
        return Task(mode=of.mode, input_size=of.input_size, num_classes=of.num_classes, in_chans=of.in_chans)

    def lane(self) -> Lane:
        """The network's; its name is that of its builder."""
        return Lane(sys.executable, None, self.name, channels_last=self.work.channels_last)


def create_subject(model: Model, work: Work, name: str) -> Subject:
    """Count a network and find out where it runs.

    Args:
        model: a network, of which copies are timed; something that returns one when it is called; or a name of the
            zoo's.
        work: what is timed.
        name: what it is called.

    Raises:
        UserError: a ``model`` that is none of these, or cannot take such images.
    """
    from bench.measure.complexity import count_complexity

    build = _builder(model, work, name)
    network = build()
    try:
        counted = count_complexity(network, (work.in_chans, work.input_size, work.input_size))
    except ValueError as error:
        raise UserError(f"{error}. Give input_size and in_chans as the network takes them.") from error
    counts = Counts.of(dataclasses.asdict(counted))
    parameter = next(network.parameters(), None)
    device = work.device or (str(parameter.device) if parameter is not None else "cpu")
    setting = Setting(
        device=device,
        threads=work.threads,
        mode=work.mode,
        input_size=work.input_size,
        num_classes=counts.output_shape[0] if counts.output_shape else work.num_classes,
        in_chans=work.in_chans,
    )
    return Subject(name, build, counts, setting, work)


def measure_subject(subject: Subject, name: str, root: Path, budget_seconds: float) -> Baseline:
    """A baseline of one figure, of the same name; ``root`` is the checkout whose commit it names.

    Raises `UserError` if the network cannot be timed.
    """
    with local_worker({name: subject.build}, subject.setting.device, subject.setting.threads) as (worker, environment):
        (timing,) = measure_rounds(
            [_beside_reference(dataclasses.replace(subject, name=name))],
            subject.setting,
            budget_seconds=budget_seconds,
            tolerance=1.0,
            jury=PatientJury(),
            open_duet=duet_opener(worker),
        )
    if timing.failure is not None or not timing.pairs:
        why = timing.failure or "no pair fitted into the budget: raise budget"
        raise UserError(f"{subject.name} cannot be timed: {why}")
    described = describe_commit(root)
    commit = described["commit"] + "+" * described["dirty"] if described is not None else ""
    figures = {name: create_figure(timing, subject.counts)}
    return create_baseline(name, "pytest", commit, subject.task, describe_session(environment, PROCESS), figures)


def check_subject(subject: Subject, baseline: Baseline, tolerance: float, budget_seconds: float) -> Comparison:
    """Compare a network with the figure of a baseline that has the baseline's name.

    Raises:
        UnlikeBaselineError: the baseline has no such figure, timed other work, or beside another reference workload.
    """
    figure = _figure_of(baseline, subject)
    setting = subject.setting
    options = CompareOptions((baseline.name,), setting, budget_seconds, subject.work.batch_size, tolerance)
    with local_worker({baseline.name: subject.build}, setting.device, setting.threads) as (worker, described):
        environment = describe_session(described, PROCESS)
        differing = compare_environments(baseline.environment, environment)
        changed = find_count_differences(figure, subject.counts)
        timings: list[Timing] = []
        if not differing and not changed:
            timings = measure_rounds(
                [_beside_reference(dataclasses.replace(subject, name=baseline.name))],
                setting,
                budget_seconds=budget_seconds,
                tolerance=tolerance,
                jury=PastJury(
                    {baseline.name: figure.witnesses(setting.has_cpu_witness)}, tolerance, session_spread=INSIDE_SPREAD
                ),
                open_duet=duet_opener(worker),
            )
    results = [
        dataclasses.replace(result_of(timing, ()), figures=figures_beside(figure, timing.pairs)) for timing in timings
    ]
    if changed and not differing:
        results = [ModelResult(baseline.name, "changed", changed_detail(baseline), changed)]
    return Comparison(
        base=side_of(baseline),
        head=Side(subject.name, sys.executable, None),
        options=options,
        environments=(baseline.environment, environment),
        environment_differences=differing,
        forced=False,
        results=tuple(results),
        notes=tuple(notes_on(baseline, [pair for timing in timings for pair in timing.pairs])),
    )


def compare_subjects(base: Subject, head: Subject, tolerance: float, budget_seconds: float) -> Comparison:
    """Compare two networks now; where their counts differ, that is told and the timing decides."""
    setting = head.setting
    lanes = (dataclasses.replace(base, name="base").lane(), dataclasses.replace(head, name="head").lane())
    builders = {"base": base.build, "head": head.build}
    name = f"{base.name} → {head.name}"
    with local_worker(builders, setting.device, setting.threads) as (worker, described):
        environment = describe_session(described, PROCESS)
        (timing,) = measure_rounds(
            [Contest(name, lanes, head.work.batch_size)],
            setting,
            budget_seconds=budget_seconds,
            tolerance=tolerance,
            jury=Jury(1, tolerance),
            open_duet=duet_opener(worker),
        )
    differences = find_differences(base.counts.model_dump(), head.counts.model_dump())
    sides = [Side(each.name, sys.executable, None) for each in (base, head)]
    options = CompareOptions((name,), setting, budget_seconds, head.work.batch_size, tolerance)
    return Comparison(
        base=sides[0],
        head=sides[1],
        options=options,
        environments=(environment, environment),
        environment_differences=(),
        forced=False,
        results=(result_of(timing, differences),),
    )


def _builder(model: Model, work: Work, name: str) -> Build:
    from torch import nn

    if isinstance(model, str):
        named = model

        def create() -> nn.Module:
            from zoo import create_model

            options: Mapping[str, Any] = {"in_chans": work.in_chans} if work.in_chans != 3 else {}
            return create_model(named, num_classes=work.num_classes, input_size=work.input_size, **options)

        return create
    if isinstance(model, nn.Module):
        network = model
        return lambda: copy.deepcopy(network)
    if callable(model):
        made = model()
        if isinstance(made, nn.Module):
            return model
        raise UserError(f"{name} gives {type(made).__name__} when it is called: expected a torch.nn.Module.")
    raise UserError(
        f"{model!r} is no model: expected a torch.nn.Module, something that returns one when it is called (a class, "
        "a function), or the name of a model, as 'resnet18'."
    )


def _beside_reference(subject: Subject) -> Contest:
    reference = Lane(sys.executable, None, REFERENCE, program=str(REFERENCE_PROGRAM))
    return Contest(subject.name, (reference, subject.lane()), subject.work.batch_size)


def _figure_of(baseline: Baseline, subject: Subject) -> Figure:
    check_reference(baseline)
    figure = baseline.figures.get(baseline.name)
    if figure is None:
        raise UnlikeBaselineError(
            f"{baseline.title} holds {', '.join(baseline.figures) or 'nothing'}, and no figure of its own name: it was "
            "not saved by a test. Choose another name for the test's."
        )
    # How many classes there are, the exact gates compare.
    then = baseline.task.model_copy(update={"num_classes": subject.task.num_classes})
    was, wanted = (_told(then, figure.batch_size), _told(subject.task, subject.work.batch_size))
    if was != wanted:
        raise UnlikeBaselineError(
            f"{baseline.title} timed {was}, and the test asks for {wanted}: not the same work. Save the "
            "baseline anew, if this is meant: pytest --throughput-save"
        )
    return figure


def _told(task: Task, batch_size: int | None) -> str:
    return f"mode {task.mode}, {batch_size} images of {task.in_chans}×{task.input_size}×{task.input_size}"
