"""Which commit made a model slower: the paired gate at each midpoint of the history between a good and a bad commit.

Every commit is compared with the good one, so that drifts too small to matter do not hide the one that matters; the
culprit is compared with its parent at the end. git picks the midpoints (``git rev-list --bisect-all``), also where the
history branches.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.errors import UserError
from bench.gate.compare import compare
from bench.gate.result import CompareOptions, Comparison, ModelResult
from bench.gate.statistics.verdicts import format_level
from bench.gate.summary import result_to_dict
from bench.gate.worktrees import RevisionError, find_repository, resolve_commit, run_git

MAX_DOUBLINGS = 2
"""How often an inconclusive commit is measured again, each time with twice the budget, before it is left out."""

Outcome = Literal["good", "bad", "inconclusive", "skipped"]
Verdict = Literal["found", "inconclusive", "nothing"]
EXIT_CODES: dict[Verdict, int] = {"found": 0, "inconclusive": 11, "nothing": 14}


@dataclass(frozen=True)
class Commit:
    """A commit: its full hash, its author's date (ISO 8601), and the first line of its message."""

    sha: str
    date: str
    subject: str

    def __str__(self) -> str:
        return f"{self.sha[:12]} {self.date[:10]} {self.subject}"


@dataclass(frozen=True)
class Trial:
    """A commit that was compared with the good one.

    ``results`` are those that gave the outcome; ``detail`` says why there are none. ``budget_seconds`` is the last.
    """

    commit: Commit
    outcome: Outcome
    detail: str
    results: tuple[ModelResult, ...] = ()
    budget_seconds: float = 0.0


@dataclass(frozen=True)
class Bisection:
    """The result of a call.

    ``suspects`` are the commits of which one is the culprit: one if it was found. ``confirmation`` compares the culprit
    with its parent. ``summary`` is the result in a sentence.
    """

    good: Commit
    bad: Commit
    verdict: Verdict
    summary: str
    trials: tuple[Trial, ...]
    suspects: tuple[Commit, ...] = ()
    confirmation: Trial | None = None

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_CODES[self.verdict]


def bisect(
    good: str,
    bad: str,
    options: CompareOptions,
    *,
    history: Literal["first-parent", "ancestry-path"] = "first-parent",
    progress: Callable[[str], None] = lambda line: None,
) -> Bisection:
    """Find the commit after ``good``, up to ``bad``, that made one of the models slower.

    Args:
        good: a revision of the repository of the current folder, which is fast.
        bad: a later one, which is slow.
        options: as of `bench.gate.compare.compare`. With ``decide`` as ``counts``, the commit that changed the counts
            is looked for, and nothing is timed; else the timing decides, whatever the counts are.
        history: the commits along the first parents alone, or all that lie on a way from ``good`` to ``bad``.
        progress: gets a line now and then.

    Raises:
        UserError: ``good`` is no ancestor of ``bad``, or either cannot be tested.
    """
    options = replace(options, memory_tolerance=None)
    if options.decide != "counts":
        options = replace(options, decide="timing")
    return _Search(Path.cwd(), good, bad, options, history, progress).run()


