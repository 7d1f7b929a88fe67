"""From paired estimates to verdicts over all models of one call. What each verdict means is defined here and only here.

A change is *certain* if the test for it rejects that both sides take the same time; it is *small* if it certainly is
smaller than the tolerance. Two tests, four combinations, the first two by direction:

================ ==================================== ===========================================
verdict          change                               so its interval
================ ==================================== ===========================================
``regressed``    certain, may be as large as matters  lies above zero and reaches the tolerance
``slower``       certain and small                    lies between zero and the tolerance
``improved``     as ``regressed``, the other way      lies below zero and reaches minus the tolerance
``faster``       as ``slower``, the other way         lies between minus the tolerance and zero
``unchanged``    not certain, and small               lies within the tolerance on either side
``inconclusive`` neither                              holds zero and reaches the tolerance
================ ==================================== ===========================================

- Code that takes the same time is called changed with probability `ALPHA` at most over a whole call, whatever the
  number of models (Holm) and of looks at the data. Each look spends a share of that, the last what is left; a change
  that an earlier look found hands its share on (Ye, Li, Liu and Yao 2013).
- A change as large as the tolerance is called small with probability `MISSED` at most, for each model over its looks:
  two one-sided tests (Schuirmann 1987). More models make that no likelier for one of them.
- Where process CPU time is measured beside wall time, a change needs both: the larger p-value counts, which needs no
  correction (an intersection-union test, Berger 1982). So does ``unchanged``. How large a certain change is, the wall
  time alone says, whose interval is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bench.gate.statistics.paired import Estimate, holm_levels

ALPHA = 0.002
"""The chance, over a whole call, that code which takes the same time is called changed: well below the 1% that an
experiment of some hundred comparisons can show, at the price of a pair or two."""
MISSED = 0.05
"""The chance, for each model, that a change of the tolerance or more is called small."""
LOOKS: Mapping[int, float] = {5: 0.1, 8: 0.2, 11: 0.3}
"""The data are looked at after this many pairs, with this share of either chance; the last look takes the rest."""
SUSPECTED = 0.1
"""No look before the last settles ``unchanged`` at a smaller p-value: a small change may still become certain."""


class Verdict(StrEnum):
    """What the timing of one model says; see the module's docstring."""

    REGRESSED = "regressed"
    SLOWER = "slower"
    UNCHANGED = "unchanged"
    FASTER = "faster"
    IMPROVED = "improved"
    INCONCLUSIVE = "inconclusive"


LARGE = frozenset({Verdict.REGRESSED, Verdict.IMPROVED})
CHANGED = LARGE | {Verdict.SLOWER, Verdict.FASTER}


@dataclass(frozen=True)
class Clocks:
    """The change by either clock: ``wall``, and ``cpu`` (process CPU time) where that measures the same work."""

    wall: Estimate
    cpu: Estimate | None = None

    @property
    def p_value(self) -> float:
        """For a change on which both clocks agree, in size and in direction."""
        if self.cpu is None:
            return self.wall.p_value
        if self.wall.log_ratio * self.cpu.log_ratio < 0:
            return 1.0
        return max(self.wall.p_value, self.cpu.p_value)


@dataclass(frozen=True)
class Judgement:
    """A verdict with its evidence. Changes are of head's time relative to base's: 0.05 is 5% slower.

    ``low`` and ``high`` bound the change of the wall time at confidence ``1 - level``, on which the verdict rests;
    ``detectable`` is the change that the measurement would have found with probability 0.8. All three are None where
    there is only one pair. ``cpu_change`` is the estimate by process CPU time.
    """

    verdict: Verdict
    change: float
    low: float | None
    high: float | None
    level: float
    detectable: float | None
    cpu_change: float | None
    reason: str


class SequentialTest:
    """Judges the models of a call at every look, and keeps what is settled.

    Args:
        models: how many the call has, including those that cannot be timed.
        tolerance: a change below this share does not matter.
        settles_small: whether looks before the last may settle that a change is small. Where most of the error would
            be the same with more pairs, such looks cost certainty and save nothing.
    """

    def __init__(self, models: int, tolerance: float, *, settles_small: bool = True) -> None:
        self.settled: dict[str, Judgement] = {}
        self._models, self._tolerance, self._settles_small = models, tolerance, settles_small
        self._spent = 0.0

    def look(self, pairs: int, clocks: Mapping[str, Clocks]) -> None:
        """Settle what can be settled after that many pairs, if it is one of `LOOKS`."""
        if pairs in LOOKS:
            self._spent += LOOKS[pairs]
            judged = self._judge(clocks, LOOKS[pairs])
            self.settled |= {name: each for name, each in judged.items() if self._is_clear(each, clocks[name].p_value)}

    def look_last(self, clocks: Mapping[str, Clocks]) -> None:
        """Settle everything, with all of the error that no earlier look has spent."""
        self.settled |= self._judge(clocks, 1.0 - self._spent)

    def _is_clear(self, judgement: Judgement, p_value: float) -> bool:
        """Whether more pairs would hardly change the verdict; what is settled early must not depend on the noise.

        A certain change whose estimate is below the tolerance may still turn out to be small.
        """
        if judgement.verdict in LARGE:
            return abs(math.log1p(judgement.change)) >= math.log1p(self._tolerance)
        certain = judgement.verdict in CHANGED or (judgement.verdict is Verdict.UNCHANGED and p_value >= SUSPECTED)
        return self._settles_small and certain

    def _judge(self, clocks: Mapping[str, Clocks], share: float) -> dict[str, Judgement]:
        return judge(
            clocks,
            {name: judgement.verdict for name, judgement in self.settled.items()},
            tolerance=self._tolerance,
            alpha=share * ALPHA,
            missed=(share if self._settles_small else 1.0) * MISSED,
            models=self._models,
        )


