"""Two measurements of different times, each relative to the same reference workload: their ratio, and who judges it.

Inside a session the noise of the ratio is what its pairs show. Between two sessions there is more, which no session can
see: the machine favours the reference over the network a little more or less on another day. `SESSION_SPREAD` stands
for that, and is added to the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from bench.measure.paired import Estimate
from bench.measure.verdicts import Judgement, Jury, Verdict, Witnesses, judge

SESSION_SPREAD = 0.02
"""The standard deviation, from session to session, of the log-ratio of one network's time to the reference's.

For an otherwise idle machine, and on the safe side of what was found on ours: 0.3% for two networks and 1.1% for a
third, at most 2.1% (`tests/perf/session_spread.py`, results/session_spread.json); and ten networks against their
baseline of nine minutes before differed by 1.9%, root mean square, which is 1.4% a session
(results/baseline_comparison.json).
"""
INSIDE_SPREAD = 0.01
"""The same where the networks live in one process, that of somebody's tests: 0 to 0.7% there, at most 1.3%."""
PAST_TOLERANCE = 0.1
"""The change that counts as none against the past, if nobody says: with such a spread 5% could not be told from 0."""


def relate(base: Witnesses, head: Witnesses, session_spread: float = SESSION_SPREAD) -> Witnesses:
    """The change from base's session to head's, where each was measured relative to the same thing."""
    cpu = None
    if base.cpu is not None and head.cpu is not None:
        cpu = subtract(head.cpu, base.cpu, session_spread)
    return Witnesses(subtract(head.wall, base.wall, session_spread), cpu)


def subtract(head: Estimate, base: Estimate, session_spread: float = SESSION_SPREAD) -> Estimate:
    """Head's log-ratio less base's, which are independent.

    The variances add up, with that of either session; the degrees of freedom are Welch's, and the spread of sessions
    counts as known. An estimate of one pair has no variance, so the difference has none either.
    """
    pairs, quads = min(head.pairs, base.pairs), head.quads + base.quads
    log_ratio = head.log_ratio - base.log_ratio
    if math.isinf(head.standard_error) or math.isinf(base.standard_error):
        return Estimate(log_ratio, math.inf, 0.0, pairs, quads)
    variances = [each.standard_error**2 for each in (head, base)]
    total = sum(variances) + 2 * session_spread**2
    uncertain = sum(
        variance**2 / each.degrees for variance, each in zip(variances, (head, base), strict=True) if variance > 0
    )
    degrees = total**2 / uncertain if uncertain > 0 else head.degrees + base.degrees
    return Estimate(log_ratio, math.sqrt(total), degrees, pairs, quads)


def judge_sessions(
    base: Mapping[str, Witnesses], head: Mapping[str, Witnesses], *, tolerance: float, session_spread: float
) -> dict[str, Judgement]:
    """Verdicts where both sides are measured already, in one look."""
    witnesses = {name: relate(base[name], head[name], session_spread) for name in head}
    return judge(witnesses, {}, tolerance=tolerance)


class PastJury(Jury):
    """Judges a head that is being measured against a past that is known, both relative to the reference workload.

    Only a change is settled early: most of the error lies between the sessions, which no further pair makes smaller,
    so that looks on the way to ``unchanged`` would cost certainty and save nothing.
    """

    early = (Verdict.REGRESSED, Verdict.IMPROVED)

    def __init__(self, past: Mapping[str, Witnesses], tolerance: float, session_spread: float = SESSION_SPREAD) -> None:
        super().__init__(len(past), tolerance)
        self._past, self._session_spread = past, session_spread

    def look(self, pairs: int, witnesses: Mapping[str, Witnesses]) -> None:
        """As `Jury.look`, at the change since."""
        super().look(pairs, self._changes(witnesses))

    def look_last(self, witnesses: Mapping[str, Witnesses]) -> None:
        """As `Jury.look_last`, at the change since."""
        super().look_last(self._changes(witnesses))

    def _changes(self, witnesses: Mapping[str, Witnesses]) -> dict[str, Witnesses]:
        return {name: relate(self._past[name], each, self._session_spread) for name, each in witnesses.items()}


class PatientJury(Jury):
    """Settles nothing, so that all pairs are measured: a baseline has no one to be compared with yet."""

    def __init__(self) -> None:
        super().__init__(0, 1.0)

    def look(self, pairs: int, witnesses: Mapping[str, Witnesses]) -> None:
        """Not yet."""

    def look_last(self, witnesses: Mapping[str, Witnesses]) -> None:
        """Not here."""
