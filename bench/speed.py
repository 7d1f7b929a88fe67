"""How fast a model is: its steps of inference and training under the clock. For a run, and for a quick look."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import MeasureConfig, Recipe
from bench.errors import ConfigError
from bench.measure.clock import Step, create_clock
from bench.measure.energy import EnergyMeter, EnergyUnavailableError
from bench.measure.throughput import (
    Latency,
    Throughput,
    measure_latency,
    measure_peak_macs,
    measure_throughput,
    sweep_batch_sizes,
)
from bench.records import Flag
from bench.training.optim import create_optimizer
from bench.training.step import is_out_of_memory, train_step

PEAK_SECONDS = 0.5
PEAK_SIDE, PEAK_SIDE_CUDA = 1024, 8192
"""Sides of the matrices whose product is the machine's peak: large enough to fill it, small enough for the time."""
TINY_LR = 1e-6
"""Training is timed with steps too small to overflow."""

Phase = Callable[[str], AbstractContextManager[object]]
"""What surrounds a phase of measuring, by its name."""
OnPhase = Callable[[str], None]
"""Who is told that a phase begins."""


@dataclass(frozen=True)
class Setting:
    """How a model is run while it is timed.

    ``dtype`` None is float32, under bfloat16 autocast where ``autocast`` is set. A dtype that is named is that of the
    weights and images in inference; in training it is that of autocast. ``compile`` is torch.compile, its time apart.
    """

    device: torch.device
    input_size: int
    channels_last: bool = True
    autocast: bool = False
    dtype: str | None = None
    compile: bool = False

    def images(self, count: int) -> Tensor:
        """Images ``count×3×S×S`` as the network takes them; their content does not matter to speed."""
        images = torch.randn(count, *self.image_shape, device=self.device)
        return images.to(dtype=self.weights_dtype, memory_format=self.memory_format)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return 3, self.input_size, self.input_size

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def weights_dtype(self) -> torch.dtype:
        """The type of weights and images in inference."""
        return getattr(torch, self.dtype) if self.dtype is not None else torch.float32

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradients, in this precision."""
        autocast = self.autocast and self.dtype is None
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            yield


@dataclass
class Speed:
    """What was measured so far, in the form in which a record keeps it.

    ``environment`` has ``peak_macs_per_s``, and ``energy``: what measured it, or why nothing did.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float] | list[list[float]]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)


def measure_speed(
    model: nn.Module,
    setting: Setting,
    config: MeasureConfig,
    recipe: Recipe,
    found: Speed,
    phase: Phase,
    modes: tuple[str, ...] = ("infer", "train"),
) -> None:
    """Measure the machine's peak, then what ``modes`` ask of the model, and add it to ``found`` as it comes.

    ``infer`` is throughput, latency at batch 1 and the sweep over ``config.batch_sizes``; ``train`` is the throughput
    of forward, loss, backward and step. Each has at most ``config.seconds``, latency half as many; the first step,
    in which things are compiled and allocated, is not counted. The model is left as it was.
    """
    _Measurement(model, setting, config, recipe, found, phase).execute(modes)


