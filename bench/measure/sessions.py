"""What a session of measuring leaves behind, and what of it must be alike before two sessions are compared.

Shared by the command line, whose networks live in fresh processes, and by the fixture of `bench.pytest_plugin`, whose
networks live in the tests' own.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import math
import sys
from collections.abc import Mapping
from typing import Any

from bench.baselines import Baseline, Counts, Figure, StoredPair, Task, UnlikeBaselineError
from bench.environment import describe_machine
from bench.measure.compare_summary import step_ms
from bench.measure.duet import PairSample
from bench.measure.gates import COMPLEXITY, Difference, find_differences
from bench.measure.reference import REFERENCE
from bench.measure.rounds import Timing
from bench.measure.sides import Side


def describe_session(worker_environment: Mapping[str, Any], process: str = "its own") -> dict[str, Any]:
    """What times depend on: the worker's environment, the machine, and in whose process the networks ran."""
    machine = describe_machine("cpu")
    return {**worker_environment, **{key: machine[key] for key in ("cpu", "cores", "system")}, "process": process}


def create_figure(timing: Timing, counts: Counts) -> Figure:
    """What is kept of a network that was timed beside the reference workload."""
    witnesses, steps = timing.witnesses, step_ms(timing.pairs)
    assert witnesses is not None
    assert steps is not None
    return Figure(
        batch_size=timing.contest.batch_size,
        step_ms=steps[1],
        reference_step_ms=steps[0],
        relative=math.exp(witnesses.wall.log_ratio),
        counts=counts,
        pairs=tuple(StoredPair.of(pair) for pair in timing.pairs),
    )


def create_baseline(
    name: str, side: str, commit: str, task: Task, environment: dict[str, Any], figures: dict[str, Figure]
) -> Baseline:
    """A baseline of now, relative to the reference workload."""
    return Baseline(
        name=name,
        source="measured",
        saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        side=side,
        commit=commit,
        zoobench=importlib.metadata.version("zoobench"),
        reference=REFERENCE,
        counter=counter_digest(),
        task=task,
        environment=environment,
        figures=figures,
    )


def check_reference(baseline: Baseline) -> None:
    """Raise `UnlikeBaselineError` if the baseline is not relative to the reference workload that is timed now."""
    if baseline.reference is None:
        raise UnlikeBaselineError(
            f"{baseline.title} holds benchmarks of pytest-benchmark, which zoobench cannot run. Import what the "
            f"new code measured as a second baseline, and compare the two: zoobench compare {baseline.title} "
            "baseline:OTHER."
        )
    if baseline.reference != REFERENCE:
        raise UnlikeBaselineError(
            f"{baseline.title} is relative to the reference workload {baseline.reference!r}, this zoobench times "
            f"{REFERENCE!r}: the two have no common measure. Save the baseline anew."
        )


def find_count_differences(figure: Figure, counts: Counts | None) -> tuple[Difference, ...]:
    """Where the exact counts differ from a figure's; nowhere where either has none."""
    if figure.counts is None or counts is None:
        return ()
    return find_differences(figure.counts.model_dump(), counts.model_dump())


def counter_digest() -> str:
    """Of the code that counts; where it differs, a difference of counts may be its own."""
    return hashlib.sha256(COMPLEXITY.read_bytes()).hexdigest()[:16]


def changed_detail(baseline: Baseline) -> str:
    """What is said of a model whose counts differ from a baseline's."""
    if baseline.counter == counter_digest():
        return "the model itself changed"
    return "the model itself changed, or only how zoobench counts, which also did: save the baseline anew to know"


def figures_beside(figure: Figure, pairs: list[PairSample]) -> dict[str, Any]:
    """The absolute times of the baseline and of now, of the network and of the reference workload."""
    now = step_ms(pairs)
    if now is None:
        return {}
    return {"step_ms": [figure.step_ms, now[1]], "reference_step_ms": [figure.reference_step_ms, now[0]]}


def notes_on(baseline: Baseline, pairs: list[PairSample]) -> list[str]:
    """When the baseline was saved, and how much slower the machine itself is now."""
    notes = [f"Relative to the reference workload {baseline.reference}; {when_saved(baseline)}."]
    then = [figure.reference_step_ms for figure in baseline.figures.values() if figure.reference_step_ms]
    now = step_ms(pairs)
    if now is not None and then:
        before = sorted(then)[len(then) // 2]
        notes[0] += f" That workload took {before:.2f} ms then and {now[0]:.2f} ms now ({now[0] / before - 1:+.0%})."
    return notes


def side_of(baseline: Baseline) -> Side:
    """A baseline as a side of a comparison."""
    return Side(baseline.title, sys.executable, None, commit=baseline.commit or None)


def when_saved(baseline: Baseline) -> str:
    """Which baseline, of which commit, and when it was saved, for a sentence."""
    commit = f" of {baseline.commit[:12]}" if baseline.commit else ""
    return f"{baseline.title}{commit} was saved on {baseline.saved_at[:16].replace('T', ' ')}"
