"""Rounds of fresh processes, one pair of each model a round, until every verdict is settled or the budget is over.

Starting a process costs seconds, most of them the import of torch, so on a CPU the processes of a round are forks
(`bench.measure.nursery`), and elsewhere all models of a call share them, one after another. Nothing else is started
while a block is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.measure.duet import MIN_QUADS, Duet, Lane, PairSample, Setting, WorkerError, measure_pair
from bench.measure.nursery import Nursery
from bench.measure.paired import estimate_log_ratio
from bench.measure.verdicts import Judgement, Jury, Witnesses

PLANNED_PAIRS = 16
MIN_PAIR_SECONDS = 1.0
"""Building and warming up included; below it a pair holds too few quads."""


@dataclass(frozen=True)
class Contest:
    """One model to be timed on both sides: base's lane and head's."""

    name: str
    lanes: tuple[Lane, Lane]
    batch_size: int


@dataclass
class Timing:
    """What was measured of a contest, and what it came to.

    ``seconds`` are all that it cost, its share of starting processes included. ``failure`` says why there is nothing.
    """

    contest: Contest
    with_cpu: bool
    pairs: list[PairSample] = field(default_factory=list)
    seconds: float = 0.0
    judgement: Judgement | None = None
    failure: str | None = None

    @property
    def witnesses(self) -> Witnesses | None:
        """The estimates so far, None before the first pair."""
        return create_witnesses(self.pairs, self.with_cpu) if self.pairs else None


def least_pair_seconds(pairs: Sequence[PairSample]) -> float:
    """What one more pair takes at the least, as far as the pairs so far tell: its smallest number of quads."""
    return max([MIN_PAIR_SECONDS, *(pair.seconds * 2 * MIN_QUADS / len(pair.quads) for pair in pairs[-1:])])


def create_witnesses(pairs: Sequence[PairSample], with_cpu: bool) -> Witnesses:
    """The estimates of wall time and, on request, of process CPU time over the same quads."""
    wall = estimate_log_ratio([pair.log_ratios() for pair in pairs])
    return Witnesses(wall, estimate_log_ratio([pair.log_ratios("cpu_seconds") for pair in pairs]) if with_cpu else None)


def measure_rounds(
    contests: Sequence[Contest],
    setting: Setting,
    *,
    budget_seconds: float,
    tolerance: float,
    tell: Callable[[str], None] = lambda text: None,
    jury: Jury | None = None,
    open_duet: Callable[[Sequence[str], Setting], Duet] | None = None,
) -> list[Timing]:
    """Time all contests in turn and judge them together.

    Args:
        contests: one for each model.
        setting: device, threads and task of all of them.
        budget_seconds: for each contest; a verdict that is settled earlier ends it earlier.
        tolerance: the change, as a share, that counts as none.
        tell: is told how it goes, a line at a time.
        jury: who judges in place of one that compares the two lanes.
        open_duet: gives fresh lanes for a round, in place of fresh processes.
    """
    if open_duet is None:
        with Nursery([lane for contest in contests for lane in contest.lanes]) as nursery:
            return measure_rounds(
                contests,
                setting,
                budget_seconds=budget_seconds,
                tolerance=tolerance,
                tell=tell,
                jury=jury,
                open_duet=nursery.open,
            )
    timings = [Timing(contest, setting.has_cpu_witness) for contest in contests]
    jury = Jury(len(timings), tolerance) if jury is None else jury
    start_seconds = 0.0
    for number in range(PLANNED_PAIRS):
        rest = [timing for timing in timings if timing.failure is None and timing.contest.name not in jury.settled]
        rest = [
            each for each in rest if each.seconds + start_seconds + least_pair_seconds(each.pairs) <= budget_seconds
        ]
        if not rest:
            break
        tell(f"round {number + 1} of at most {PLANNED_PAIRS}: {len(rest)} of {len(timings)} models")
        start_seconds = _measure_round(rest, setting, budget_seconds, number, tell, open_duet)
        jury.look(number + 1, _evidence(timings))
    jury.look_last(_evidence(timings))
    for timing in timings:
        timing.judgement = jury.settled.get(timing.contest.name)
    return timings


def _measure_round(
    timings: Sequence[Timing],
    setting: Setting,
    budget_seconds: float,
    number: int,
    tell: Callable[[str], None],
    open_duet: Callable[[Sequence[str], Setting], Duet],
) -> float:
    """One pair of each; the seconds of starting processes that each of them will bear in another round."""
    queue, bearers, start_seconds = list(timings), len(timings), 0.0
    interpreters = [lane.interpreter for timing in timings for lane in timing.contest.lanes]
    while queue:  # once, unless a process dies or a model fails in it
        with open_duet(interpreters, setting) as duet:
            share, next_share = duet.start_seconds / bearers, duet.next_start_seconds / bearers
            start_seconds += next_share
            for timing in timings:
                timing.seconds += share
            while queue:
                timing = queue.pop(0)
                left = PLANNED_PAIRS - number
                seconds = (budget_seconds - timing.seconds - (left - 1) * next_share) / left
                contest = timing.contest
                try:
                    pair = measure_pair(
                        duet, contest.lanes, contest.batch_size, max(seconds, MIN_PAIR_SECONDS), seed=number
                    )
                except WorkerError as error:
                    timing.failure = str(error)
                    tell(f"{contest.name}: cannot be timed: {error}")
                    break
                timing.pairs.append(pair)
                timing.seconds += pair.seconds
                tell(f"{contest.name}: pair {len(timing.pairs)}, {len(pair.quads)} quads, {pair.disturbed} disturbed")
    return start_seconds


def _evidence(timings: Sequence[Timing]) -> dict[str, Witnesses]:
    """The estimates of all that could be timed so far."""
    estimates = {timing.contest.name: timing.witnesses for timing in timings if timing.failure is None}
    return {name: witnesses for name, witnesses in estimates.items() if witnesses is not None}
