"""`zoobench compare`: two sides, exact gates first, then paired timing, then one verdict for each model.

The sides are opened by `bench.measure.sides`; their models are matched by name, counted by the same code
(`bench.measure.gates`), and where the counts allow it timed in turn (`bench.measure.rounds`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.errors import UserError
from bench.measure.duet import Lane, Setting, WorkerError, WorkerProcess
from bench.measure.gates import COMPLEXITY, Difference, find_differences
from bench.measure.rounds import Contest, Timing, measure_rounds
from bench.measure.sides import Side, open_sides
from bench.measure.verdicts import Judgement, Verdict
from bench.measure.worktrees import ended_by_signals

STEP_MACS = 200_000_000
"""What a step is aimed at on a CPU: a few milliseconds on one thread, so that blocks stay short."""
MAX_CPU_BATCH = 32
GPU_BATCH = 128
COMPARED: tuple[str, ...] = ("python", "torch", "torchvision", "timm", "cuda", "device", "processor", "threads")
COMPARED += ("cpu", "cores", "system", "process")
"""The second row is known where something measured at another time is compared with."""

Status = Literal["regressed", "improved", "unchanged", "inconclusive", "changed", "missing", "new", "failed"]

EXIT_CODES: Mapping[str, int] = {
    "environment": 13,
    "missing": 12,
    "changed": 15,
    "regressed": 10,
    "nothing": 14,
    "inconclusive": 11,
}
"""What may fail a call, with its exit code, the first that applies first."""


@dataclass(frozen=True)
class CompareOptions:
    """What a call asks for besides its sides. ``batch_size`` None chooses one for each model by its MACs."""

    models: Sequence[str] = ("@representative",)
    setting: Setting = field(default_factory=Setting)
    budget_seconds: float = 60.0
    batch_size: int | None = None
    tolerance: float = 0.05
    force: bool = False


@dataclass(frozen=True)
class ModelResult:
    """What the comparison of one model came to.

    ``differences`` are those of the exact gates, ``timing`` what was measured, if anything; ``detail`` says why not.
    ``figures`` are further numbers, by keys that end with their unit.
    """

    model: str
    status: Status
    detail: str = ""
    differences: tuple[Difference, ...] = ()
    timing: Timing | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judgement(self) -> Judgement | None:
        """The verdict with its evidence, None where the timing did not decide."""
        return self.timing.judgement if self.timing is not None else None


@dataclass(frozen=True)
class Comparison:
    """The outcome of a call.

    ``environments`` are those of base and head; where ``environment_differences`` is not empty and ``forced`` is
    false, nothing was measured. ``notes`` are sentences that belong in every summary.
    """

    base: Side
    head: Side
    options: CompareOptions
    environments: tuple[Mapping[str, Any], Mapping[str, Any]]
    environment_differences: tuple[str, ...]
    forced: bool
    results: tuple[ModelResult, ...]
    notes: tuple[str, ...] = ()

    def failures(self) -> list[str]:
        """Which keys of `EXIT_CODES` apply, in that order."""
        statuses = {result.status for result in self.results}
        refused = bool(self.environment_differences) and not self.forced
        applies = {
            "environment": refused,
            "missing": bool(statuses & {"missing", "new"}),
            "changed": "changed" in statuses,
            "regressed": "regressed" in statuses,
            "nothing": "failed" in statuses or (not self.results and not refused),
            "inconclusive": "inconclusive" in statuses,
        }
        return [name for name in EXIT_CODES if applies[name]]

    def exit_code(self, fail_on: Iterable[str] = tuple(EXIT_CODES)) -> int:
        """0, or the code of the first failure that is among ``fail_on``."""
        wanted = set(fail_on)
        return next((EXIT_CODES[name] for name in self.failures() if name in wanted), 0)


def compare(
    base: str, head: str, options: CompareOptions, tell: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Compare what ``base`` and ``head`` name (see `bench.measure.sides`); ``tell`` is told how it goes.

    However the call ends, its processes end with it and its worktrees are removed.

    Raises:
        UserError: a side, a model or an option that is not possible; also the zoo's own error, as a `UserError`.
    """
    with ended_by_signals(), open_sides(base, head) as (base_side, head_side):
        return compare_sides(base_side, head_side, options, tell)


