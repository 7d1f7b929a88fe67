"""Against the past: measure a side now and keep it, or compare a side with what was kept.

Both times each network is timed in turn with the reference workload (`bench.measure.reference`), by the same rounds of
fresh processes as a comparison of two sides. What is compared is the ratio to that workload.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.baselines import (
    PREFIX,
    Baseline,
    BaselineError,
    Counts,
    EmptyBaselineError,
    Task,
    UnlikeBaselineError,
    check_new,
    load_figures,
    save_baseline,
)
from bench.environment import describe_commit
from bench.errors import UserError
from bench.measure.compare import (
    CompareOptions,
    Comparison,
    Inspector,
    ModelResult,
    Status,
    choose_batch_size,
    compare_environments,
    result_of,
)
from bench.measure.duet import Lane, WorkerError, WorkerProcess
from bench.measure.gates import Difference
from bench.measure.reference import REFERENCE
from bench.measure.relative import SESSION_SPREAD, PastJury, PatientJury, judge_sessions
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
    when_saved,
)
from bench.measure.sides import Side, open_side, parse_model_spec
from bench.measure.worktrees import ended_by_signals

REFERENCE_PROGRAM = Path(__file__).with_name("reference.py")
Tell = Callable[[str], None]


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Saved:
    """A baseline that was saved at ``path``, and why some models are not in it."""

    baseline: Baseline
    path: Path
    failures: Mapping[str, str]


def measure_baseline(
    name: str,
    side: str | None,
    options: CompareOptions,
    folder: str | Path,
    *,
    overwrite: bool = False,
    tell: Tell = _silent,
) -> Saved:
    """Measure the models of a side beside the reference workload, and save them as a baseline.

    Args:
        name: the baseline's.
        side: see `bench.measure.sides`; None is the zoo that is installed here.
        options: its models, setting, budget for each model, and batch size.
        folder: of the baselines.
        overwrite: whether one of that name is replaced.
        tell: is told how it goes.

    Raises:
        EmptyBaselineError: no model could be measured; nothing is saved.
        UserError: a side, a model or an option that is not possible, or a name that is taken.
    """
    check_new(folder, name, overwrite)
    with ended_by_signals(), open_side(side) as opened:
        with WorkerProcess(opened.interpreter, options.setting).wait() as worker:
            tell("counting")
            inspector = Inspector(opened, worker)
            environment = describe_session(inspector.environment)
            setting = replace(options.setting, device=environment["device"])
            contests: list[Contest] = []
            counts: dict[str, Counts] = {}
            failures: dict[str, str] = {}
            for model in _models_of(inspector, options.models):
                try:
                    counted = inspector.count(model, setting)
                except WorkerError as error:
                    failures[model] = str(error)
                    continue
                counts[model] = Counts.of(counted)
                batch_size = options.batch_size or choose_batch_size(counted["macs"], setting)
                contests.append(beside_reference(opened, model, batch_size))
        timings = measure_rounds(
            contests,
            setting,
            budget_seconds=options.budget_seconds,
            tolerance=options.tolerance,
            tell=tell,
            jury=PatientJury(),
        )
        commit = _commit_of(opened)
    figures = {}
    for timing in timings:
        model = timing.contest.name
        if timing.failure is not None or not timing.pairs:
            failures[model] = timing.failure or "no pair fitted into the budget: raise --budget"
        else:
            figures[model] = create_figure(timing, counts[model])
    if not figures:
        told = "; ".join(f"{model}: {why}" for model, why in failures.items())
        raise EmptyBaselineError(f"the baseline {name!r} was not saved, since nothing could be measured: {told}.")
    task = Task(mode=setting.mode, input_size=setting.input_size, num_classes=setting.num_classes)
    baseline = create_baseline(name, opened.name, commit, task, environment, figures)
    return Saved(baseline, save_baseline(folder, baseline), failures)


def load_past(base: str, head: str, folder: str | Path) -> tuple[Baseline, ...]:
    """The baselines that the sides of a comparison name: none, BASE's, or both.

    Raises:
        BaselineError: a baseline that is missing, damaged or empty, or HEAD is one and BASE is not.
    """
    names = [text.removeprefix(PREFIX) for text in (base, head) if text.startswith(PREFIX)]
    if head.startswith(PREFIX) and not base.startswith(PREFIX):
        raise BaselineError(
            f"{head!r} is a baseline and {base!r} is not. The past comes first: zoobench compare {head} {base}."
        )
    return tuple(load_figures(folder, name) for name in names)


def compare_with_past(past: Sequence[Baseline], head: str, options: CompareOptions, tell: Tell = _silent) -> Comparison:
    """Compare ``head`` with the first of ``past``, or the second with the first; see the two functions below."""
    if len(past) == 1:
        return compare_with_baseline(past[0], head, options, tell)
    return compare_baselines(past[0], past[1], options)


def compare_with_baseline(baseline: Baseline, head: str, options: CompareOptions, tell: Tell = _silent) -> Comparison:
    """Measure ``head`` beside the reference workload, and compare it with a baseline.

    ``options.models`` chooses among the baseline's figures; none stands for all of them. Batch sizes are the
    baseline's.

    Raises:
        UserError: a side, a model or an option that is not possible.
        UnlikeBaselineError: the baseline is relative to another reference workload, or to none.
    """
    _check_comparable(baseline, options)
    with ended_by_signals(), open_side(head) as side:
        with WorkerProcess(side.interpreter, options.setting).wait() as worker:
            tell("counting")
            inspector = Inspector(side, worker)
            environment = describe_session(inspector.environment)
            differing = compare_environments(baseline.environment, environment)
            options = replace(options, setting=replace(options.setting, device=environment["device"]))
            results: list[ModelResult] = []
            contests: list[Contest] = []
            gated: dict[str, tuple[Difference, ...]] = {}
            if options.force or not differing:
                results, contests, gated = _pass_gates(baseline, inspector, options)
        with_cpu = options.setting.has_cpu_witness
        past = {contest.name: baseline.figures[contest.name].witnesses(with_cpu) for contest in contests}
        timings = measure_rounds(
            contests,
            options.setting,
            budget_seconds=options.budget_seconds,
            tolerance=options.tolerance,
            tell=tell,
            jury=PastJury(past, options.tolerance),
        )
        commit = _commit_of(side)
    for timing in timings:
        figure = baseline.figures[timing.contest.name]
        result = result_of(timing, gated.get(timing.contest.name, ()))
        results.append(replace(result, figures=figures_beside(figure, timing.pairs)))
    return Comparison(
        base=side_of(baseline),
        head=replace(side, commit=commit or None),
        options=options,
        environments=(baseline.environment, environment),
        environment_differences=differing,
        forced=options.force,
        results=tuple(results),
        notes=tuple(notes_on(baseline, [pair for timing in timings for pair in timing.pairs])),
    )


def compare_baselines(base: Baseline, head: Baseline, options: CompareOptions) -> Comparison:
    """Compare what was kept at two times; nothing is measured.

    Where both come from pytest-benchmark, plain seconds are compared, and each file that was imported is a session.

    Raises:
        UnlikeBaselineError: one is relative to another reference workload than the other, or they timed another task.
    """
    if base.reference != head.reference or base.source != head.source:
        raise UnlikeBaselineError(
            f"{base.title} is relative to {base.reference or 'nothing'} and {head.title} to "
            f"{head.reference or 'nothing'}: they have no common measure. Save or import both in the same way."
        )
    if base.task != head.task:
        raise UnlikeBaselineError(
            f"{base.title} timed {_told(base.task)} and {head.title} {_told(head.task)}: not the same work."
        )
    differing = compare_environments(base.environment, head.environment)
    results: list[ModelResult] = []
    shared: list[str] = []
    gated: dict[str, tuple[Difference, ...]] = {}
    if options.force or not differing:
        for name in _chosen([*base.figures, *head.figures], options.models):
            if name not in head.figures or name not in base.figures:
                lacking, status = _lacking(base, head, name)
                results.append(ModelResult(name, status, f"{lacking} has no figure of this name"))
                continue
            before, after = base.figures[name], head.figures[name]
            if before.batch_size != after.batch_size:
                told = f"timed in batches of {before.batch_size} and of {after.batch_size}"
                results.append(ModelResult(name, "failed", told))
                continue
            gated[name] = find_count_differences(before, after.counts)
            if gated[name]:
                results.append(ModelResult(name, "changed", "the model itself changed", gated[name]))
            else:
                shared.append(name)
    with_cpu = head.environment.get("device") == "cpu" and head.environment.get("threads") == 1
    sides = [
        {name: baseline.figures[name].witnesses(with_cpu and bool(baseline.reference)) for name in shared}
        for baseline in (base, head)
    ]
    # Sessions of pytest-benchmark vary among themselves, and there are several in a baseline.
    spread = SESSION_SPREAD if base.reference else 0.0
    judgements = judge_sessions(*sides, tolerance=options.tolerance, session_spread=spread)
    for name, judgement in judgements.items():
        figure = head.figures[name]
        lane = Lane(sys.executable, None, name)
        timing = Timing(Contest(name, (lane, lane), figure.batch_size or 0), with_cpu, figure.samples)
        timing.judgement = judgement
        figures = {"step_ms": [base.figures[name].step_ms, figure.step_ms]}
        results.append(replace(result_of(timing, ()), figures=figures))
    return Comparison(
        base=side_of(base),
        head=side_of(head),
        options=options,
        environments=(base.environment, head.environment),
        environment_differences=differing,
        forced=options.force,
        results=tuple(results),
        notes=(f"Both sides were measured before: {when_saved(base)}; {when_saved(head)}.",),
    )


def beside_reference(side: Side, model: str, batch_size: int) -> Contest:
    """A network of a side, to be timed in turn with the reference workload."""
    network = _lane(side, model)
    # The same root, so that no package changes place between blocks.
    reference = Lane(network.interpreter, network.root, REFERENCE, program=str(REFERENCE_PROGRAM))
    return Contest(model, (reference, network), batch_size)


def _check_comparable(baseline: Baseline, options: CompareOptions) -> None:
    check_reference(baseline)
    setting = options.setting
    wanted = Task(mode=setting.mode, input_size=setting.input_size, num_classes=setting.num_classes)
    if wanted != baseline.task:
        raise UnlikeBaselineError(
            f"{baseline.title} timed {_told(baseline.task)}, and {_told(wanted)} was asked for: not the same work. "
            "Leave --mode, --input-size and --num-classes out, or save another baseline with them."
        )
    sizes = {figure.batch_size for figure in baseline.figures.values()}
    if options.batch_size is not None and sizes != {options.batch_size}:
        raise UnlikeBaselineError(
            f"{baseline.title} timed batches of {', '.join(map(str, sorted(filter(None, sizes))))}, and --batch-size "
            f"{options.batch_size} was asked for. Leave it out, or save another baseline with it."
        )


def _pass_gates(
    baseline: Baseline, inspector: Inspector, options: CompareOptions
) -> tuple[list[ModelResult], list[Contest], dict[str, tuple[Difference, ...]]]:
    """What is decided without timing, what is to be timed, and what differs among the latter."""
    side = inspector.side
    results, names = _match(baseline, inspector, options.models)
    contests: list[Contest] = []
    gated: dict[str, tuple[Difference, ...]] = {}
    for name in names:
        figure = baseline.figures[name]
        try:
            counted = inspector.count_lane(_lane(side, name), options.setting)
        except WorkerError as error:
            results.append(ModelResult(name, "failed", str(error)))
            continue
        differences = find_count_differences(figure, Counts.of(counted))
        # Who names a model with other options compares two models: that is told, and the timing decides.
        if differences and (side.spec is None or side.name == name):
            results.append(ModelResult(name, "changed", changed_detail(baseline), differences))
            continue
        gated[name] = differences
        contests.append(beside_reference(side, name, figure.batch_size or 1))
    return results, contests, gated


def _match(baseline: Baseline, inspector: Inspector, patterns: Sequence[str]) -> tuple[list[ModelResult], list[str]]:
    """Results for the names that the baseline or the head lacks, and the names that both have."""
    side = inspector.side
    if side.spec is not None:
        unknown = inspector.resolve([side.spec.model])[1]
        if unknown:
            raise UserError(next(iter(unknown.values())))
        wanted = [side.name if side.name in baseline.figures else side.spec.model]
        lacking: set[str] = set()
    else:
        names, unknown = inspector.resolve(patterns)
        for pattern in patterns:
            if pattern in unknown and pattern not in baseline.figures:
                raise UserError(unknown[pattern])
        found = [name for matched in names.values() for name in matched]
        wanted = list(dict.fromkeys([*_chosen(list(baseline.figures), patterns), *found]))
        models = {name: parse_model_spec(name).model for name in wanted}
        gone = inspector.resolve(list(models.values()))[1]
        lacking = {name for name, model in models.items() if model in gone}
    if not wanted:
        raise UserError(f"no figure of {baseline.title} and no model matches --models {','.join(patterns)}.")
    results = [
        ModelResult(name, "missing", f"{side.name} has no model of this name")
        if name in lacking
        else ModelResult(name, "new", f"{baseline.title} has no figure of this name")
        for name in wanted
        if name in lacking or name not in baseline.figures
    ]
    return results, [name for name in wanted if name in baseline.figures and name not in lacking]


def _chosen(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match one of the patterns, all if there is none."""
    return [
        name
        for name in dict.fromkeys(names)
        if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _models_of(inspector: Inspector, patterns: Sequence[str]) -> list[str]:
    """The models that a baseline is to hold: those that match, or the one that the side names."""
    spec = inspector.side.spec
    names, unknown = inspector.resolve(patterns if spec is None else [spec.model])
    if unknown:
        raise UserError(next(iter(unknown.values())))
    if spec is not None:
        return [inspector.side.name]
    models = list(dict.fromkeys(name for found in names.values() for name in found))
    if not models:
        raise UserError(f"no model matches --models {','.join(patterns)}. `zoobench list` shows all names.")
    return models


def _lane(side: Side, model: str) -> Lane:
    """The side's network; a figure's name may hold options, as ``resnet18,channels_last=true``."""
    return side.lane(model) if side.spec is not None else replace(side, spec=parse_model_spec(model)).lane(model)


def _lacking(base: Baseline, head: Baseline, name: str) -> tuple[str, Status]:
    return (head.title, "missing") if name not in head.figures else (base.title, "new")


def _commit_of(side: Side) -> str:
    if side.commit is not None:
        return side.commit
    described = describe_commit(Path(side.root)) if side.root is not None else None
    return described["commit"] + "+" * described["dirty"] if described is not None else ""


def _told(task: Task) -> str:
    return f"--mode {task.mode} --input-size {task.input_size} --num-classes {task.num_classes}"
