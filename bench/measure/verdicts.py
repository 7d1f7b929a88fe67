"""From paired estimates to verdicts: regressed, improved, unchanged or inconclusive, over all models of one call.

False alarms are bounded over the whole call (`ALPHA`), whatever the number of models and of looks at the data:

- the data are looked at after `LOOKS` pairs and at the end, each look with a share of the error allowed, so that a
  call may stop early; the union of the looks keeps the bound;
- inside a look Holm's procedure corrects for the number of models; a model that an earlier look found changed hands its
  share on (Ye, Li, Liu and Yao 2013), one that was found unchanged does not;
- where there are two witnesses, wall time and process CPU time, a change needs both: the larger p-value counts, which
  needs no correction (an intersection-union test, Berger 1982).

``unchanged`` is a claim of its own, of equivalence, and errs in its own way: a change as large as the tolerance passes
for none. That is bounded for each model (`MISSED`) over its looks; more models make it no likelier for one of them, so
it is not corrected for their number (two one-sided tests, Schuirmann 1987).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from bench.measure.paired import Estimate, HolmStep, holm

ALPHA = 0.01
"""The chance, over a whole call, that code which takes the same time is called regressed or improved."""
MISSED = 0.05
"""The chance, for each model, that a change of the tolerance or more is called unchanged."""
LOOKS: Mapping[int, float] = {5: 0.1, 8: 0.2, 11: 0.3}
"""After so many pairs the data are looked at, with this share of either chance; the last look has what is left."""
LAST_SHARE = 1 - sum(LOOKS.values())


class Verdict(StrEnum):
    """What a comparison came to, for one model."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    UNCHANGED = "unchanged"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Witnesses:
    """What the clocks say: ``wall`` always, ``cpu`` (process CPU time) where it is to be had and comparable."""

    wall: Estimate
    cpu: Estimate | None = None

    @property
    def p_value(self) -> float:
        """For a change on which all witnesses agree, in size and in direction."""
        if self.cpu is None:
            return self.wall.p_value
        if self.wall.log_ratio * self.cpu.log_ratio < 0:
            return 1.0
        return max(self.wall.p_value, self.cpu.p_value)


@dataclass(frozen=True)
class Judgement:
    """A verdict with its evidence. Changes are of head's time relative to base's: 0.05 is 5% slower.

    ``low`` and ``high`` bound the change of the wall time at confidence ``1 - level``, which is what the verdict rests
    on; ``smallest_change`` is what the measurement would have called changed with probability 0.8. All three are None
    where there is no second pair to tell. ``cpu_change`` is the second witness's estimate.
    """

    verdict: Verdict
    change: float
    low: float | None
    high: float | None
    level: float
    smallest_change: float | None
    cpu_change: float | None
    reason: str


class Jury:
    """Judges the models of a call at every look, and keeps what is settled.

    ``family`` is how many models the call has, those included that cannot be timed. ``early`` are the verdicts that a
    look before the last may settle.
    """

    early: Collection[Verdict] = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.UNCHANGED)

    def __init__(self, family: int, tolerance: float) -> None:
        self.settled: dict[str, Judgement] = {}
        self._family = family
        self._tolerance = tolerance

    def look(self, pairs: int, witnesses: Mapping[str, Witnesses]) -> None:
        """Settle what can be settled after so many pairs, if that is one of `LOOKS`."""
        if pairs in LOOKS:
            judged = self._judge(witnesses, LOOKS[pairs])
            self.settled |= {name: each for name, each in judged.items() if each.verdict in self.early}

    def look_last(self, witnesses: Mapping[str, Witnesses]) -> None:
        """Settle all."""
        self.settled |= self._judge(witnesses, LAST_SHARE)

    def _judge(self, witnesses: Mapping[str, Witnesses], share: float) -> dict[str, Judgement]:
        return judge(
            witnesses,
            {name: judgement.verdict for name, judgement in self.settled.items()},
            tolerance=self._tolerance,
            alpha=share * ALPHA,
            missed=share * MISSED if Verdict.UNCHANGED in self.early else MISSED,
            family=self._family,
        )


def judge(
    witnesses: Mapping[str, Witnesses],
    settled: Mapping[str, Verdict],
    *,
    tolerance: float,
    alpha: float = ALPHA,
    missed: float = MISSED,
    family: int | None = None,
) -> dict[str, Judgement]:
    """One look at the models of a call.

    Args:
        witnesses: the estimates of every model whose timing decides, by name.
        settled: the verdicts of earlier looks.
        tolerance: a change that certainly is below this share counts as none.
        alpha: this look's share of the false alarms allowed; all of them if it is the only one.
        missed: its share of `MISSED`.
        family: how many models the call has in all, where some of them could not be timed.

    Returns:
        The judgement of each model that was not settled before.
    """
    p_values = {name: _p_value(settled.get(name), evidence) for name, evidence in witnesses.items()}
    untimed = max(0, (family or 0) - len(p_values))
    steps = holm(p_values | {f"(not timed {number})": 1.0 for number in range(untimed)}, alpha)
    return {
        name: _judge_one(evidence, steps[name], missed, tolerance)
        for name, evidence in witnesses.items()
        if name not in settled
    }


def _p_value(verdict: Verdict | None, evidence: Witnesses) -> float:
    if verdict is None:
        return evidence.p_value
    return 0.0 if verdict in (Verdict.REGRESSED, Verdict.IMPROVED) else 1.0


def _judge_one(evidence: Witnesses, step: HolmStep, missed: float, tolerance: float) -> Judgement:
    wall, cpu, level = evidence.wall, evidence.cpu, step.level
    missed_level = 2 * missed  # of a two-sided interval
    if all(_within(each.interval(missed_level), tolerance) for each in (wall, cpu) if each is not None):
        verdict, reason, level = Verdict.UNCHANGED, f"the interval lies within ±{tolerance:.0%}", missed_level
    elif step.rejected and wall.log_ratio > 0:
        verdict, reason = Verdict.REGRESSED, "the interval lies above zero"
    elif step.rejected:
        verdict, reason = Verdict.IMPROVED, "the interval lies below zero"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, _why_inconclusive(evidence, level, missed_level, tolerance)
    low, high = wall.interval(level)
    return Judgement(
        verdict=verdict,
        change=math.expm1(wall.log_ratio),
        low=_finite_change(low),
        high=_finite_change(high),
        level=level,
        smallest_change=_finite_change(wall.smallest_change(step.level)),
        cpu_change=None if cpu is None else math.expm1(cpu.log_ratio),
        reason=reason,
    )


def _within(interval: tuple[float, float], tolerance: float) -> bool:
    margin = math.log1p(tolerance)
    return -margin <= interval[0] and interval[1] <= margin


def _why_inconclusive(evidence: Witnesses, level: float, missed_level: float, tolerance: float) -> str:
    wall, cpu = evidence.wall, evidence.cpu
    if wall.pairs < 2:
        return "one pair of processes tells nothing on how pairs differ: raise --budget"
    low, high = wall.interval(level)
    if cpu is not None and not low <= 0 <= high:
        return "wall time and process CPU time do not agree"
    if cpu is not None and _within(wall.interval(missed_level), tolerance):
        return f"the CPU time's interval is wider than ±{tolerance:.0%}"
    return f"the interval holds zero and reaches beyond ±{tolerance:.0%}: raise --budget, or quiet the machine"


def _finite_change(log_ratio: float) -> float | None:
    return math.expm1(log_ratio) if abs(log_ratio) < 700 else None  # the logarithm of the largest float