def judge(
    clocks: Mapping[str, Clocks],
    settled: Mapping[str, Verdict],
    *,
    tolerance: float,
    alpha: float = ALPHA,
    missed: float = MISSED,
    models: int = 0,
) -> dict[str, Judgement]:
    """One look at the models of a call.

    Args:
        clocks: the estimates of every model that was timed, by name.
        settled: the verdicts of earlier looks.
        tolerance: a change that certainly is below this share does not matter.
        alpha: this look's part of `ALPHA`.
        missed: its part of `MISSED`.
        models: how many models the call has in all, where some of them could not be timed.

    Returns:
        The judgement of each model that was not settled before.
    """
    p_values = {f"(not timed {number})": 1.0 for number in range(models - len(clocks))}
    for name, each in clocks.items():
        p_values[name] = each.p_value if name not in settled else 0.0 if settled[name] in CHANGED else 1.0
    levels = holm_levels(p_values, alpha)
    return {
        name: _judge_one(each, levels[name], missed, tolerance) for name, each in clocks.items() if name not in settled
    }


def format_level(level: float) -> str:
    """``0.01`` to ``99%``: the confidence of an interval at that level."""
    return f"{100 * (1 - level):.4g}%"


def _judge_one(clocks: Clocks, holm_level: float, missed: float, tolerance: float) -> Judgement:
    wall, cpu = clocks.wall, clocks.cpu
    small_level = 2 * missed  # two one-sided tests are one two-sided interval
    small = _within(wall.interval(small_level), tolerance)
    if clocks.p_value > holm_level and cpu is not None:  # how large a certain change is, wall time alone says
        small = small and _within(cpu.interval(small_level), tolerance)
    level = small_level if small else holm_level
    slower, change, shown = wall.log_ratio > 0, math.expm1(wall.log_ratio), f"{100 * tolerance:.3g}%"
    interval = f"the {format_level(level)} interval"
    if clocks.p_value > holm_level:
        verdict = Verdict.UNCHANGED if small else Verdict.INCONCLUSIVE
        reason = (
            f"{interval} lies within ±{shown}" if small else _why_inconclusive(clocks, level, small_level, tolerance)
        )
    elif small:
        verdict = Verdict.SLOWER if slower else Verdict.FASTER
        reason = f"{verdict} by {abs(change):.1%}, within the tolerance of {shown}"
    else:
        verdict = Verdict.REGRESSED if slower else Verdict.IMPROVED
        reason = f"{interval} lies " + (
            f"above zero and reaches {shown}" if slower else f"below zero and reaches -{shown}"
        )
    low, high = wall.interval(level)
    return Judgement(
        verdict=verdict,
        change=change,
        low=_finite_change(low),
        high=_finite_change(high),
        level=level,
        detectable=_finite_change(wall.detectable(holm_level)),
        cpu_change=None if cpu is None else math.expm1(cpu.log_ratio),
        reason=reason,
    )


def _within(interval: tuple[float, float], tolerance: float) -> bool:
    margin = math.log1p(tolerance)
    return -margin < interval[0] and interval[1] < margin


def _why_inconclusive(clocks: Clocks, level: float, small_level: float, tolerance: float) -> str:
    wall, shown = clocks.wall, f"±{100 * tolerance:.3g}%"
    low, high = wall.interval(level)
    if wall.pairs < 2:
        return "a single pair or session does not show how much they differ"
    if clocks.cpu is not None and not low <= 0 <= high:
        return "wall time and process CPU time disagree"
    if clocks.cpu is not None and _within(wall.interval(small_level), tolerance):
        return f"by process CPU time, the interval does not lie within {shown}"
    return f"the {format_level(level)} interval holds zero and does not lie within {shown}"


def _finite_change(log_ratio: float) -> float | None:
    return math.expm1(log_ratio) if abs(log_ratio) < 700 else None  # the logarithm of the largest float