def compare_sides(
    base: Side, head: Side, options: CompareOptions, tell: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Compare two sides whose code is there."""
    with contextlib.ExitStack() as stack:
        tell("counting")
        workers = {
            interpreter: stack.enter_context(WorkerProcess(interpreter, options.setting))
            for interpreter in dict.fromkeys((base.interpreter, head.interpreter))
        }
        for worker in workers.values():
            worker.wait()
        inspectors = Inspector(base, workers[base.interpreter]), Inspector(head, workers[head.interpreter])
        environments = inspectors[0].environment, inspectors[1].environment
        differing = compare_environments(*environments)
        options = replace(options, setting=replace(options.setting, device=environments[0]["device"]))
        results: list[ModelResult] = []
        contests: list[Contest] = []
        gated: dict[str, tuple[Difference, ...]] = {}
        if options.force or not differing:
            results, contests, gated = _pass_gates(inspectors, options)
    # The processes above are gone: their memory, and what they had imported, are not of the measurement.
    timings = measure_rounds(
        contests,
        options.setting,
        budget_seconds=options.budget_seconds,
        tolerance=options.tolerance,
        tell=tell,
    )
    results += [result_of(timing, gated.get(timing.contest.name, ())) for timing in timings]
    return Comparison(
        base=base,
        head=head,
        options=options,
        environments=environments,
        environment_differences=differing,
        forced=options.force,
        results=tuple(results),
    )


def compare_environments(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between two environments of which times could only be compared if nothing did."""
    return tuple(f"{key} {before.get(key)} → {after.get(key)}" for key in COMPARED if before.get(key) != after.get(key))


def choose_batch_size(macs: int, setting: Setting) -> int:
    """A power of two that keeps a step of a network of ``macs`` short on a CPU and a GPU busy.

    Training has three times the work of inference, and batch norm needs two images.
    """
    if setting.device != "cpu":
        return GPU_BATCH
    per_image = max(1, macs * (3 if setting.mode == "train" else 1))
    fitting = max(1, STEP_MACS // per_image)
    least = 2 if setting.mode == "train" else 1
    return int(max(least, min(MAX_CPU_BATCH, 2 ** (fitting.bit_length() - 1))))


class Inspector:
    """Asks one side which models it has and what they count."""

    def __init__(self, side: Side, worker: WorkerProcess) -> None:
        self.side = side
        self.environment = worker.environment
        self._worker = worker

    def resolve(self, patterns: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
        """The names that each pattern stands for, and what the zoo says of plain names that it does not know."""
        try:
            answer = self._worker.ask("resolve", root=self.side.root, patterns=list(patterns))
        except WorkerError as error:
            raise UserError(f"the zoo of {self.side.name} cannot be read: {error}.") from error
        return answer["names"], answer["unknown"]

    def count(self, model: str, setting: Setting) -> dict[str, Any]:
        """The exact counts of a model. Raises `WorkerError` where it cannot be built or take such images."""
        return self.count_lane(self.side.lane(model), setting)

    def count_lane(self, lane: Lane, setting: Setting) -> dict[str, Any]:
        """As `count`, of a lane of the side."""
        return self._worker.ask(
            "count",
            root=self.side.root,
            complexity=str(COMPLEXITY),
            model=lane.model,
            options=lane.options,
            shape={"input_size": setting.input_size, "num_classes": setting.num_classes},
        )


def _pass_gates(
    inspectors: tuple[Inspector, Inspector], options: CompareOptions
) -> tuple[list[ModelResult], list[Contest], dict[str, tuple[Difference, ...]]]:
    """What is decided without timing, what is to be timed, and what differs among the latter."""
    base, head = (inspector.side for inspector in inspectors)
    named = base.spec is not None and head.spec is not None
    if base.spec is not None and head.spec is not None:
        for inspector in inspectors:
            unknown = inspector.resolve([inspector.side.lane("").model])[1]
            if unknown:
                raise UserError(next(iter(unknown.values())))
        same = base.spec.model == head.spec.model
        results: list[ModelResult] = []
        names = [head.name if same else f"{base.name} → {head.name}"]
    else:
        results, names = match_models(inspectors, options.models)
    contests: list[Contest] = []
    gated: dict[str, tuple[Difference, ...]] = {}
    for name in names:
        try:
            before, after = (inspector.count(name, options.setting) for inspector in inspectors)
        except WorkerError as error:
            if named:
                raise UserError(f"{name}: {error}") from error
            results.append(ModelResult(name, "failed", str(error)))
            continue
        differences = find_differences(before, after)
        if differences and not named:
            results.append(ModelResult(name, "changed", "the model itself changed", differences))
            continue
        gated[name] = differences
        batch_size = options.batch_size or choose_batch_size(max(before["macs"], after["macs"]), options.setting)
        contests.append(Contest(name, (base.lane(name), head.lane(name)), batch_size))
    return results, contests, gated


def match_models(
    inspectors: tuple[Inspector, Inspector], patterns: Sequence[str]
) -> tuple[list[ModelResult], list[str]]:
    """Results for the names that one side lacks, and the names that both have.

    Raises `UserError` for a plain name that neither side knows, and where nothing matches.
    """
    resolved = [inspector.resolve(patterns) for inspector in inspectors]
    for pattern in patterns:
        if all(pattern in unknown for _, unknown in resolved):
            raise UserError(resolved[1][1][pattern])
    wanted = list(dict.fromkeys(name for names, _ in resolved for found in names.values() for name in found))
    if not wanted:
        raise UserError(f"no model matches --models {','.join(patterns)}. `zoobench list` shows all names.")
    # A pattern may leave a name out on one side that is there all the same: what represents its family may change.
    base_lacks, head_lacks = (inspector.resolve(wanted)[1].keys() for inspector in inspectors)
    results = [
        ModelResult(name, "missing", f"{inspectors[1].side.name} has no model of this name")
        if name in head_lacks
        else ModelResult(name, "new", f"{inspectors[0].side.name} has no model of this name")
        for name in wanted
        if name in head_lacks or name in base_lacks
    ]
    return results, [name for name in wanted if name not in base_lacks and name not in head_lacks]


def result_of(timing: Timing, differences: tuple[Difference, ...]) -> ModelResult:
    """What was timed and judged, as a result; ``differences`` are those that were told and did not decide."""
    name = timing.contest.name
    if timing.failure is not None or timing.judgement is None:
        detail = timing.failure or "no pair fitted into the budget: raise --budget"
        return ModelResult(name, "failed", detail, differences, timing)
    verdict: Verdict = timing.judgement.verdict
    return ModelResult(name, verdict.value, timing.judgement.reason, differences, timing)
