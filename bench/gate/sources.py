"""Where the models of a side come from: from its code, asked through a worker, or from a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from bench.errors import UserError
from bench.gate.baselines import Baseline, Found
from bench.gate.exact import Counts, counter_digest
from bench.gate.result import ModelResult, Status
from bench.gate.revisions import Side, parse_subject
from bench.gate.timing.process import Worker, WorkerError
from bench.gate.timing.reference import OPERATORS, Workload
from bench.gate.timing.subject import Setting


class LiveSource:
    """A side whose code is there. Raises `UserError` at once if it names a model that its zoo lacks."""

    def __init__(self, side: Side, worker: Worker, setting: Setting) -> None:
        self.origin, self.environment, self.counter = side, worker.environment, counter_digest()
        self._worker, self._setting = worker, setting
        if side.model is not None:
            for message in self._resolve([side.model.model])[1].values():
                raise UserError(message)

    def find(self, patterns: Sequence[str]) -> Found:
        """What names and wildcards stand for; any name is that of the model that the side names, if it names one."""
        if self.origin.model is not None:
            return {pattern: [pattern] for pattern in patterns}, {}
        models = {each: each if each.startswith("@") else parse_subject(each).model for each in patterns}
        found, unknown = self._resolve(list(dict.fromkeys(models.values())))
        # Options stay part of the name; the zoo of an old revision need not know of them.
        names = {each: [name + each[len(model) :] for name in found[model]] for each, model in models.items()}
        return names, {each: unknown[model] for each, model in models.items() if model in unknown}

    def lacks(self, names: Sequence[str]) -> set[str]:
        """Those that its zoo does not know."""
        return set(self.find(names)[1])

    def count(self, name: str) -> Counts:
        """By our code, whatever the side brings along.

        Raises `bench.gate.timing.process.WorkerError` where the model cannot be built or take such images.
        """
        return Counts.of(self._worker.ask("count", subject=self.origin.subject(name).to_worker(self._setting)))

    def measure_memory(self, name: str, batch_size: int) -> int | None:
        """The peak bytes of a step on ``batch_size`` images; None where that cannot be observed.

        Raises `bench.gate.timing.process.WorkerError` where the model does not run.
        """
        subject = self.origin.subject(name).to_worker(self._setting, batch_size)
        peak: int | None = self._worker.ask("measure_memory", subject=subject)["peak_bytes"]
        return peak

    def record_workload(self, name: str, batch_size: int) -> Workload:
        """What a step of the model on ``batch_size`` images computes.

        Raises `bench.gate.timing.process.WorkerError` where the model does not run.
        """
        subject = self.origin.subject(name).to_worker(self._setting, batch_size)
        return self._worker.ask("record", subject=subject, operators=sorted(OPERATORS))

    def _resolve(self, patterns: Sequence[str]) -> Found:
        try:
            answer = self._worker.ask("resolve", root=self.origin.root, patterns=list(patterns))
        except WorkerError as error:
            raise UserError(f"the zoo of {self.origin.name} cannot be read: {error}.") from error
        return answer["names"], answer["unknown"]


Source = LiveSource | Baseline
"""One side of a comparison, which has models by name and their exact counts."""


def match_models(base: Source | None, head: Source, patterns: Sequence[str]) -> tuple[list[ModelResult], list[str]]:
    """Results for the names that one side lacks, and the names that both have.

    Where both sides name a model, these two are one entry. Raises `UserError` for a plain name that neither side
    knows, and where nothing matches.
    """
    if head.origin.model is not None:
        if base is not None and base.origin.model is not None:
            same = base.origin.model.model == head.origin.model.model
            return [], [head.origin.name if same else f"{base.origin.name} → {head.origin.name}"]
        known = base is None or not base.lacks([head.origin.name])
        patterns = [head.origin.name if known else head.origin.model.model]
    sources = [source for source in (base, head) if source is not None]
    if not patterns:
        stored = [source.entries for source in sources if isinstance(source, Baseline)]
        patterns = list(dict.fromkeys(name for entries in stored for name in entries))
    found = [source.find(patterns) for source in sources]
    for pattern in patterns:
        if all(pattern in unknown for _, unknown in found):
            raise UserError(found[-1][1][pattern])
    wanted = list(dict.fromkeys(name for names, _ in found for matched in names.values() for name in matched))
    if not wanted:
        raise UserError(f"no model matches --models {','.join(patterns)}. `zoobench list` shows all names.")
    # A pattern may leave a name out on one side that is there all the same: what represents its family may change.
    lacking = [source.lacks(wanted) for source in sources]
    results: list[ModelResult] = []
    statuses: tuple[Status, Status] = ("new", "missing")
    for status, source, names in zip(statuses[-len(sources) :], sources, lacking, strict=True):
        what = "entry" if isinstance(source, Baseline) else "model"
        detail = f"{source.origin.name} has no {what} of this name"
        results += [ModelResult(name, status, detail) for name in wanted if name in names]
    return results, [name for name in wanted if not any(name in names for names in lacking)]