class _Search:
    def __init__(
        self,
        folder: Path,
        good: str,
        bad: str,
        options: CompareOptions,
        history: str,
        progress: Callable[[str], None],
    ) -> None:
        self.repository = find_repository(folder)
        self.good, self.bad = (self._commit(resolve_commit(self.repository, each)) for each in (good, bad))
        self.options, self.history, self.progress = options, history, progress
        self.trials: list[Trial] = []
        self.narrowed = False
        if self.good == self.bad:
            raise RevisionError(f"{good} and {bad} are the same commit, {self.good}: name a later one as BAD.")
        try:
            run_git(self.repository, "merge-base", "--is-ancestor", self.good.sha, self.bad.sha)
        except subprocess.CalledProcessError as error:
            raise RevisionError(
                f"{good} is no ancestor of {bad}, so there is no history between them to search. Name an older commit "
                f"as GOOD: `git merge-base {good} {bad}` gives the latest that both have."
            ) from error

    def run(self) -> Bisection:
        first = self._try(self.bad)
        if first.outcome == "skipped":
            raise UserError(f"{self.bad} cannot be compared with {self.good}: {first.detail}.")
        if first.outcome != "bad":
            nothing = first.outcome == "good"
            found = "no difference was found" if nothing else "the comparison is inconclusive"
            return self._result(
                "nothing" if nothing else "inconclusive",
                f"Between {self.good.sha[:12]} and {self.bad.sha[:12]} {found} ({first.detail}): there is no commit to "
                f"look for.{'' if nothing else ' A larger --budget or a quieter machine would help.'}",
            )
        # What is looked for is the change of these: another model's does not make a commit bad.
        self.options = replace(self.options, models=[result.model for result in first.results])
        self.narrowed = True
        good, bad, left_out = [self.good.sha], self.bad.sha, set[str]()
        while True:
            suspects = self._suspects(good, bad)
            untried = [sha for sha in suspects if sha != bad and sha not in left_out]
            if not untried:
                break
            self.progress(f"{len(suspects)} commits left, about {(len(suspects) - 1).bit_length()} comparisons")
            trial = self._try(self._commit(untried[0]))
            if trial.outcome == "bad":
                bad = trial.commit.sha
            elif trial.outcome == "good":
                good.append(trial.commit.sha)
            else:
                left_out.add(trial.commit.sha)
        return self._conclude([self._commit(sha) for sha in suspects], self._commit(bad))

    def _conclude(self, suspects: Sequence[Commit], bad: Commit) -> Bisection:
        if len(suspects) > 1:
            return self._result(
                "inconclusive",
                f"One of {len(suspects)} commits is the first bad one; the others of them could not be judged.",
                suspects,
            )
        parent = self._commit(run_git(self.repository, "rev-parse", f"{bad.sha}^"))
        confirmation = next((each for each in self.trials if each.commit == bad), None)
        if parent != self.good:
            confirmation = self._compare(parent, bad)
            if confirmation.outcome != "bad":
                return self._result(
                    "inconclusive",
                    f"{bad} is the first commit that is bad beside {self.good.sha[:12]}, but beside its parent it is "
                    f"not ({confirmation.detail}): several commits may have added up.",
                    suspects,
                    confirmation,
                )
        return self._result("found", f"The first bad commit is {bad}", suspects, confirmation)

    def _result(
        self,
        verdict: Verdict,
        summary: str,
        suspects: Sequence[Commit] = (),
        confirmation: Trial | None = None,
    ) -> Bisection:
        return Bisection(self.good, self.bad, verdict, summary, tuple(self.trials), tuple(suspects), confirmation)

    def _try(self, commit: Commit) -> Trial:
        trial = self._compare(self.good, commit)
        self.trials.append(trial)
        self.progress(f"{trial.outcome}: {commit}: {trial.detail}")
        return trial

    def _compare(self, base: Commit, commit: Commit) -> Trial:
        """Judge a commit beside another; an inconclusive result is measured again with twice the budget."""
        budget = self.options.budget_seconds
        for doubling in range(MAX_DOUBLINGS + 1):
            options = replace(self.options, budget_seconds=budget * 2**doubling)
            try:
                comparison = compare(f"git:{base.sha}", f"git:{commit.sha}", options, self.progress)
            except UserError as error:
                return Trial(commit, "skipped", str(error).rstrip("."))
            trial = _judge(commit, comparison, narrowed=self.narrowed)
            if trial.outcome != "inconclusive":
                break
        return trial

    def _suspects(self, good: Sequence[str], bad: str) -> list[str]:
        """The commits of which one is the first bad one, those first that halve them best."""
        listed = run_git(self.repository, "rev-list", "--bisect-all", f"--{self.history}", bad, "--not", *good)
        return [line.split()[0] for line in listed.splitlines()]

    def _commit(self, sha: str) -> Commit:
        shown = run_git(self.repository, "show", "--no-patch", "--format=%H%x00%aI%x00%s", sha)
        return Commit(*shown.split("\0"))


def _judge(commit: Commit, comparison: Comparison, *, narrowed: bool) -> Trial:
    """What a comparison says of a commit; ``narrowed`` to the models whose change is looked for, all must be there."""
    budget = comparison.options.budget_seconds
    if comparison.environment_differences:
        return Trial(commit, "skipped", "; ".join(comparison.environment_differences))
    results = comparison.results
    if not narrowed:  # what only one side has did not become slower
        results = tuple(each for each in results if each.status not in ("missing", "new")) or results
    by_status = {status: tuple(each for each in results if each.status == status) for status in _ORDER}
    status = next((status for status in _ORDER if by_status[status]), None)
    if status is None:
        return Trial(commit, "good", _describe(results), results, budget)
    return Trial(commit, _ORDER[status], _describe(by_status[status]), by_status[status], budget)


_ORDER: dict[str, Outcome] = {
    "regressed": "bad",
    "changed": "bad",
    "missing": "skipped",
    "new": "skipped",
    "failed": "skipped",
    "inconclusive": "inconclusive",
}
"""The first status of any model decides about a commit; without any of them it is good."""


def _describe(results: Sequence[ModelResult]) -> str:
    return "; ".join(f"{each.model} {_shown(each)}" for each in results)


def _shown(result: ModelResult) -> str:
    judgement = result.judgement
    if judgement is None:
        return " ".join([result.status, *([f"({result.detail})"] if result.detail else [])])
    if judgement.low is None or judgement.high is None:
        return f"{result.status}, {judgement.change:+.1%}"
    interval = f"{format_level(judgement.level)} interval {judgement.low:+.1%} … {judgement.high:+.1%}"
    return f"{result.status}, {judgement.change:+.1%} ({interval})"


def bisection_to_dict(bisection: Bisection) -> dict[str, Any]:
    """As plain values, for JSON; changes are shares."""

    def trial(each: Trial) -> dict[str, Any]:
        results = [result_to_dict(result) for result in each.results]
        values = {"outcome": each.outcome, "detail": each.detail, "budget_seconds": each.budget_seconds}
        return vars(each.commit) | values | {"results": results}

    confirmation = bisection.confirmation
    return {
        "schema_version": 1,
        "good": vars(bisection.good),
        "bad": vars(bisection.bad),
        "verdict": bisection.verdict,
        "summary": bisection.summary,
        "suspects": [vars(each) for each in bisection.suspects],
        "confirmation": None if confirmation is None else trial(confirmation),
        "trials": [trial(each) for each in bisection.trials],
    }
