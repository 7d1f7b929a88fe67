"""The pytest plugin: the fixture ``throughput``, by which a test fails when a network became slower.

It is found by its entry point in every environment that has zoobench, so it imports nothing heavy: torch only when the
fixture is used. ``-p no:zoobench`` leaves it out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest

if TYPE_CHECKING:
    from torch import nn

    from bench.measure.checks import Subject, Work
    from bench.measure.compare import Comparison, ModelResult

    Model = nn.Module | Callable[[], nn.Module] | str

PROPERTY = "zoobench_throughput"
"""The user property by which a test's row comes to the summary, also from the workers of pytest-xdist."""
DEFAULT_FOLDER = ".zoobench/baselines"
SAVED = pytest.StashKey[dict[str, str]]()


class ThroughputWarning(UserWarning):
    """A check that could not tell."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plugin's flags and settings."""
    group = parser.getgroup("zoobench", "throughput of networks (zoobench)")
    group.addoption(
        "--throughput-save",
        action="store_true",
        help="measure and save (or replace) the baselines of throughput.check instead of comparing with them",
    )
    group.addoption(
        "--throughput-strict",
        action="store_true",
        help="an inconclusive check fails, and so does a baseline of another machine",
    )
    parser.addini("throughput_baselines", "folder of the baselines, relative to rootdir", default=DEFAULT_FOLDER)
    parser.addini("throughput_strict", "as --throughput-strict", type="bool", default=False)


@pytest.fixture
def throughput(request: pytest.FixtureRequest) -> Throughput:
    """Checks that a network is not slower than its baseline, or than another network: see `Throughput`."""
    return Throughput(request)