class _Measurement:
    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        config: MeasureConfig,
        recipe: Recipe,
        found: Speed,
        phase: Phase,
    ) -> None:
        self.model, self.setting, self.config, self.recipe = model, setting, config, recipe
        self.found, self.phase = found, phase
        self.clock = create_clock(setting.device)
        self.read_joules: Callable[[], float] | None = None
        try:
            self.read_joules = EnergyMeter(setting.device).joules
            self.found.environment["energy"] = "NVML's counter of the whole GPU"
        except EnergyUnavailableError as error:
            self.found.environment["energy"] = f"not measured: {error}"

    def execute(self, modes: tuple[str, ...]) -> None:
        with self.phase("measure_peak"):
            self.found.environment["peak_macs_per_s"] = self._peak()
        if "infer" in modes:
            # A copy: neither its mode, its precision nor its layout is the model's own.
            network = copy.deepcopy(self.model).eval()
            self._infer(network.to(self.setting.weights_dtype).to(memory_format=self.setting.memory_format))
        if "train" in modes:
            self._throughput("train", "train_", self._training_step)

    def _infer(self, network: nn.Module) -> None:
        config = self.config
        half = config.model_copy(update={"seconds": config.seconds / 2})

        def create_step(batch_size: int) -> Step:
            return self._inference_step(network, batch_size)

        self._throughput("infer", "", create_step)
        step = self._compile(create_step(1), "latency_")
        with self.phase("measure_latency"):
            self._keep_latency(measure_latency(step, half, self.clock))
        if not config.batch_sizes:
            return
        each = config.model_copy(update={"seconds": config.seconds / len(config.batch_sizes)})
        with self.phase("measure_batches"):
            sweep = sweep_batch_sizes(
                create_step, config.batch_sizes, each, is_out_of_memory, self.clock, self.read_joules
            )
        rows = [[float(m.batch_size), m.img_per_s, m.low, m.high] for m in sweep.measured]
        self.found.samples["throughput_by_batch"] = rows
        if sweep.out_of_memory is not None:
            self._flag("out_of_memory", "measure_batches", sweep.out_of_memory)
        if sweep.best is not None:
            self.found.metrics["best_batch_size"] = sweep.best.batch_size
            self.found.metrics["best_batch_throughput_img_per_s"] = sweep.best.img_per_s

    def _throughput(self, phase: str, prefix: str, create_step: Callable[[int], Step]) -> None:
        """At the batch size of the configuration; where that does not fit, it is told, and measuring goes on."""
        size = self.config.batch_size
        try:
            step = self._compile(create_step(size), prefix)
            with self.phase(f"measure_{phase}"):
                measured = measure_throughput(step, size, self.config, self.clock, self.read_joules)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = f"batch size {size} does not fit: {str(error).splitlines()[0]}"
            self._flag("out_of_memory", f"measure_{phase}", message)
        else:
            self._keep(phase, prefix, measured)

    def _inference_step(self, network: nn.Module, batch_size: int) -> Step:
        setting, images = self.setting, self.setting.images(batch_size)
        ready = self._compiled(network)

        def infer() -> object:
            with setting.inference():
                return ready(images)

        return infer

    def _training_step(self, batch_size: int) -> Step:
        setting, recipe = self.setting, self.recipe
        # Training changes weights, statistics and gradients: it is timed on a copy.
        trained = copy.deepcopy(self.model).eval().to(memory_format=setting.memory_format)
        images = setting.images(batch_size).float()
        with torch.inference_mode():
            outputs = trained(images[:1])
        logits = outputs["out"] if isinstance(outputs, dict) else outputs
        targets = torch.randint(logits.shape[1], (batch_size, *logits.shape[2:]), device=setting.device)
        trained.train()
        optimizer = create_optimizer(trained, recipe, TINY_LR, 0.0)
        ready = self._compiled(trained)
        autocast = setting.autocast if setting.dtype is None else setting.dtype == "bfloat16"

        def train() -> object:
            return train_step(ready, optimizer, images, targets, recipe, autocast)

        return train

    def _compile(self, step: Step, prefix: str) -> Step:
        """Have the step compiled before its phase: the compiler's processes are no disturbance of it."""
        if self.setting.compile:
            self.found.metrics[f"{prefix}compile_seconds"] = self.clock.time_block(step, 1)
        return step

    def _compiled(self, network: nn.Module) -> Any:
        """The network as it is to be timed; each batch size gets kernels of its own."""
        if not self.setting.compile:
            return network
        torch.compiler.reset()  # past a few shapes torch.compile would fall back to the slow path, unasked
        return torch.compile(network, dynamic=False)

    def _peak(self) -> float:
        setting = self.setting
        on_cuda = setting.device.type == "cuda"
        side = PEAK_SIDE_CUDA if on_cuda else PEAK_SIDE
        left, right = (torch.randn(side, side, device=setting.device).to(setting.weights_dtype) for _ in range(2))

        def product() -> object:
            with setting.inference():
                return left @ right

        with _convolutions_precision() if on_cuda else contextlib.nullcontext():
            return measure_peak_macs(product, side**3, PEAK_SECONDS, self.clock)

    def _keep(self, phase: str, prefix: str, measured: Throughput) -> None:
        key = f"{prefix}throughput"
        self.found.metrics |= {
            f"{key}_img_per_s": measured.img_per_s,
            f"{key}_img_per_s_low": measured.low,
            f"{key}_img_per_s_high": measured.high,
            f"{key}_reached_precision": measured.reached_precision,
            f"{key}_steps_per_block": measured.steps_per_block,
            f"{key}_first_step_seconds": measured.warm_up.first_step_seconds,
            "throughput_batch_size": measured.batch_size,
        }
        if measured.joules_per_img is not None:
            self.found.metrics[f"{prefix}energy_per_img_joules"] = measured.joules_per_img
        self.found.samples[f"{phase}_block_seconds"] = measured.block_seconds
        if not measured.has_interval:
            message = f"only {len(measured.block_seconds)} blocks fitted: the interval is their range"
            self._flag("few_blocks", f"measure_{phase}", message)
        self._flag_cold(f"measure_{phase}", measured)

    def _keep_latency(self, measured: Latency) -> None:
        self.found.metrics |= {
            "latency_p50_ms": measured.p50_ms,
            "latency_p50_ms_low": measured.p50_low_ms,
            "latency_p50_ms_high": measured.p50_high_ms,
            "latency_p95_ms": measured.p95_ms,
            "latency_p99_ms": measured.p99_ms,
            "latency_reached_precision": measured.reached_precision,
        }
        self.found.samples["latency_seconds"] = measured.seconds
        if not measured.has_tail:
            message = f"only {len(measured.seconds)} single images fitted: the 99th percentile is the slowest of them"
            self._flag("few_samples", "measure_latency", message)
        self._flag_cold("measure_latency", measured)

    def _flag_cold(self, phase: str, measured: Throughput | Latency) -> None:
        if not measured.warm_up.stable:
            message = f"the time of a step had not settled after {measured.warm_up.steps} steps, when measuring began"
            self._flag("not_warm", phase, message)

    def _flag(self, kind: str, phase: str, message: str) -> None:
        self.found.flags.append(Flag(kind=kind, phase=phase, message=message))


