"""From a plan to its records: resolves what the plan leaves open, skips what is done, records what fails."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.config import Plan, RunConfig
from bench.environment import resolve_device
from bench.errors import ConfigError, RecordError
from bench.executors import LocalExecutor
from bench.records import RunRecord, check_writable, find_record, is_local
from bench.stages import Job, model_options, preprocessing_of

REPRESENTATIVE = "@representative"
IMAGE_ONLY = ("rotation", "color_jitter", "randaugment", "cutout", "mixup", "cutmix")
"""Options of a recipe that are made for whole images."""


class Display(Protocol):
    """Who is told how a plan goes."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Something of the data set is being prepared."""

    def begin(self, runs: list[RunConfig], done: list[RunRecord]) -> None:
        """The plan begins; ``done`` are the records that its runs have already."""

    def run_begins(self, config: RunConfig) -> None:
        """A run begins."""

    def run_goes_on(self, event: dict[str, Any]) -> None:
        """A run has got to a new phase, or further in training."""

    def run_ends(self, record: RunRecord) -> None:
        """A run has its record."""

    def close(self) -> None:
        """The plan is over, or was interrupted."""


class Displays:
    """Several displays that are told the same."""

    def __init__(self, *displays: Display) -> None:
        self._displays = displays

    def loading(self, what: str, done: int, total: int) -> None:
        """Tell all."""
        for display in self._displays:
            display.loading(what, done, total)

    def begin(self, runs: list[RunConfig], done: list[RunRecord]) -> None:
        """Tell all."""
        for display in self._displays:
            display.begin(runs, done)

    def run_begins(self, config: RunConfig) -> None:
        """Tell all."""
        for display in self._displays:
            display.run_begins(config)

    def run_goes_on(self, event: dict[str, Any]) -> None:
        """Tell all."""
        for display in self._displays:
            display.run_goes_on(event)

    def run_ends(self, record: RunRecord) -> None:
        """Tell all."""
        for display in self._displays:
            display.run_ends(record)

    def close(self) -> None:
        """Tell all."""
        for display in self._displays:
            display.close()


@dataclass
class Outcome:
    """What became of a plan: a record for each run that ended, in the plan's order, and the runs that are left."""

    records: list[RunRecord] = field(default_factory=list)
    skipped: int = 0
    left: list[RunConfig] = field(default_factory=list)
    interrupted: bool = False


def resolve_models(patterns: Iterable[str]) -> list[str]:
    """Names and wildcards to names, in the order given, each once. Raises `zoo.UnknownModelError`."""
    import zoo
    from zoo.registry import representative_models

    names: list[str] = []
    for pattern in patterns:
        if pattern == REPRESENTATIVE:
            names += representative_models()
        elif any(sign in pattern for sign in "*?["):
            found = zoo.list_models(pattern)
            if not found:
                raise ConfigError(f"no architecture matches {pattern!r}. `zoobench list` shows all names.")
            names += found
        else:
            names.append(zoo.model_info(pattern).name)
    return list(dict.fromkeys(names))


def resolve_plan(plan: Plan, *, data_dir: str | Path | None, display: Display) -> list[RunConfig]:
    """The plan's runs, with models, device, threads and data set resolved on this machine.

    Raises a `UserError` for whatever of it is not there.
    """
    import torch

    from bench.data.sources import load_dataset

    models = resolve_models(plan.models)
    _check_options(plan, models)
    device = resolve_device(plan.device)
    weights_sha256 = _check_weights(plan.pretrained, models)
    dataset = load_dataset(
        plan.data, size=plan.input_size, data_dir=data_dir, classes=plan.classes, progress=display.loading
    )
    if dataset.mosaic is not None:
        _check_dense(plan, models)
    on_gpu = device.startswith("cuda")
    return plan.expand(
        models=models,
        data_sha256=dataset.sha256,
        pretrained_sha256=weights_sha256,
        device=device,
        threads=plan.threads or torch.get_num_threads(),
        autocast=on_gpu if plan.autocast is None else plan.autocast,
        channels_last=device != "mps" if plan.channels_last is None else plan.channels_last,
    )