class Throughput:
    """What the fixture ``throughput`` gives a test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._node, self._config = request.node, request.config

    def check(
        self,
        model: Model,
        *,
        against: str,
        input_size: int = 32,
        batch_size: int = 64,
        in_chans: int = 3,
        mode: Literal["infer", "train"] = "infer",
        tolerance: float = 0.05,
        budget: float = 20.0,
        num_classes: int = 10,
        device: str | None = None,
        threads: int = 1,
        channels_last: bool = False,
    ) -> ModelResult | None:
        """Fail the test if the network is slower than its baseline, or is not the same network any more.

        Args:
            model: a network, of which copies are timed; a class or a function that returns one; or a zoo's name.
            against: ``baseline:NAME``, each test its own; ``pytest --throughput-save`` makes or replaces it.
            input_size: side of the images in pixels.
            batch_size: images a step.
            in_chans: channels of the images.
            mode: ``infer``, or ``train``: forward, loss, backward and step of SGD.
            tolerance: the change of the time of a step, as a share, that counts as none.
            budget: seconds of timing, at most.
            num_classes: of a model that is named.
            device: where it runs; where the network is if not given.
            threads: torch's, while it is timed; one spreads least.
            channels_last: whether memory is laid out so.

        Returns:
            What the comparison came to; None where the baseline was saved.
        """
        __tracebackhide__ = True
        from bench.baselines import PREFIX, baseline_path, load_figures
        from bench.errors import UserError
        from bench.measure.checks import Work, check_subject

        name = against.removeprefix(PREFIX)
        work = Work(input_size, batch_size, mode, in_chans, num_classes, device, threads, channels_last)
        comparison: Comparison | str
        try:
            if name == against:
                raise UserError(f"against={against!r} is not possible: expected baseline:NAME, as baseline:my_net.")
            path = baseline_path(self._folder, name)
            if not self._saving and not path.exists():
                raise UserError(
                    f"there is no baseline {name!r} in {self._folder}. Make it where the network is known to be as "
                    "fast as it should be, and keep it with the code: pytest --throughput-save"
                )
            subject = self._create_subject(model, work)
            if self._saving:
                self._save(subject, name, budget)
                return None
            comparison = check_subject(subject, load_figures(self._folder, name), tolerance, budget)
        except UserError as error:
            comparison = str(error)
        return self._judge(comparison, against, "Save the baseline anew, if this is meant: pytest --throughput-save")

    def compare(
        self,
        base_model: Model,
        head_model: Model,
        *,
        input_size: int = 32,
        batch_size: int = 64,
        in_chans: int = 3,
        mode: Literal["infer", "train"] = "infer",
        tolerance: float = 0.05,
        budget: float = 20.0,
        num_classes: int = 10,
        device: str | None = None,
        threads: int = 1,
        channels_last: bool = False,
    ) -> ModelResult:
        """Fail the test if ``head_model`` is slower than ``base_model``, timed in turn now.

        The arguments are those of `check`. What differs in counts is told in the result's ``differences``; the timing
        decides.
        """
        __tracebackhide__ = True
        from bench.errors import UserError
        from bench.measure.checks import Work, compare_subjects

        work = Work(input_size, batch_size, mode, in_chans, num_classes, device, threads, channels_last)
        comparison: Comparison | str
        against = "the other network"
        try:
            base, head = (self._create_subject(model, work) for model in (base_model, head_model))
            against = base.name
            comparison = compare_subjects(base, head, tolerance, budget)
        except UserError as error:
            comparison = str(error)
        return self._judge(comparison, against, "Mend the slower network, or raise the tolerance.")

    @property
    def _folder(self) -> Path:
        return self._config.rootpath / str(self._config.getini("throughput_baselines"))

    @property
    def _saving(self) -> bool:
        return bool(self._config.getoption("throughput_save"))

    @property
    def _strict(self) -> bool:
        return bool(self._config.getoption("throughput_strict") or self._config.getini("throughput_strict"))

    def _create_subject(self, model: Model, work: Work) -> Subject:
        from bench.errors import UserError
        from bench.measure.checks import create_subject
        from zoo.registry import ZooError

        name = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
        try:
            return create_subject(model, work, name)
        except ZooError as error:
            raise UserError(str(error)) from error

    def _save(self, subject: Subject, name: str, budget: float) -> None:
        from bench.baselines import save_baseline
        from bench.errors import UserError
        from bench.measure.checks import measure_subject

        saved = self._config.stash.setdefault(SAVED, {})
        if saved.setdefault(name, self._node.nodeid) != self._node.nodeid:
            raise UserError(f"the baseline {name!r} is {saved[name]}'s already: give each test its own name.")
        baseline = measure_subject(subject, name, self._config.rootpath, budget)
        path = save_baseline(self._folder, baseline)
        pairs = baseline.figures[name].samples
        quads, disturbed = sum(len(pair.quads) for pair in pairs), sum(pair.disturbed for pair in pairs)
        told = f"{len(pairs)} pairs, {disturbed} of {quads} quads disturbed: {path}"
        self._add_row(f"baseline:{name}", "saved", told)

    def _judge(self, comparison: Comparison | str, against: str, remedy: str) -> ModelResult:
        """The result of a comparison of one network, where the test goes on; a text says why there is none."""
        __tracebackhide__ = True
        if isinstance(comparison, str):
            self._fail(against, "failed", comparison)
        if comparison.environment_differences:
            reason = (
                f"{comparison.head.name} was NOT compared with {against}, which is of an unlike machine: "
                f"{'; '.join(comparison.environment_differences)}. Save a baseline on this machine: "
                "pytest --throughput-save"
            )
            if self._strict:
                self._fail(against, "unlike", reason)
            self._add_row(against, "unlike", "; ".join(comparison.environment_differences))
            pytest.skip(reason)
        (result,) = comparison.results
        told = _describe(result)
        message = " ".join([f"{comparison.head.name} against {against}: {result.status}; {told}.", *comparison.notes])
        if result.status in ("changed", "regressed", "failed"):
            self._fail(against, result.status, f"{message} {remedy}", told)
        if result.status == "inconclusive":
            if self._strict:
                self._fail(against, result.status, message, told)
            warnings.warn(ThroughputWarning(message), stacklevel=3)
        self._add_row(against, result.status, told)
        return result

    def _fail(self, against: str, status: str, message: str, told: str | None = None) -> NoReturn:
        __tracebackhide__ = True
        self._add_row(against, status, told or message)
        pytest.fail(message, pytrace=False)

    def _add_row(self, against: str, status: str, told: str) -> None:
        self._node.user_properties.append((PROPERTY, json.dumps([against, status, told])))


def _describe(result: ModelResult) -> str:
    """What was found, in a line."""
    judgement = result.judgement
    if judgement is None:
        return "; ".join([result.detail, *map(str, result.differences)])
    low, high = ("?" if each is None else f"{each:+.1%}" for each in (judgement.low, judgement.high))
    smallest = judgement.smallest_change
    seen = "" if smallest is None else f", seen from {smallest:+.1%}"
    reason = judgement.reason.replace("--budget", "budget")
    return f"a step's time {judgement.change:+.1%} ({low} … {high}{seen}); {reason}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A row for each check, whatever became of it."""
    rows = [
        [report.nodeid, *json.loads(str(value))]
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for key, value in report.user_properties
        if key == PROPERTY
    ]
    if not rows:
        return
    terminalreporter.write_sep("=", "throughput")
    colors = {"unchanged": "green", "improved": "green", "saved": "cyan", "inconclusive": "yellow", "unlike": "yellow"}
    for nodeid, against, status, told in sorted(rows):
        terminalreporter.write(f"{status.upper():12}", **{colors.get(status, "red"): True})
        terminalreporter.write_line(f" {nodeid} against {against}: {told}")
