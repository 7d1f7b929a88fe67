"""The result of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.cuda_graph import launch_bound
from bench.gate.exact import Counts, Difference
from bench.gate.memory import Memory
from bench.gate.revisions import Side
from bench.gate.statistics.verdicts import Judgement, Verdict
from bench.gate.timing.reference import Workload
from bench.gate.timing.sample import PairSample, launch_share
from bench.gate.timing.subject import Setting

Status = Verdict | Literal["changed", "missing", "new", "failed", "measured"]
"""A verdict of the timing, or why there is none; ``measured`` is what was timed without a base."""

EXIT_CODES: Mapping[str, int] = {
    "environment": 13,
    "missing": 12,
    "changed": 15,
    "regressed": 10,
    "memory": 16,
    "nothing": 14,
    "inconclusive": 11,
}
"""What can fail a call, with its exit code; the first that applies counts."""
FAIL_ON: Sequence[str] = tuple(name for name in EXIT_CODES if name != "inconclusive")
"""What does fail it if nobody says: a gate must not cry wolf."""
FAILURE_OF: Mapping[str, str] = {
    "missing": "missing",
    "new": "missing",
    "changed": "changed",
    "regressed": "regressed",
    "failed": "nothing",
    "inconclusive": "inconclusive",
}
"""What a model's status makes fail."""


@dataclass(frozen=True)
class CompareOptions:
    """What a call asks for besides its sides. ``batch_size`` None chooses one for each model by its MACs.

    A peak of memory that grew by more than ``memory_tolerance`` fails; None does not measure it.
    ``decide`` is what gives the verdicts: the exact counts and, where they are equal, the timing; the timing whatever
    the counts are; or the counts alone, without timing.
    """

    models: Sequence[str] = ("@representative",)
    setting: Setting = field(default_factory=Setting)
    budget_seconds: float = 60.0
    batch_size: int | None = None
    tolerance: float = 0.05
    memory_tolerance: float | None = 0.05
    force: bool = False
    decide: Literal["both", "timing", "counts"] = "both"


@dataclass(frozen=True)
class ModelResult:
    """The result for one model.

    ``differences`` are those of the exact gates; ``judgement`` is None where the timing did not decide, and ``detail``
    then says why. ``pairs`` are what was timed, in ``seconds``. ``step_ms`` are the median milliseconds of a step of
    base and head, ``reference_step_ms`` those of the ``workload`` beside them, where that is not base. ``counts`` and
    ``peak_memory_bytes`` are head's; ``memory`` is None where one side's is not known. ``accepted`` are the failures
    that were known and fail nothing, each with what accepts it (`bench.gate.accepted`).
    """

    model: str
    status: Status
    detail: str = ""
    differences: tuple[Difference, ...] = ()
    judgement: Judgement | None = None
    batch_size: int | None = None
    pairs: tuple[PairSample, ...] = ()
    seconds: float = 0.0
    step_ms: tuple[float, float] | None = None
    reference_step_ms: tuple[float, float] | None = None
    workload: Workload | None = None
    counts: Counts | None = None
    peak_memory_bytes: int | None = None
    memory: Memory | None = None
    accepted: Mapping[str, str] = field(default_factory=dict)

    @property
    def launch_bound(self) -> str | None:
        """That launching kernels took the time, in words; None where it did not, or there is no GPU."""
        return launch_bound(launch_share(self.pairs), self.batch_size)


@dataclass(frozen=True)
class Comparison:
    """The result of a call.

    ``environments`` are `bench.machine.Environment` of base and head; where ``environment_differences`` is not empty
    and ``options.force`` is false, nothing was measured. ``notes`` are sentences that belong in every summary;
    ``remedy`` is what an inconclusive result needs, if it is not more time.
    """

    base: Side
    head: Side
    options: CompareOptions
    environments: tuple[Mapping[str, Any], Mapping[str, Any]]
    environment_differences: tuple[str, ...]
    results: tuple[ModelResult, ...]
    notes: tuple[str, ...] = ()
    remedy: str | None = None

    @property
    def grown(self) -> list[ModelResult]:
        """Those whose peak memory grew by more than the tolerance."""
        return [each for each in self.results if self._grew(each)]

    def _grew(self, result: ModelResult) -> bool:
        tolerance = self.options.memory_tolerance
        return tolerance is not None and result.memory is not None and result.memory.grew(tolerance)

    def failures_of(self, result: ModelResult) -> list[str]:
        """Which keys of `EXIT_CODES` one model gives, accepted ones included."""
        of_status = FAILURE_OF.get(result.status)
        return [*([of_status] if of_status else []), *(["memory"] if self._grew(result) else [])]

    def failures(self) -> list[str]:
        """Which keys of `EXIT_CODES` apply, in that order; not those that are accepted."""
        found = {name for result in self.results for name in self.failures_of(result) if name not in result.accepted}
        if self.environment_differences and not self.options.force:
            found.add("environment")
        elif not self.results:
            found.add("nothing")
        return [name for name in EXIT_CODES if name in found]

    def exit_code(self, fail_on: Iterable[str] = FAIL_ON) -> int:
        """0, or the code of the first failure that is among ``fail_on``."""
        wanted = set(fail_on)
        return next((EXIT_CODES[name] for name in self.failures() if name in wanted), 0)
