"""How fast a model is: its steps of inference and training under the clock."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import MeasureConfig
from bench.cuda_graph import capture, launch_bound
from bench.device import is_out_of_memory
from bench.errors import UserError
from bench.flags import Flag, FlagKind
from bench.machine import describe_precision
from bench.nvml import watching
from bench.runtimes import (
    EXPORTED,
    OutputsDifferError,
    RuntimeUnavailableError,
    check_outputs,
    export_onnx,
    load_onnx,
)
from bench.timing.clock import CudaClock, Step, create_clock, create_latency_clock
from bench.timing.contention import Contention, find_disturbances
from bench.timing.energy import MIN_SECONDS, EnergyMeter, EnergyUnavailableError
from bench.timing.memory import measure_peak_bytes
from bench.timing.peak import measure_peak
from bench.timing.setting import Setting, fastest_kernels
from bench.timing.throughput import MAX_LATENCIES, MIN_LATENCIES, CreateStep, Latency, Meter, Throughput
from bench.timing.warm_up import WARM_UP_SECONDS_GPU

MAX_COMPILED = 64
"""Batch sizes and modes that torch.compile may specialise a network for; past its own limit of 8 it runs it eagerly."""

CreateTrainingStep = Callable[[nn.Module, nn.Module, Tensor, bool], Step]
"""From a network, the same network as compiled, images and autocast: a step of training, to be timed."""


class DifferentOutputsError(UserError):
    """A runtime that does not compute what the network computes in eager mode."""

    exit_code = 15


@dataclass
class Speed:
    """What was measured so far, in the form in which a record keeps it.

    ``environment`` has ``setting`` and ``precision`` (the process's flags, TF32 and cuDNN's among them) as they were,
    ``peak_macs_per_s``, ``peak_form`` and the rates of all forms, and ``energy``: what measured it, or why nothing did.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float] | list[list[float]]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)


def measure_speed(
    model: nn.Module,
    setting: Setting,
    config: MeasureConfig,
    found: Speed,
    announce: Callable[[str], None],
    modes: tuple[str, ...] = ("infer", "train"),
    create_training_step: CreateTrainingStep | None = None,
) -> None:
    """Measure the machine's peak, then what ``modes`` ask of the model, and add it to ``found``.

    ``infer`` is throughput, latency at batch 1 and the sweep over ``config.batch_sizes``; ``train`` is the throughput
    of ``create_training_step``'s forward, loss, backward and step. They take turns, a repeat of each at a time. Each
    has about ``config.seconds``, latency half as many; first steps, in which things are compiled and allocated, do not
    count. ``announce`` is called with the name of each phase as it begins. The model is left as it was.
    """
    with (
        fastest_kernels(),
        _many_compiled() if setting.runtime == "compile" else contextlib.nullcontext(),
        watching(str(setting.device), "measure", found.flags),
    ):
        _Measurement(model, setting, config, found, announce).execute(modes, create_training_step)


@dataclass
class _Quantity:
    """Something that is measured in repeats: ``phase`` is its name to people, ``keep`` puts it into the record."""

    phase: str
    meter: Meter
    keep: Callable[[_Quantity], None]
    out_of_memory: Callable[[Exception], None]
    contention: Contention = field(default_factory=Contention)
    fits: bool = True


