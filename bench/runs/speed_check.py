"""The speed of one model, without training it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import nn

import zoo
from bench import cuda_graph
from bench.config import MeasureConfig, Recipe
from bench.counting.complexity import count_macs
from bench.errors import ConfigError
from bench.machine import describe_environment
from bench.runs.resolve import training_defaults
from bench.runtimes import RuntimeUnavailableError, check_installed, why_impossible
from bench.timing.setting import Setting
from bench.timing.speed import Speed, measure_speed
from bench.training.dense import ImageLogits
from bench.training.step import create_timed_step
from bench.training.tuner import Form, FormTimer, tune

TUNED_BATCH = 32
"""Images in a step that is timed to choose a form, at most: a step in a slow form may take a second an image."""


def look_at_speed(
    name: str,
    setting: Setting,
    config: MeasureConfig,
    modes: tuple[str, ...],
    num_classes: int,
    on_phase: Callable[[str], None],
    open_options: Collection[str] = (),
) -> Speed:
    """Build a model, count its multiply-accumulates and measure it, untrained: weights do not affect speed.

    ``open_options`` are those of `bench.training.tuner.OPTIONS` that are chosen as a run chooses them: by timing both
    ways; the environment's ``setting`` and ``tuning`` say what was chosen and why.

    Raises:
        ConfigError: a precision that cannot be measured, or something that the runtime or a CUDA graph cannot do.
        bench.timing.speed.DifferentOutputsError: the runtime computes something else than eager mode.
        zoo.ZooError: a model that is not there.
    """
    problem = why_impossible(
        setting.runtime, modes[-1], setting.device.type, setting.dtype or "float32", setting.channels_last
    )
    if problem is None and setting.cuda_graph:
        problem = cuda_graph.why_impossible(str(setting.device), setting.runtime)
    if problem is not None:
        raise ConfigError(f"{name}: {problem}")
    try:
        check_installed(setting.runtime)
    except RuntimeUnavailableError as error:
        raise ConfigError(f"{error}.") from error
    if setting.dtype == "float16" and "train" in modes:
        raise ConfigError(
            "training in float16 needs its loss scaled, which zoobench's loop does not do. "
            "Use --dtype bfloat16, or measure inference alone with --mode infer."
        )
    found = Speed(environment=dict(describe_environment(str(setting.device), torch.get_num_threads())))

    try:
        macs = count_macs(zoo.create_meta_model(name, num_classes, setting.input_size), setting.image_shape)
    except zoo.ZooError:
        raise
    except ValueError as error:  # images that the network cannot take
        size = zoo.model_info(name).input_size
        raise ConfigError(f"{error}. Choose --input-size; the size that {name!r} was made for is {size}.") from error
    model: nn.Module = zoo.create_model(name, num_classes, setting.input_size)
    if zoo.model_info(name).task == "segmentation":
        model = ImageLogits(model)
    model = model.to(setting.device)
    if open_options:
        on_phase("tune")
        images = setting.images(min(config.batch_size, TUNED_BATCH)).float()  # under autocast, as training is
        start = Form(setting.training_autocast, setting.channels_last)
        tuning = tune(start, open_options, FormTimer(model, images, Recipe()), training_seconds=lambda _: math.inf)
        found.environment["tuning"] = tuning.to_dict()
        setting = replace(setting, autocast=tuning.form.autocast, channels_last=tuning.form.channels_last)
    model = model.to(memory_format=setting.memory_format)
    found.metrics["macs"] = macs
    create_step = functools.partial(create_timed_step, recipe=Recipe())
    try:
        measure_speed(model, setting, config, found, on_phase, modes, create_step)
    except cuda_graph.CaptureError as error:
        raise ConfigError(f"{name}: {error}") from error
    exceeded = any(flag.kind == "peak_exceeded" for flag in found.flags)
    if "throughput_img_per_s" in found.metrics and not exceeded:
        found.metrics["macs_per_s"] = macs * found.metrics["throughput_img_per_s"]
        found.metrics["macs_utilisation"] = found.metrics["macs_per_s"] / found.environment["peak_macs_per_s"]
    return found


def default_setting(device: torch.device, input_size: int, dtype: str | None = None) -> Setting:
    """How a run on this device begins to time a network where its plan leaves that open, or in the type ``dtype``."""
    defaults = training_defaults(str(device))
    return Setting(device, input_size, defaults.channels_last, defaults.autocast, dtype)
