"""From paired estimates to verdicts: regressed, improved, unchanged or inconclusive, over all models of one call.

False alarms are bounded over the whole call, whatever the number of models and of looks at the data:

- the data are looked at after `LOOKS` pairs and at the end, each look with a share of the error allowed, so that a
  call may stop early; the union of the looks keeps the bound;
- inside a look Holm's procedure corrects for the number of models; a model that an earlier look found changed hands its
  share on (Ye, Li, Liu and Yao 2013), one that was found unchanged does not;
- where there are two witnesses, wall time and process CPU time, a change needs both: the larger p-value counts, which
  needs no correction (an intersection-union test, Berger 1982).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bench.measure.paired import Estimate, holm

ALPHA = 0.01
"""The chance, over a whole call, that code which takes the same time is called regressed or improved."""
LOOKS: Mapping[int, float] = {5: 0.1, 8: 0.2, 11: 0.3}
"""After so many pairs the data are looked at, with this share of `ALPHA`; the last look has what is left."""
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

    ``low`` and ``high`` bound the change of the wall time at confidence ``1 - level``; ``smallest_change`` is what the
    measurement could have seen with probability 0.8. All three are None where there is no second pair to tell.
    ``cpu_change`` is the second witness's estimate.
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

    ``family`` is how many models the call has, those included that cannot be timed.
    """

    def __init__(self, family: int, tolerance: float) -> None:
        self.settled: dict[str, Judgement] = {}
        self._family = family
        self._tolerance = tolerance

    def look(self, pairs: int, witnesses: Mapping[str, Witnesses]) -> None:
        """Settle what can be settled after so many pairs, if that is one of `LOOKS`."""
        if pairs in LOOKS:
            judged = self._judge(witnesses, LOOKS[pairs])
            self.settled |= {name: each for name, each in judged.items() if each.verdict is not Verdict.INCONCLUSIVE}

    def look_last(self, witnesses: Mapping[str, Witnesses]) -> None:
        """Settle all."""
        self.settled |= self._judge(witnesses, LAST_SHARE)

    def _judge(self, witnesses: Mapping[str, Witnesses], share: float) -> dict[str, Judgement]:
        verdicts = {name: judgement.verdict for name, judgement in self.settled.items()}
        return judge(witnesses, verdicts, alpha=share * ALPHA, tolerance=self._tolerance, family=self._family)


def judge(
    witnesses: Mapping[str, Witnesses],
    settled: Mapping[str, Verdict],
    *,
    alpha: float,
    tolerance: float,
    family: int | None = None,
) -> dict[str, Judgement]:
    """One look at the models of a call.

    Args:
        witnesses: the estimates of every model whose timing decides, by name.
        settled: the verdicts of earlier looks.
        alpha: this look's share of the error allowed.
        tolerance: a change that certainly is below this share counts as none.
        family: how many models the call has in all, where some of them could not be timed.

    Returns:
        The judgement of each model that was not settled before.
    """
    p_values = {name: _p_value(settled.get(name), evidence) for name, evidence in witnesses.items()}
    untimed = max(0, (family or 0) - len(p_values))
    steps = holm(p_values | {f"(not timed {number})": 1.0 for number in range(untimed)}, alpha)
    return {
        name: _judge_one(evidence, steps[name].level, steps[name].rejected, tolerance)
        for name, evidence in witnesses.items()
        if name not in settled
    }


def _p_value(verdict: Verdict | None, evidence: Witnesses) -> float:
    if verdict is None:
        return evidence.p_value
    return 0.0 if verdict in (Verdict.REGRESSED, Verdict.IMPROVED) else 1.0


def _judge_one(evidence: Witnesses, level: float, rejected: bool, tolerance: float) -> Judgement:
    wall, cpu = evidence.wall, evidence.cpu
    low, high = wall.interval(level)
    within = all(_within(each.interval(level), tolerance) for each in (wall, cpu) if each is not None)
    if within:
        verdict, reason = Verdict.UNCHANGED, f"the interval lies within ±{tolerance:.0%}"
    elif rejected and wall.log_ratio > 0:
        verdict, reason = Verdict.REGRESSED, "the interval lies above zero"
    elif rejected:
        verdict, reason = Verdict.IMPROVED, "the interval lies below zero"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, _why_inconclusive(evidence, level, tolerance)
    smallest = wall.smallest_change(level)
    return Judgement(
        verdict=verdict,
        change=math.expm1(wall.log_ratio),
        low=_finite_change(low),
        high=_finite_change(high),
        level=level,
        smallest_change=_finite_change(smallest),
        cpu_change=None if cpu is None else math.expm1(cpu.log_ratio),
        reason=reason,
    )


def _within(interval: tuple[float, float], tolerance: float) -> bool:
    margin = math.log1p(tolerance)
    return -margin <= interval[0] and interval[1] <= margin


def _why_inconclusive(evidence: Witnesses, level: float, tolerance: float) -> str:
    wall, cpu = evidence.wall, evidence.cpu
    if wall.pairs < 2:
        return "one pair of processes tells nothing on how pairs differ: raise --budget"
    low, high = wall.interval(level)
    if cpu is not None and not low <= 0 <= high:
        return "wall time and process CPU time do not agree"
    if cpu is not None and _within((low, high), tolerance):
        return f"the CPU time's interval is wider than ±{tolerance:.0%}"
    return f"the interval holds zero and reaches beyond ±{tolerance:.0%}: raise --budget, or quiet the machine"


def _finite_change(log_ratio: float) -> float | None:
    return math.expm1(log_ratio) if abs(log_ratio) < 700 else None  # the logarithm of the largest float
