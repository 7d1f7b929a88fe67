"""Rounds of fresh workers, one pair of each model per round, until every verdict is settled or the budget is spent.

Starting a process costs seconds, most of them for importing torch, so on a CPU the workers of a round are forks
(`bench.gate.timing.fork_server`), and elsewhere all models of a call share them, one after another. Nothing else is
started while a block is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.gate.statistics.paired import estimate_log_ratio
from bench.gate.statistics.sessions import session_ratio
from bench.gate.statistics.verdicts import Clocks, SequentialTest
from bench.gate.timing.pair import OpenPair, measure_pair
from bench.gate.timing.process import WorkerError
from bench.gate.timing.sample import MIN_ABBA, PairSample
from bench.gate.timing.subject import Setting, Subject

PLANNED_PAIRS = 16
MIN_PAIR_SECONDS = 0.6
"""Building and warming up included; in less time a pair holds too few blocks."""


@dataclass
class Case:
    """One model of a call: base's subject and head's, which are timed in turn, and what was measured of them.

    Where ``past`` is not None, base is the reference workload, and ``past`` is what base's own network took relative to
    it. ``seconds`` is all that it cost, with its share of starting processes. ``failure`` says why it cannot be timed;
    ``outputs_differ`` whether that is because another runtime computes something else.
    """

    name: str
    subjects: tuple[Subject, Subject]
    batch_size: int
    past: Clocks | None = None
    pairs: list[PairSample] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None
    outputs_differ: bool = False


def least_pair_seconds(pairs: Sequence[PairSample]) -> float:
    """What one more pair takes at least, judging by the last one and its number of blocks."""
    return max([MIN_PAIR_SECONDS, *(pair.seconds * 2 * MIN_ABBA / len(pair.abba) for pair in pairs[-1:])])


def estimate_clocks(pairs: Sequence[PairSample], with_cpu: bool) -> Clocks:
    """The estimates of wall time and, on request, of process CPU time from the same blocks."""
    wall = estimate_log_ratio([pair.log_ratios() for pair in pairs])
    return Clocks(wall, estimate_log_ratio([pair.log_ratios("cpu_seconds") for pair in pairs]) if with_cpu else None)


def measure_rounds(
    cases: Sequence[Case],
    setting: Setting,
    open_pair: OpenPair,
    *,
    budget_seconds: float,
    test: SequentialTest | None,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Time all cases in turn and judge them together.

    Args:
        cases: one for each model; they take what is measured.
        setting: device, threads and work of all of them.
        open_pair: gives the workers of a round.
        budget_seconds: for each case; a verdict that is settled earlier ends it earlier.
        test: judges, and ends what it has settled; without one all pairs are measured.
        progress: gets a line now and then.
    """
    start_seconds = 0.0

    def clocks() -> dict[str, Clocks]:
        return {each.name: _change(each, setting) for each in cases if each.pairs and not each.failure}

    for number in range(PLANNED_PAIRS):
        rest = [
            each
            for each in cases
            if not each.failure
            and not (test and each.name in test.settled)
            and each.seconds + start_seconds + least_pair_seconds(each.pairs) <= budget_seconds
        ]
        if not rest:
            break
        progress(f"round {number + 1} of at most {PLANNED_PAIRS}: {len(rest)} of {len(cases)} models")
        start_seconds = _measure_round(rest, setting, open_pair, budget_seconds, number, progress)
        if test is not None:
            test.look(number + 1, clocks())
    if test is not None:
        test.look_last(clocks())


def _change(case: Case, setting: Setting) -> Clocks:
    measured = estimate_clocks(case.pairs, setting.compares_cpu_time)
    return measured if case.past is None else session_ratio(case.past, measured)


def _measure_round(
    cases: Sequence[Case],
    setting: Setting,
    open_pair: OpenPair,
    budget_seconds: float,
    number: int,
    progress: Callable[[str], None],
) -> float:
    """One pair of each; the seconds of starting processes that each of them will cost in another round."""
    queue, start_seconds = list(cases), 0.0
    interpreters = [subject.interpreter for case in cases for subject in case.subjects]
    while queue:  # once, unless a process dies or a model fails in it
        with open_pair(interpreters, setting) as workers:
            next_share = workers.next_start_seconds / len(cases)
            start_seconds += next_share
            for case in cases:
                case.seconds += workers.start_seconds / len(cases)
            while queue:
                case, left = queue.pop(0), PLANNED_PAIRS - number
                seconds = max(MIN_PAIR_SECONDS, (budget_seconds - case.seconds - (left - 1) * next_share) / left)
                try:
                    pair = measure_pair(workers, case.subjects, case.batch_size, seconds, seed=number)
                except WorkerError as error:
                    case.failure, case.outputs_differ = str(error), "OutputsDifferError" in error.kinds
                    progress(f"{case.name}: cannot be timed: {error}")
                    break
                case.pairs.append(pair)
                case.seconds += pair.seconds
                blocks, disturbed = 4 * len(pair.abba), 4 * pair.disturbed
                progress(f"{case.name}: pair {len(case.pairs)}, {blocks} blocks, {disturbed} disturbed")
    return start_seconds