@contextlib.contextmanager
def _convolutions_precision() -> Iterator[None]:
    """Matrix products in the precision of convolutions, which is TF32 unless the user says otherwise.

    Else the peak would be that of another unit of the GPU, and a network could seem to exceed it.
    """
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        matmul.fp32_precision = before


def look_at_speed(
    name: str, setting: Setting, config: MeasureConfig, modes: tuple[str, ...], num_classes: int, on_phase: OnPhase
) -> Speed:
    """Build a model, count its multiply-accumulates and measure it, untrained: its weights do not matter to speed.

    Raises `ConfigError` for a precision that cannot be measured, and `zoo.ZooError` for a model that is not there.
    """
    import zoo
    from bench.environment import Disturbance, describe_environment
    from bench.measure.complexity import count_macs
    from bench.training.dense import ImageLogits

    if setting.dtype == "float16" and "train" in modes:
        raise ConfigError(
            "training in float16 needs its loss scaled, which zoobench's loop does not do. "
            "Use --dtype bfloat16, or measure inference alone with --mode infer."
        )
    found = Speed(environment=describe_environment(str(setting.device), torch.get_num_threads()))

    @contextlib.contextmanager
    def phase(phase_name: str) -> Iterator[None]:
        on_phase(phase_name)
        with Disturbance(phase_name, found.flags):
            yield

    with torch.device("meta"):
        macs = count_macs(zoo.create_model(name, num_classes, setting.input_size), setting.image_shape)
    model = zoo.create_model(name, num_classes, setting.input_size)
    if zoo.model_info(name).task == "segmentation":
        model = ImageLogits(model)
    model = model.to(setting.device).to(memory_format=setting.memory_format)
    measure_speed(model, setting, config, Recipe(), found, phase, modes)
    found.metrics["macs"] = macs
    if "throughput_img_per_s" in found.metrics:
        found.metrics["macs_per_s"] = macs * found.metrics["throughput_img_per_s"]
        found.metrics["macs_utilisation"] = found.metrics["macs_per_s"] / found.environment["peak_macs_per_s"]
    return found
