"""The one flow of the gate: find the models of both sides, count them, time what counts allow, judge.

`measure` is `zoobench compare` of two sides, of a side with a baseline and of two baselines, it is what
`zoobench baseline save` saves, and the checks of the pytest fixture. What differs is handed in: the sides (code, a
baseline, or none, which measures without judging) and the host (where the blocks run).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.errors import UserError
from bench.gate.against_baseline import (
    check_same_work,
    create_baseline,
    judge_stored,
    reference_note,
    stored_notes,
    stored_remedy,
)
from bench.gate.baselines import Baseline, check_new, save_baseline
from bench.gate.exact import Counts, find_differences
from bench.gate.memory import Memory
from bench.gate.result import CompareOptions, Comparison, ModelResult, Status
from bench.gate.revisions import Side, open_side, open_sides
from bench.gate.sources import LiveSource, Source, match_models
from bench.gate.statistics.verdicts import SequentialTest, Verdict
from bench.gate.timing.fork_server import PROCESSES
from bench.gate.timing.pair import Host
from bench.gate.timing.process import WorkerError
from bench.gate.timing.reference import REFERENCE, Workload
from bench.gate.timing.rounds import Case, measure_rounds
from bench.gate.timing.sample import step_ms
from bench.gate.timing.subject import Setting, Subject
from bench.machine import incomparable
from bench.signals import ended_by_signals

STEP_MACS = 20_000_000
"""The target for a step on a CPU: a millisecond or a few on one thread, so that a block is many slices."""
MAX_CPU_BATCH = 16
GPU_BATCH = 128

Progress = Callable[[str], None]


def compare(
    base: str | Baseline, head: str | Baseline, options: CompareOptions, progress: Progress = lambda line: None
) -> Comparison:
    """Compare what ``base`` and ``head`` name (see `bench.gate.revisions`), or what was kept of them.

    However the call ends, its processes end with it and its temporary folders are removed. Raises `UserError` for a
    side, a model or an option that is not possible.
    """
    with ended_by_signals(), contextlib.ExitStack() as stack:
        if isinstance(base, str):
            assert isinstance(head, str), "only base, or both, can be a baseline"
            return measure(*stack.enter_context(open_sides(base, head)), options, progress=progress)
        opened = stack.enter_context(open_side(head)) if isinstance(head, str) else head
        return measure(base, opened, options, progress=progress)


@dataclass(frozen=True)
class Saved:
    """A baseline that was saved at ``path``, and why some models are not in it."""

    baseline: Baseline
    path: Path
    failures: Mapping[str, str]


def save(
    name: str,
    side: str | None,
    options: CompareOptions,
    folder: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda line: None,
) -> Saved:
    """Measure the models of a side (None: the zoo that is installed here) and save them as a baseline in ``folder``.

    Raises:
        bench.gate.baselines.EmptyBaselineError: no model could be measured; nothing is saved.
        UserError: a side, a model or an option that is not possible, or a name that is taken.
    """
    check_new(folder, name, overwrite)
    with ended_by_signals(), open_side(side) as opened:
        measured = measure(None, opened, options, progress=progress)
    baseline = create_baseline(name, measured)
    failures = {each.model: each.detail for each in measured.results if each.status != "measured"}
    return Saved(baseline, save_baseline(folder, baseline), failures)


def measure(
    base: Side | Baseline | None,
    head: Side | Baseline,
    options: CompareOptions,
    *,
    host: Host = PROCESSES,
    progress: Progress = lambda line: None,
) -> Comparison:
    """Find, count, time and judge the models of two sides whose code is there, or of which a baseline is kept.

    Args:
        base: None measures ``head`` relative to the reference workload and judges nothing.
        head: a `Baseline` only if ``base`` is one.
        options: what is asked for. Without ``models``, all of a baseline's; batch sizes are a baseline's.
        host: where the networks live.
        progress: gets a line now and then.

    Raises:
        UserError: a model or an option that is not possible.
        bench.gate.baselines.UnlikeBaselineError: a baseline of other work, or relative to something else.
    """
    setting = options.setting
    if isinstance(base, Baseline):
        check_same_work(base, head if isinstance(head, Baseline) else options)
    interpreters = [each.interpreter for each in (base, head) if isinstance(each, Side)]
    with host.connect(interpreters, setting) as workers:

        def source_of(side: Side | Baseline) -> Source:
            return side if isinstance(side, Baseline) else LiveSource(side, workers[side.interpreter], setting)

        progress("counting")
        head_source = source_of(head)
        base_source = None if base is None else source_of(base)
        environments = (base_source or head_source).environment, head_source.environment
        differing = incomparable(*environments)
        device = str(environments[1]["machine"].get("device", setting.device))
        options = replace(options, setting=replace(setting, device=device))
        results: list[ModelResult] = []
        counts: dict[str, tuple[Counts | None, Counts | None]] = {}
        cases: list[Case] = []
        peaks: dict[str, tuple[int | None, int | None]] = {}
        if options.force or not differing:
            results, names = match_models(base_source, head_source, options.models)
            unlike, counts = _count(base_source, head_source, names, options.decide)
            results += unlike
        if isinstance(head_source, LiveSource) and options.decide != "counts":
            cases = [_case(base, head_source, name, both, options) for name, both in counts.items()]
            if options.memory_tolerance is not None:
                progress("memory")
                peaks = {case.name: _measure_memory(base_source, head_source, case) for case in cases}
    # The processes that counted are gone: their memory, and what they imported, is not part of the measurement.
    if isinstance(base, Baseline) and isinstance(head, Baseline):
        results += judge_stored(base, head, list(counts), options.tolerance)
    elif options.decide == "counts":
        results += [ModelResult(name, Verdict.UNCHANGED, "the counts are equal") for name in counts]
    elif isinstance(head, Side):
        test = SequentialTest(len(cases), options.tolerance, settles_small=isinstance(base, Side))
        with host.serve([subject for case in cases for subject in case.subjects]) as open_pair:
            measure_rounds(
                cases,
                options.setting,
                open_pair,
                budget_seconds=options.budget_seconds,
                test=None if base is None else test,
                progress=progress,
            )
        results += [_result(case, base, counts[case.name], peaks.get(case.name, (None, None)), test) for case in cases]
    return Comparison(
        base=base_source.origin if base_source is not None else Side(f"the same operators, replayed ({REFERENCE})"),
        head=head_source.origin,
        options=options,
        environments=environments,
        environment_differences=differing,
        results=tuple(results),
        notes=tuple(_notes(base, head, results)),
        remedy=stored_remedy(base, head) if isinstance(base, Baseline) and isinstance(head, Baseline) else None,
    )


def choose_batch_size(macs: int, setting: Setting) -> int:
    """A power of two that keeps a step of a network of ``macs`` short on a CPU and a GPU busy.

    Training is three times the work of inference, and batch norm needs two images.
    """
    if setting.device != "cpu":
        return GPU_BATCH
    per_image = max(1, macs * (3 if setting.mode == "train" else 1))
    fitting = max(1, STEP_MACS // per_image)
    least = 2 if setting.mode == "train" else 1
    return int(max(least, min(MAX_CPU_BATCH, 2 ** (fitting.bit_length() - 1))))


def _count(
    base: Source | None, head: Source, names: Sequence[str], decide: str
) -> tuple[list[ModelResult], dict[str, tuple[Counts | None, Counts | None]]]:
    """Results for the models that the exact gates decide, and both sides' counts of those that the timing decides.

    Whoever names another model, or the same with other options, compares two networks on purpose: their differences
    are shown, and the timing decides.
    """
    decided: list[ModelResult] = []
    counts: dict[str, tuple[Counts | None, Counts | None]] = {}
    for name in names:
        try:
            both = None if base is None else base.count(name), head.count(name)
        except WorkerError as error:
            if base is not None and base.origin.model is not None:
                raise UserError(f"{name}: {error}") from error
            decided.append(ModelResult(name, "failed", str(error)))
            continue
        differences = find_differences(*both)
        on_purpose = head.origin.model is not None and not (isinstance(base, Baseline) and head.origin.name == name)
        if not differences or on_purpose or decide == "timing":
            counts[name] = both
            continue
        assert base is not None
        detail = "the model itself changed"
        if base.counter != head.counter:
            detail += ", or only how zoobench counts, which changed too: save the baseline anew to find out"
        decided.append(ModelResult(name, "changed", detail, differences))
    return decided, counts


def _case(
    base: Side | Baseline | None,
    head: LiveSource,
    name: str,
    counts: tuple[Counts | None, Counts | None],
    options: CompareOptions,
) -> Case:
    """What is timed of a model: beside base's, or beside its own operators as they are, or were in the baseline."""
    subject, past, failure = head.origin.subject(name), None, None
    macs = max(each.macs for each in counts if each is not None)
    batch_size = options.batch_size or choose_batch_size(macs, options.setting)
    if isinstance(base, Side):
        return Case(name, (base.subject(name), subject), batch_size)
    workload: Workload = {}
    if base is not None:
        entry = base.entries[name]
        past, batch_size = entry.clocks(options.setting.compares_cpu_time), entry.batch_size or batch_size
        workload = entry.workload or workload
    else:
        try:
            workload = head.record_workload(name, batch_size)
        except WorkerError as error:
            failure = str(error)
    # It has the network's interpreter and root, so that no package changes place between blocks.
    beside = replace(Subject(REFERENCE), interpreter=subject.interpreter, root=subject.root, workload=workload)
    return Case(name, (beside, subject), batch_size, past, failure=failure)


