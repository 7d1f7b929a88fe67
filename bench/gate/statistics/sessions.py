"""Measurements of different times, each relative to the same operators: their ratio and its error.

Within a session the noise of the ratio is what its pairs show. Between two sessions there is more, which no session can
see: the machine favours the operators over the network a little more or less on another day. `SESSION_SPREAD` stands
for that and is added to the error.
"""

from __future__ import annotations

import math

from bench.gate.statistics.paired import Estimate
from bench.gate.statistics.verdicts import Clocks

SESSION_SPREAD = 0.01
"""The standard deviation, from session to session, of the log-ratio of one network's time to that of its operators.

In results/session_spread.json, six sessions of ten networks on a machine with contending neighbours, what the networks
have in common of it is at most 0.7% in processes of their own and 0.8% in the tests' (95%)."""


def session_ratio(base: Clocks, head: Clocks, spread: float = SESSION_SPREAD) -> Clocks:
    """The change from base's session to head's, where each was measured relative to the same thing."""
    cpu = None
    if base.cpu is not None and head.cpu is not None:
        cpu = subtract(head.cpu, base.cpu, spread)
    return Clocks(subtract(head.wall, base.wall, spread), cpu)


def subtract(head: Estimate, base: Estimate, spread: float = SESSION_SPREAD) -> Estimate:
    """Head's log-ratio less base's, which are independent.

    The variances add up, with that of either session; the degrees of freedom are Welch's, where the spread of sessions
    counts as known. An estimate from one pair has no variance, so the difference has none either.
    """
    pairs, log_ratio = min(head.pairs, base.pairs), head.log_ratio - base.log_ratio
    if math.isinf(head.standard_error) or math.isinf(base.standard_error):
        return Estimate(log_ratio, math.inf, 0.0, pairs)
    total = head.standard_error**2 + base.standard_error**2 + 2 * spread**2
    uncertain = sum(each.standard_error**4 / each.degrees for each in (head, base))
    degrees = total**2 / uncertain if uncertain > 0 else head.degrees + base.degrees
    return Estimate(log_ratio, math.sqrt(total), degrees, pairs)
