"""What the fixture ``throughput`` gives a test, which fails when a network became slower.

The plugin that pytest loads, with the fixture and the flags, is `zoobench.pytest_plugin`: it imports this module when a
test uses the fixture.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import pytest

from bench.errors import UserError
from bench.gate.baselines import PREFIX, baseline_path, load_entries, save_baseline
from bench.gate.checks import Model, Network, check_network, compare_networks, create_network, measure_network
from bench.gate.result import Comparison, ModelResult
from bench.gate.statistics.verdicts import format_level
from bench.gate.summary import format_change
from bench.gate.timing.sample import count_blocks
from bench.gate.timing.subject import Setting

SAVED = pytest.StashKey[dict[str, str]]()
SAVE_ANEW = "Save the baseline anew, if this is intended: pytest --throughput-save"


class ThroughputWarning(UserWarning):
    """A check that could not reach a verdict."""


class Work(TypedDict, total=False):
    """What is timed, where it is not the default.

    ``input_size`` (32): side of the images in pixels. ``in_chans`` (3): channels of the images. ``mode`` (``infer``):
    or ``train``: forward, loss, backward and a step of SGD. ``num_classes`` (10): of a model given by name. ``threads``
    (1): torch's, while it is timed; 1 gives the most repeatable times. ``dtype`` (``float32``): or ``bfloat16`` or
    ``float16``, by autocast. ``channels_last`` (False): the memory format.
    """

    input_size: int
    in_chans: int
    mode: Literal["infer", "train"]
    num_classes: int
    threads: int
    dtype: Literal["float32", "bfloat16", "float16"]
    channels_last: bool


class Throughput:
    """What the fixture ``throughput`` gives a test; each check adds a row to the test's user property ``rows``."""

    def __init__(self, request: pytest.FixtureRequest, rows: str) -> None:
        self._node, self._config, self._rows = request.node, request.config, rows

    def check(
        self,
        model: Model,
        *,
        against: str,
        batch_size: int = 64,
        tolerance: float = 0.05,
        budget: float = 20.0,
        device: str | None = None,
        **work: Unpack[Work],
    ) -> ModelResult | None:
        """Fail the test if the network is slower than its baseline, or is not the same network any more.

        Args:
            model: a network, of which copies are timed; a class or a function that returns one; or a name of the zoo's.
            against: ``baseline:NAME``, each test its own; ``pytest --throughput-save`` makes or replaces it.
            batch_size: images per step.
            tolerance: a change of the time of a step that is smaller than this share does not matter.
            budget: maximum seconds of timing.
            device: where it runs; where the network is if not given.
            work: see `Work`.

        Returns:
            The result of the comparison; None where the baseline was saved.
        """
        __tracebackhide__ = True
        name = against.removeprefix(PREFIX)
        try:
            if name == against:
                raise UserError(f"against={against!r} is not possible: expected baseline:NAME, as in baseline:my_net.")
            if not self._saving and not baseline_path(self._folder, name).exists():
                raise UserError(
                    f"there is no baseline {name!r} in {self._folder}. Save it where the network is known to be as "
                    "fast as it should be, and keep it with the code: pytest --throughput-save"
                )
            network = _create_network(model, batch_size, device, work)
            if self._saving:
                self._save(network, name, budget)
                return None
            comparison = check_network(network, load_entries(self._folder, name), tolerance, budget)
        except UserError as error:
            raise self._failure(against, "failed", str(error)) from None
        return self._judge(comparison, against, SAVE_ANEW)

    def compare(
        self,
        base_model: Model,
        head_model: Model,
        *,
        batch_size: int = 64,
        tolerance: float = 0.05,
        budget: float = 20.0,
        device: str | None = None,
        **work: Unpack[Work],
    ) -> ModelResult:
        """Fail the test if ``head_model`` is slower than ``base_model``, timed in turn now.

        The arguments are those of `check`. Where the exact counts differ, the result's ``differences`` show it, and
        the timing decides.
        """
        __tracebackhide__ = True
        against = "the other network"
        try:
            base, head = (_create_network(model, batch_size, device, work) for model in (base_model, head_model))
            against = base.name
            comparison = compare_networks(base, head, tolerance, budget)
        except UserError as error:
            raise self._failure(against, "failed", str(error)) from None
        return self._judge(comparison, against, "Make the network faster, or raise the tolerance.")

    @property
    def _folder(self) -> Path:
        return self._config.rootpath / str(self._config.getini("throughput_baselines"))

    @property
    def _saving(self) -> bool:
        return bool(self._config.getoption("throughput_save"))

    @property
    def _strict(self) -> bool:
        return bool(self._config.getoption("throughput_strict") or self._config.getini("throughput_strict"))

    def _save(self, network: Network, name: str, budget: float) -> None:
        saved = self._config.stash.setdefault(SAVED, {})
        if saved.setdefault(name, self._node.nodeid) != self._node.nodeid:
            raise UserError(f"the baseline {name!r} belongs to {saved[name]}: give each test a name of its own.")
        baseline = measure_network(network, name, self._config.rootpath, budget)
        path = save_baseline(self._folder, baseline)
        pairs = baseline.entries[name].pairs
        blocks, disturbed = count_blocks(pairs)
        found = f"{len(pairs)} pairs, {disturbed} of {blocks} blocks disturbed: {path}"
        self._add_row(baseline.title, "saved", found)

    def _judge(self, comparison: Comparison, against: str, remedy: str) -> ModelResult:
        """The result of a comparison of one network, where the test goes on."""
        __tracebackhide__ = True
        if comparison.environment_differences:
            differing = "; ".join(comparison.environment_differences)
            reason = (
                f"{comparison.head.name} was NOT compared with {against}, which is from a different machine: "
                f"{differing}. Save a baseline on this machine: pytest --throughput-save"
            )
            if self._strict:
                raise self._failure(against, "unlike", reason)
            self._add_row(against, "unlike", differing)
            pytest.skip(reason)
        (result,) = comparison.results
        described = _describe(result)
        message = f"{comparison.head.name} against {against}: {result.status}; {described}."
        message = " ".join([message, *comparison.notes])
        if result.status in ("changed", "regressed", "failed"):
            raise self._failure(against, result.status, f"{message} {remedy}", described)
        if result.status == "inconclusive":
            message += " A larger budget or a quieter machine would help."
            if self._strict:
                raise self._failure(against, result.status, message, described)
            warnings.warn(ThroughputWarning(message), stacklevel=3)
        self._add_row(against, result.status, described)
        return result

    def _failure(self, against: str, status: str, message: str, described: str | None = None) -> BaseException:
        """What to raise so that the test fails with the message alone."""
        self._add_row(against, status, described or message)
        return pytest.fail.Exception(message, pytrace=False)

    def _add_row(self, against: str, status: str, described: str) -> None:
        self._node.user_properties.append((self._rows, json.dumps([against, status, described])))


def _create_network(model: Model, batch_size: int, device: str | None, work: Work) -> Network:
    name = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
    return create_network(model, name, Setting(**work), batch_size, device)


def _describe(result: ModelResult) -> str:
    """What was found, in a line."""
    judgement = result.judgement
    if judgement is None:
        return "; ".join([result.detail, *map(str, result.differences)])
    interval = "no interval"
    if judgement.low is not None:
        bounds = f"{format_change(judgement.low)} … {format_change(judgement.high)}"
        detectable = format_change(judgement.detectable)
        interval = f"{format_level(judgement.level)} interval {bounds}, detectable {detectable}"
    return f"time of a step {judgement.change:+.1%} ({interval}); {judgement.reason}"