def run_plan(
    plan: Plan,
    results: str,
    display: Display,
    *,
    data_dir: str | Path | None = None,
    command: str = "",
    force: bool = False,
    checkpoint_seconds: float = 60.0,
    save_weights: bool = False,
) -> Outcome:
    """Do the plan's runs, one after the other, each in a process of its own.

    A run whose record says ``completed`` or ``diverged`` is skipped unless ``force``; a failed one is tried again.
    ``KeyboardInterrupt`` ends the run in progress and is told by the outcome. Training leaves a checkpoint at each
    epoch's end and every ``checkpoint_seconds``, from which a killed run goes on.
    """
    check_writable(results)
    if save_weights and not is_local(results):
        raise ConfigError(f"--save-weights needs a folder of this machine for --results, not {results!r}.")
    runs = resolve_plan(plan, data_dir=data_dir, display=display)
    done = {} if force else {run.run_id: record for run in runs if (record := _finished(results, run))}
    outcome = Outcome(skipped=len(done))
    display.begin(runs, list(done.values()))
    executor = LocalExecutor()
    try:
        for run in runs:
            if run.run_id in done:
                continue
            display.run_begins(run)
            job = Job(
                config=run,
                results=results,
                data_dir=str(data_dir) if data_dir is not None else None,
                checkpoint_seconds=checkpoint_seconds,
                fresh=force,
                save_weights=save_weights,
                plan=plan.name,
                command=command,
            )
            done[run.run_id] = executor.run(job, display.run_goes_on)
            display.run_ends(done[run.run_id])
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.records = [done[run.run_id] for run in runs if run.run_id in done]
    outcome.left = [run for run in runs if run.run_id not in done]
    return outcome


def _check_options(plan: Plan, models: list[str]) -> None:
    """That the architectures have what the recipe asks of them."""
    for model in models:
        model_options(model, plan.recipe)


def _check_dense(plan: Plan, models: list[str]) -> None:
    """That every model labels pixels, and that the recipe and the weights ask for nothing that dense labels lack."""
    import zoo

    classifiers = [model for model in models if zoo.model_info(model).task != "segmentation"]
    if classifiers:
        possible = [name for name in zoo.list_models() if zoo.model_info(name).task == "segmentation"]
        raise ConfigError(
            f"the data set {plan.data!r} has a label for each pixel, and {', '.join(map(repr, classifiers))} "
            f"{'gives' if len(classifiers) == 1 else 'give'} one answer an image. "
            f"Choose models that segment: {', '.join(possible)}; or the data set {plan.data.partition(':')[2]!r}."
        )
    asked = [option for option in IMAGE_ONLY if getattr(plan.recipe, option)]
    if asked:
        raise ConfigError(
            f"the recipe {plan.recipe.name!r} asks for {', '.join(asked)}, which {plan.data!r} does not have: its "
            "canvases are new in every epoch, and their labels would have to change with the pixels. "
            f"Set {' and '.join(f'recipe.{option}' for option in asked)} to 0."
        )
    for model in models:
        prepared = preprocessing_of(model, plan.pretrained)
        if prepared is not None and prepared.input_size != plan.input_size:
            raise ConfigError(
                f"the weights of {model!r} are made for images of {prepared.input_size} pixels, and the canvases of "
                f"{plan.data!r} have {plan.input_size}. Labels are not resized: set input_size to "
                f"{prepared.input_size}, or leave pretrained out."
            )


def _check_weights(pretrained: bool | str, models: list[str]) -> str | None:
    """That each model has published weights, if they are wanted; or the hash of the file that holds them."""
    if isinstance(pretrained, str):
        try:
            return hashlib.sha256(Path(pretrained).read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(
                f"the weights {pretrained!r} cannot be read: {error.strerror}. Name a state dict or a checkpoint."
            ) from error
    for model in models:
        preprocessing_of(model, pretrained)
    return None


def _finished(results: str, run: RunConfig) -> RunRecord | None:
    try:
        record = find_record(results, run.run_id)
    except RecordError as error:
        warnings.warn(f"{error} It is repeated now.", stacklevel=2)
        return None
    return record if record is not None and record.status != "failed" else None
