"""Networks of somebody's own, in this process: kept as a baseline, compared with one, or with another network.

What `bench.gate.pytest_plugin` does for a test. The flow is that of `bench.gate.compare`; only where the networks live
differs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.errors import UserError
from bench.gate.against_baseline import create_baseline
from bench.gate.baselines import Baseline, UnlikeBaselineError
from bench.gate.compare import measure
from bench.gate.result import CompareOptions, Comparison
from bench.gate.revisions import Side
from bench.gate.timing.in_process import Build, in_process
from bench.gate.timing.subject import Setting, Subject
from bench.machine import describe_commit

if TYPE_CHECKING:
    from torch import nn

Model: TypeAlias = "nn.Module | Callable[[], nn.Module] | str"


@dataclass(frozen=True)
class Network:
    """A network that can be built again and again, its exact counts, and what is to be timed of it."""

    name: str
    build: Build
    counts: Mapping[str, Any]
    setting: Setting
    batch_size: int

    def side(self, name: str) -> Side:
        """As a side of a comparison, with the network as its model ``name``."""
        return Side(name, model=Subject(name))


def create_network(model: Model, name: str, setting: Setting, batch_size: int, device: str | None = None) -> Network:
    """Count a network and find out where it runs.

    Args:
        model: a network, of which copies are timed; something that returns one when it is called; or a name of the
            zoo's.
        name: what it is called.
        setting: how it is timed; its classes are the network's own, if it is not named.
        batch_size: images per step.
        device: where it is timed; where the network is if not given.

    Raises:
        UserError: a ``model`` that is none of these, or cannot take such images.
    """
    from torch import nn

    from bench.counting.complexity import count_complexity
    from zoo.info import ZooError

    build = _builder(model, name, setting)
    try:
        network = build()
    except ZooError as error:
        raise UserError(str(error)) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} returns {type(network).__name__} when it is called: expected a torch.nn.Module.")
    try:
        counted = count_complexity(network, (setting.in_chans, setting.input_size, setting.input_size))
    except ValueError as error:
        raise UserError(f"{error}. Give input_size and in_chans as the network takes them.") from error
    parameter = next(network.parameters(), None)
    device = device or (str(parameter.device) if parameter is not None else "cpu")
    classes = counted.output_shape[0] if counted.output_shape else setting.num_classes
    setting = replace(setting, device=device, num_classes=classes)
    return Network(name, build, dataclasses.asdict(counted), setting, batch_size)


def measure_network(network: Network, name: str, root: Path, budget_seconds: float) -> Baseline:
    """A baseline with one entry, of the same name; ``root`` is the checkout whose commit it names.

    Raises `UserError` if the network cannot be timed.
    """
    comparison = _measure(None, {name: network}, 1.0, budget_seconds)
    (result,) = comparison.results
    if result.status != "measured":
        raise UserError(f"{network.name} cannot be timed: {result.detail}")
    described = describe_commit(root)
    commit = described["commit"] + "+" * described["dirty"] if described is not None else None
    return create_baseline(name, replace(comparison, head=Side("pytest", commit=commit)))


def check_network(network: Network, baseline: Baseline, tolerance: float, budget_seconds: float) -> Comparison:
    """Compare a network with the entry of a baseline that has the baseline's name.

    Raises:
        UnlikeBaselineError: the baseline has no such entry, timed other work, or beside another reference workload.
    """
    if baseline.name not in baseline.entries:
        raise UnlikeBaselineError(
            f"{baseline.title} holds {', '.join(baseline.entries)}, and no entry of its own name: it was not saved by "
            "a test. Choose another name for the test's."
        )
    # The number of classes is for the exact gates to compare.
    setting = replace(network.setting, num_classes=baseline.task.num_classes)
    comparison = _measure(baseline, {baseline.name: replace(network, setting=setting)}, tolerance, budget_seconds)
    return replace(comparison, head=Side(network.name))


def compare_networks(base: Network, head: Network, tolerance: float, budget_seconds: float) -> Comparison:
    """Compare two networks now; where their counts differ, the result shows that, and the timing decides."""
    comparison = _measure(base.side("base"), {"base": base, "head": head}, tolerance, budget_seconds)
    (result,) = comparison.results
    result = replace(result, model=f"{base.name} → {head.name}")
    return replace(comparison, base=Side(base.name), head=Side(head.name), results=(result,))


def _measure(
    base: Side | Baseline | None, networks: Mapping[str, Network], tolerance: float, budget_seconds: float
) -> Comparison:
    """The last of the networks is head; all are in its setting."""
    name, head = list(networks.items())[-1]
    options = CompareOptions((name,), head.setting, budget_seconds, head.batch_size, tolerance, None)
    built = {name: (each.build, each.counts) for name, each in networks.items()}
    with in_process(built, head.setting) as host:
        return measure(base, head.side(name), options, host=host)


def _builder(model: Model, name: str, setting: Setting) -> Build:
    from torch import nn

    if isinstance(model, str):
        from zoo.registry import create_model

        work = {key: getattr(setting, key) for key in ("num_classes", "input_size", "in_chans")}
        return functools.partial(create_model, model, **work)
    if isinstance(model, nn.Module):
        return functools.partial(copy.deepcopy, model)
    if not callable(model):
        raise UserError(
            f"{model!r} is no model: expected a torch.nn.Module, something that returns one when it is called (a "
            "class, a function), or the name of a model, as 'resnet18'."
        )
    return model