def _measure_memory(base: Source | None, head: Source, case: Case) -> tuple[int | None, int | None]:
    """The peak bytes of both sides; unknown where a model does not run, which the timing will report."""
    try:
        before = None if base is None else base.measure_memory(case.name, case.batch_size)
        return before, head.measure_memory(case.name, case.batch_size)
    except WorkerError:
        return None, None


def _result(
    case: Case,
    base: Side | Baseline | None,
    counts: tuple[Counts | None, Counts | None],
    peaks: tuple[int | None, int | None],
    test: SequentialTest,
) -> ModelResult:
    judgement = None if case.failure else test.settled.get(case.name)
    status: Status = "changed" if case.outputs_differ else "failed"
    detail = case.failure or "no pair fitted into the budget: raise it"
    if judgement is not None:
        status, detail = judgement.verdict, judgement.reason
    elif not case.failure and case.pairs:
        assert base is None, "what was timed beside a base is judged"
        status, detail = "measured", ""
    steps = step_ms(case.pairs)
    reference = None
    if steps is not None and isinstance(base, Baseline):
        past = base.entries[case.name]
        reference = past.reference_step_ms or steps[0], steps[0]
        steps = past.step_ms, steps[1]
    return ModelResult(
        model=case.name,
        status=status,
        detail=detail,
        differences=find_differences(*counts),
        judgement=judgement,
        batch_size=case.batch_size,
        pairs=tuple(case.pairs),
        seconds=case.seconds,
        step_ms=steps,
        reference_step_ms=reference,
        workload=case.subjects[0].workload,
        counts=counts[1],
        peak_memory_bytes=peaks[1],
        memory=Memory.of(*peaks),
    )


def _notes(base: Side | Baseline | None, head: Side | Baseline, results: Sequence[ModelResult]) -> list[str]:
    if not isinstance(base, Baseline):
        return []
    if isinstance(head, Baseline):
        return stored_notes(base, head)
    return [reference_note(base, results)]
