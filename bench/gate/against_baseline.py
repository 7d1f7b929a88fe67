"""What `zoobench compare baseline:NAME` and `zoobench baseline save` add to the one flow of the gate.

Both times each network is timed in turn with the reference workload (`bench.gate.timing.reference`), and what is
compared is the ratio to that.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.gate.baselines import (
    PREFIX,
    Baseline,
    BaselineError,
    EmptyBaselineError,
    Entry,
    UnlikeBaselineError,
    load_entries,
)
from bench.gate.exact import counter_digest
from bench.gate.memory import Memory
from bench.gate.result import CompareOptions, Comparison, ModelResult
from bench.gate.statistics.sessions import SESSION_SPREAD, session_ratio
from bench.gate.statistics.verdicts import Clocks, judge
from bench.gate.timing.reference import REFERENCE
from bench.gate.timing.rounds import estimate_clocks
from bench.machine import known_facts


def load_sides(base: str, head: str, folder: str | Path) -> tuple[str | Baseline, str | Baseline]:
    """The sides of a comparison, with those that name a baseline loaded.

    Raises:
        BaselineError: a baseline that is missing, damaged or empty, or HEAD is one and BASE is not.
    """
    if head.startswith(PREFIX) and not base.startswith(PREFIX):
        raise BaselineError(
            f"{head!r} is a baseline and {base!r} is not. The older side comes first: zoobench compare {head} {base}."
        )

    def load(text: str) -> str | Baseline:
        return load_entries(folder, text.removeprefix(PREFIX)) if text.startswith(PREFIX) else text

    return load(base), load(head)


def check_same_work(baseline: Baseline, other: Baseline | CompareOptions) -> None:
    """Raise `UnlikeBaselineError` unless ``other`` is, or asks for, the same work relative to the same reference."""
    title, batch_size = baseline.title, None
    sizes = sorted({entry.batch_size for entry in baseline.entries.values() if entry.batch_size})
    timed = f"batches of {', '.join(map(str, sizes))}, {baseline.task}"
    if isinstance(other, Baseline):
        what, reference, task, asked = other.title, other.reference, other.task, f"timed {other.task}"
    else:
        what, reference, task, batch_size = "this call", REFERENCE, other.setting.task, other.batch_size
        asked = f"asks for batches of {batch_size or 'the same size'}, {task}"
        if baseline.reference is None:
            raise UnlikeBaselineError(
                f"{title} holds benchmarks of pytest-benchmark, which zoobench cannot run. Import what the new code "
                f"measured as a second baseline, and compare the two: zoobench compare {title} baseline:OTHER."
            )
    if baseline.reference != reference:
        raise UnlikeBaselineError(
            f"{title} is relative to {baseline.reference or 'nothing'} and {what} to {reference or 'nothing'}: they "
            "have no common measure. Save or import both in the same way."
        )
    if baseline.task != task or (batch_size is not None and sizes != [batch_size]):
        raise UnlikeBaselineError(
            f"{title} timed {timed}, and {what} {asked}: not the same work. Ask for the same, or save one anew."
        )


def create_baseline(name: str, comparison: Comparison) -> Baseline:
    """A baseline of what was measured now beside the reference workload.

    Raises:
        EmptyBaselineError: nothing was measured.
    """
    entries = {
        each.model: Entry(
            batch_size=each.batch_size,
            step_ms=each.step_ms[1],
            reference_step_ms=each.step_ms[0],
            relative=math.exp(estimate_clocks(each.pairs, with_cpu=False).wall.log_ratio),
            counts=each.counts,
            peak_memory_bytes=each.peak_memory_bytes,
            workload=each.workload,
            pairs=each.pairs,
        )
        for each in comparison.results
        if each.status == "measured" and each.step_ms is not None
    }
    if not entries:
        why = "; ".join(f"{result.model}: {result.detail}" for result in comparison.results)
        raise EmptyBaselineError(f"the baseline {name!r} was not saved, since nothing could be measured: {why}.")
    return Baseline(
        name=name,
        source="measured",
        saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        side=comparison.head.name,
        commit=comparison.head.commit or "",
        zoobench=importlib.metadata.version("zoobench"),
        reference=REFERENCE,
        counter=counter_digest(),
        task=comparison.options.setting.task,
        environment=dict(comparison.environments[1]),
        entries=entries,
    )


def judge_stored(base: Baseline, head: Baseline, names: Sequence[str], tolerance: float) -> list[ModelResult]:
    """Results for what both sides measured before, in one look."""
    results = []
    measured = head.reference is not None
    facts = known_facts(head.environment)
    with_cpu = measured and facts.get("device") == "cpu" and facts.get("threads") == 1
    clocks: dict[str, Clocks] = {}
    for name in names:
        old, new = base.entries[name], head.entries[name]
        if old.batch_size != new.batch_size:
            detail = f"timed in batches of {old.batch_size} and of {new.batch_size}"
            results.append(ModelResult(name, "failed", detail))
            continue
        if old.workload != new.workload:
            detail = (
                "each side was timed beside its own operators, and these differ: compare the code with the baseline, "
                f"`zoobench compare {base.title} PATH`"
            )
            results.append(ModelResult(name, "failed", detail))
            continue
        # One statistic for both: where one side has only the medians of its sessions, they are compared.
        medians = bool(old.summarized_rounds or new.summarized_rounds)
        # Sessions of pytest-benchmark vary among themselves, and a baseline has several.
        spread = SESSION_SPREAD if measured else 0.0
        clocks[name] = session_ratio(old.clocks(with_cpu, medians), new.clocks(with_cpu, medians), spread)
    for name, judgement in judge(clocks, {}, tolerance=tolerance).items():
        entry = head.entries[name]
        results.append(
            ModelResult(
                name,
                judgement.verdict,
                judgement.reason,
                judgement=judgement,
                batch_size=entry.batch_size,
                pairs=entry.pairs,
                step_ms=(base.entries[name].step_ms, entry.step_ms),
                counts=entry.counts,
                memory=Memory.of(base.entries[name].peak_memory_bytes, entry.peak_memory_bytes),
            )
        )
    return results


def stored_notes(base: Baseline, head: Baseline) -> list[str]:
    """When both sides were measured, what was compared, and what helps where it is inconclusive."""
    both = base, head
    notes = [f"Both sides were measured before: {describe_baseline(base)}; {describe_baseline(head)}."]
    for each in both:
        names = [name for name, entry in each.entries.items() if entry.summarized_rounds]
        if names:
            notes.append(
                f"{each.title} has no rounds of {len(names)} of {len(each.entries)} benchmarks, only their medians: "
                "one value per session."
            )
    return notes


def stored_remedy(base: Baseline, head: Baseline) -> str:
    """What can be done about an inconclusive comparison of what was measured before."""
    if base.reference is not None:
        return "both sides measured anew for longer: `zoobench baseline save NAME --overwrite --budget SECONDS`"
    fewest = min(len(entry.sessions_seconds) for each in (base, head) for entry in each.entries.values())
    return (
        "more sessions of the benchmarks on either side (now: at least "
        f"{fewest}): run pytest several times, and give all files to `zoobench baseline import NAME FILE…`"
    )


def describe_baseline(baseline: Baseline) -> str:
    """Which baseline, of which commit, and when it was saved, for a sentence."""
    commit = f" of {baseline.commit[:12]}" if baseline.commit else ""
    return f"{baseline.title}{commit} was saved on {baseline.saved_at[:16].replace('T', ' ')}"


def reference_note(baseline: Baseline, results: Sequence[ModelResult]) -> str:
    """When the baseline was saved, and how much slower the machine itself is now."""
    note = f"Relative to the same operators, replayed ({baseline.reference}); {describe_baseline(baseline)}."
    both = [each.reference_step_ms for each in results if each.reference_step_ms is not None]
    if both:
        change = statistics.geometric_mean(now / then for then, now in both) - 1
        note += f" These took {abs(change):.0%} {'longer' if change > 0 else 'less'} now than then."
    return note