class _Measurement:
    def __init__(
        self, model: nn.Module, setting: Setting, config: MeasureConfig, found: Speed, announce: Callable[[str], None]
    ) -> None:
        self.model, self.setting, self.config = model, setting, config
        self.found, self.announce = found, announce
        self.clock = create_clock(setting.device)
        self.quantities: list[_Quantity] = []
        self.sweep: list[_Quantity] = []
        self.read_joules: Callable[[], float] | None = None
        try:
            self.read_joules = EnergyMeter(setting.device).joules
            self.found.environment["energy"] = "NVML's counter of the whole GPU"
        except EnergyUnavailableError as error:
            self.found.environment["energy"] = f"not measured: {error}"

    def execute(self, modes: tuple[str, ...], create_training_step: CreateTrainingStep | None) -> None:
        self.announce("measure_peak")
        peak = measure_peak(self.setting, self.clock, self.config.seconds)
        self.found.environment |= {
            "setting": self.setting.describe(),
            "precision": describe_precision(),  # as measured: training may have had other flags
            "peak_macs_per_s": peak.macs_per_s,
            "peak_form": peak.form,
            "peak_macs_per_s_by_form": peak.by_form,
        }
        if "infer" in modes:
            self._add_inference()
        if "train" in modes:
            assert create_training_step is not None, "training can only be timed with a step to time"
            self._add_throughput("train", "train_", lambda size: self._training_step(create_training_step, size))
        while waiting := [each for each in self.quantities if each.fits and not each.meter.done]:
            for quantity in waiting:
                self._repeat(quantity)
        for quantity in self.quantities:
            if quantity.fits:
                quantity.keep(quantity)
        self._keep_sweep()
        self._keep_share_of_peak(peak.macs_per_s)

    def _add_inference(self) -> None:
        config = self.config
        self._add_throughput("infer", "", self._inference_step)
        latency = Meter(
            self._creating("latency_", lambda: self._inference_step(1)),
            config,
            config.seconds / 2,
            create_latency_clock(self.setting.device),
            steps_per_block=1,
            samples=(MIN_LATENCIES, MAX_LATENCIES),
            least_warm_up=self._least_warm_up,
        )
        self._add("measure_latency", 1, latency, self._keep_latency)
        for size in sorted(set(config.batch_sizes)):
            meter = self._meter(f"batch_{size}_", size, self._inference_step, config.seconds / len(config.batch_sizes))
            self.sweep.append(self._add("measure_batches", size, meter, lambda quantity: None))

    def _add_throughput(self, phase: str, prefix: str, create_step: Callable[[int], Step]) -> None:
        """At the batch size of the configuration; where that does not fit, a flag says so, and measuring goes on."""
        size = self.config.batch_size
        name = f"measure_{phase}"

        def keep(quantity: _Quantity) -> None:
            self._keep(phase, prefix, quantity, Throughput.of(quantity.meter, size, self.config.precision))
            self._measure_memory(phase, lambda: create_step(size))

        self._add(name, size, self._meter(prefix, size, create_step, self.config.seconds), keep)

    def _measure_memory(self, phase: str, create_step: CreateStep) -> None:
        """In eager mode only: the compiler's own memory would count, and that of other runtimes is not seen."""
        if self.setting.runtime != "eager":
            return
        self.announce("measure_memory")
        if (peak_bytes := measure_peak_bytes(create_step, self.setting.device)) is not None:
            self.found.metrics[f"{phase}_peak_memory_bytes"] = peak_bytes

    def _meter(self, prefix: str, size: int, create_step: Callable[[int], Step], seconds: float) -> Meter:
        return Meter(
            self._creating(prefix, lambda: create_step(size)),
            self.config,
            seconds,
            create_clock(self.setting.device),
            read_joules=self.read_joules,
            least_warm_up=self._least_warm_up,
        )

    def _add(self, phase: str, size: int, meter: Meter, keep: Callable[[_Quantity], None]) -> _Quantity:
        quantity = _Quantity(phase, meter, keep, lambda error: self._flag_out_of_memory(phase, size, error))
        self.quantities.append(quantity)
        return quantity

    def _repeat(self, quantity: _Quantity) -> None:
        self.announce(quantity.phase)
        try:
            with quantity.contention:
                quantity.meter.repeat()
        except (RuntimeError, MemoryError) as error:
            quantity.out_of_memory(error)
            quantity.fits = False
            if quantity in self.sweep:  # larger ones do not fit either
                for larger in self.sweep[self.sweep.index(quantity) :]:
                    larger.fits = False

    @property
    def _least_warm_up(self) -> float:
        return WARM_UP_SECONDS_GPU if self.setting.device.type == "cuda" else 0.0

    def _inference_step(self, batch_size: int) -> Step:
        setting, images = self.setting, self.setting.images(batch_size)
        # A copy: neither its mode, its precision nor its layout is the model's own.
        network = copy.deepcopy(self.model).eval().to(setting.weights_dtype).to(memory_format=setting.memory_format)
        if setting.runtime in EXPORTED:
            return self._exported_step(network, images)
        ready = self._compiled(network)

        def infer() -> object:
            with setting.inference():
                return ready(images)

        return infer

    def _exported_step(self, network: nn.Module, images: Tensor) -> Step:
        runtime = self.setting.runtime
        try:
            step = load_onnx(export_onnx(network, images), runtime, images, torch.get_num_threads())
            with torch.inference_mode():
                difference = check_outputs(network(images), step(), runtime)
        except RuntimeUnavailableError as error:
            raise UserError(f"{error}.") from error
        except OutputsDifferError as error:
            raise DifferentOutputsError(f"{error}: what it computes is not this network.") from error
        self.found.metrics["runtime_output_difference"] = difference
        return step

    def _training_step(self, create_training_step: CreateTrainingStep, batch_size: int) -> Step:
        setting = self.setting
        # Training changes weights, statistics and gradients: it is timed on a copy.
        trained = copy.deepcopy(self.model).to(memory_format=setting.memory_format)
        images = setting.images(batch_size).float()
        return create_training_step(trained, self._compiled(trained), images, setting.training_autocast)

    def _creating(self, prefix: str, create_step: CreateStep) -> CreateStep:
        """A new step in each repeat; where it is compiled or exported, the same one, made before its first repeat."""
        if self.setting.cuda_graph:
            return lambda: capture(create_step(), self.setting.device)
        if self.setting.runtime == "eager":
            return create_step
        made: list[Step] = []

        def create() -> Step:
            if not made:
                step = create_step()
                if self.setting.runtime == "compile":
                    self.found.metrics[f"{prefix}compile_seconds"] = self.clock.time_block(step, 1)
                made.append(step)
            return made[0]

        return create

    def _compiled(self, network: nn.Module) -> Any:
        """The network as it is to be timed; each batch size gets kernels of its own."""
        return torch.compile(network, dynamic=False) if self.setting.runtime == "compile" else network

    def _keep(self, phase: str, prefix: str, quantity: _Quantity, measured: Throughput) -> None:
        key = f"{prefix}throughput"
        low, high = measured.interval
        self.found.metrics |= {
            f"{key}_img_per_s": measured.img_per_s,
            f"{key}_img_per_s_low": low,
            f"{key}_img_per_s_high": high,
            f"{key}_reached_precision": measured.reached_precision,
            f"{key}_steps_per_block": measured.steps_per_block,
            f"{key}_first_step_seconds": measured.warm_up.first_step_seconds,
            "throughput_batch_size": measured.batch_size,
        }
        if measured.joules_per_img is not None:
            self.found.metrics[f"{prefix}energy_per_img_joules"] = measured.joules_per_img
        elif self.read_joules is not None:
            took = f"{quantity.meter.joules_seconds:.1f} s of timed blocks"
            message = f"energy is not reported: {took}, and NVML's counter needs {MIN_SECONDS:.0f}. Measure for longer"
            self._flag("energy", quantity.phase, message)
        self.found.samples[f"{phase}_block_seconds"] = measured.block_seconds
        self._flag_disturbance(quantity, (low, high))
        if isinstance(clock := quantity.meter.clock, CudaClock):
            self.found.metrics[f"{prefix}launch_share"] = clock.launch_share
            if (bound := launch_bound(clock.launch_share, measured.batch_size)) is not None:
                self._flag("launch_bound", quantity.phase, bound)

    def _keep_latency(self, quantity: _Quantity) -> None:
        measured = Latency(quantity.meter.repeats, self.config.precision)
        low, high = measured.interval
        self.found.metrics |= {
            "latency_p50_ms": measured.p50_ms,
            "latency_p50_ms_low": low,
            "latency_p50_ms_high": high,
            "latency_reached_precision": measured.reached_precision,
        }
        for percentile in (95, 99):
            if (value := measured.percentile_ms(percentile)) is not None:
                self.found.metrics[f"latency_p{percentile}_ms"] = value
        self.found.samples["latency_seconds"] = measured.seconds
        self._flag_disturbance(quantity, (low, high))

    def _keep_sweep(self) -> None:
        if not self.sweep:
            return
        sizes = sorted(set(self.config.batch_sizes))
        measured = [
            Throughput.of(quantity.meter, size, self.config.precision)
            for quantity, size in zip(self.sweep, sizes, strict=True)
            if quantity.fits
        ]
        rows = [[float(each.batch_size), each.img_per_s, *each.interval] for each in measured]
        self.found.samples["throughput_by_batch"] = rows
        if measured:
            best = max(measured, key=lambda each: each.img_per_s)
            self.found.metrics["best_batch_size"] = best.batch_size
            self.found.metrics["best_batch_throughput_img_per_s"] = best.img_per_s

    def _keep_share_of_peak(self, peak: float) -> None:
        """Where the model's multiply-accumulates are known: whether it stays below what is called the peak."""
        metrics = self.found.metrics
        rates = [metrics[key] for key in ("throughput_img_per_s", "best_batch_throughput_img_per_s") if key in metrics]
        reached = metrics.get("macs", 0) * max(rates, default=0.0)
        if reached > peak:
            environment = self.found.environment
            message = (
                f"the network reached {reached / 1e9:.3g} GMAC/s, more than the {peak / 1e9:.3g} of the fastest form "
                f"that was timed ({environment['peak_form']}): there is no share of the peak"
            )
            self._flag("peak_exceeded", "measure_peak", message)

    def _flag_disturbance(self, quantity: _Quantity, interval: tuple[float, float]) -> None:
        self.found.flags += find_disturbances(
            quantity.contention, quantity.phase, interval, self.config.precision, quantity.meter.repeats
        )

    def _flag_out_of_memory(self, phase: str, batch_size: int, error: Exception) -> None:
        """Raises the error if it is another one."""
        if not is_out_of_memory(error):
            raise error
        message = f"batch size {batch_size} does not fit: {str(error).splitlines()[0]}"
        self._flag("out_of_memory", phase, message)

    def _flag(self, kind: FlagKind, phase: str, message: str) -> None:
        self.found.flags.append(Flag(kind=kind, phase=phase, message=message))


def _many_compiled() -> AbstractContextManager[object]:
    import torch._dynamo  # slow to import

    torch.compiler.reset()  # what was compiled before counts towards the limit
    return torch._dynamo.config.patch(recompile_limit=MAX_COMPILED)  # type: ignore[no-any-return]
