"""`zoobench throughput`: time one model without training it. Like `bench.cli.app`: parses and prints."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bench.cli.options import (
    BatchSizeOption,
    CudaGraphOption,
    DeviceOption,
    InputSizeOption,
    JsonOption,
    ModelArgument,
    NumClassesOption,
    OptionalThreadsOption,
)
from bench.cli.tables import Column, TerminalTable, create_console, print_json
from bench.errors import ConfigError, did_you_mean
from bench.runtimes import EXPORTED, RUNTIMES, TOLERANCE
from reports.data.metrics import counted, format_number, format_within

if TYPE_CHECKING:
    from bench.timing.speed import Speed


RUNTIME_TITLES = {"compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
MODES = {"inference": "", "training": "train_"}
"""What a mode is called, and how its metrics begin."""


class Mode(StrEnum):
    """What `zoobench throughput` measures."""

    INFER = "infer"
    TRAIN = "train"
    BOTH = "both"


class Runtime(StrEnum):
    """What runs the network; see `bench.runtimes`."""

    EAGER = "eager"
    COMPILE = "compile"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class DType(StrEnum):
    """The types in which a model can be timed."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def throughput(
    model: ModelArgument,
    mode: Annotated[
        Mode | None, typer.Option(metavar="MODE", help="infer, train or both; both, or what the runtime can.")
    ] = None,
    batch_size: BatchSizeOption = 128,
    batch_sizes: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Also time inference at these batch sizes: '1,8,64'.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="SHARE", help="Wanted half-width of the 95% interval, as a share.")
    ] = "1%",
    seconds: Annotated[float, typer.Option(min=0.01, metavar="S", help="Maximum seconds per mode.")] = 10,
    repeats: Annotated[int, typer.Option(min=3, max=100, metavar="N", help="Repeats, spread over the time.")] = 5,
    input_size: InputSizeOption = 32,
    num_classes: NumClassesOption = 10,
    device: DeviceOption = "auto",
    threads: OptionalThreadsOption = None,
    dtype: Annotated[
        DType | None,
        typer.Option(
            metavar="TYPE",
            help="float32, bfloat16 or float16; training uses it by autocast.",
            show_default="the faster one in training, float32 or bfloat16, as `zoobench run` chooses",
        ),
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--no-channels-last",
            help="Memory format of images and weights.",
            show_default="the faster one in training, as `zoobench run` chooses",
        ),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="The same as --runtime compile.")] = False,
    runtime: Annotated[
        Runtime | None,
        typer.Option(metavar="NAME", help="eager, compile, onnxruntime or openvino; compilation is timed apart."),
    ] = None,
    cuda_graph: CudaGraphOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's throughput and latency, and its share of the machine's peak, without training it.

    Each quantity is measured in several repeats, which take turns; the 95% interval is over the repeats.

    Exit status: 0 measured, 15 the runtime computes something else than eager mode, 2 bad input.
    """
    from bench.config import MeasureConfig, validate
    from bench.device import keep_allocator_pages, resolve_device, thread_settings

    measured = {
        "batch_size": batch_size,
        "batch_sizes": _parse_sizes(batch_sizes) if batch_sizes is not None else (),
        "precision": parse_share(precision, "--precision"),
        "seconds": seconds,
        "repeats": repeats,
    }
    config = validate(MeasureConfig, measured, "zoobench throughput")
    keep_allocator_pages()
    settings = thread_settings(threads or 1)  # before torch is imported, which reads them
    os.environ |= settings if threads else {k: v for k, v in settings.items() if not k.endswith("_NUM_THREADS")}

    import torch

    from bench.runs.speed_check import default_setting, look_at_speed

    model, ran_by = _split_runtime(model, runtime, compiled)
    exported = ran_by in EXPORTED
    mode = mode or (Mode.INFER if exported else Mode.BOTH)
    if exported and channels_last is None:
        channels_last = False  # the runtime's own business
    if threads is not None:
        torch.set_num_threads(threads)
    setting = default_setting(torch.device(resolve_device(device)), input_size, dtype and dtype.value)
    setting = dataclasses.replace(setting, runtime=ran_by, cuda_graph=cuda_graph)
    if channels_last is not None:
        setting = dataclasses.replace(setting, channels_last=channels_last)
    modes = ("infer", "train") if mode is Mode.BOTH else (mode.value,)
    if batch_sizes is not None and "infer" not in modes:
        raise ConfigError("--batch-sizes times inference, which --mode train leaves out: leave one of them out.")
    choices = {"autocast": dtype, "channels_last": channels_last}
    open_options = {name for name, named in choices.items() if named is None and not exported}
    found = look_at_speed(model, setting, config, modes, num_classes, _phase_printer(), open_options)
    measured_in = found.environment["setting"]
    asked = {
        "model": model, "mode": mode.value, "input_size": input_size, "num_classes": num_classes,
        "dtype": measured_in["precision"], "channels_last": measured_in["memory_format"] == "channels_last",
        "runtime": ran_by, "cuda_graph": cuda_graph, "measure": config.model_dump(mode="json"),
    }  # fmt: skip
    if as_json:
        measured = {"environment": found.environment, "metrics": found.metrics, "samples": found.samples}
        flags = [flag.model_dump() for flag in found.flags]
        print_json(asked | measured | {"flags": flags})
    else:
        create_console().print(_render_speed(asked, found))


def _split_runtime(model: str, option: Runtime | None, compiled: bool) -> tuple[str, str]:
    """The model without ``,runtime=NAME``, and the runtime that this, ``--runtime`` or ``--compile`` names."""
    parts = model.split(",")
    named = [part.partition("=")[2].strip() for part in parts if part.partition("=")[0].strip() == "runtime"]
    named += [option.value] if option is not None else []
    named += [Runtime.COMPILE.value] if compiled else []
    if len(set(named)) > 1:
        raise ConfigError(f"{' and '.join(map(repr, named))} are both given as the runtime of {parts[0]}: name one.")
    for name in named:
        if name not in RUNTIMES:
            raise ConfigError(
                f"runtime={name} is not possible: expected one of {', '.join(RUNTIMES)}.{did_you_mean(name, RUNTIMES)}"
            )
    kept = [part for part in parts if part.partition("=")[0].strip() != "runtime"]
    return ",".join(kept), named[0] if named else Runtime.EAGER.value


def parse_share(text: str, option: str) -> float:
    """``1%`` or ``0.01`` to 0.01. Raises `ConfigError` for anything else than a share between 0 and 1."""
    number, percent = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / percent
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"{option} {text!r} is not a share between 0 and 1. Write it as 1% or 0.01.")
    return share


def _parse_sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batch-sizes {text!r} is not a list of positive integers. Write it as 1,8,64.")
    return tuple(map(int, parts))


def _phase_printer() -> Callable[[str], None]:
    """Prints each phase when it begins for the first time; no spinner, which would take CPU time from measuring."""
    begun: set[str] = set()

    def announce(name: str) -> None:
        if sys.stderr.isatty() and name not in begun:
            begun.add(name)
            print(name.replace("_", " "), file=sys.stderr)

    return announce


def _render_speed(asked: dict[str, Any], found: Speed) -> RenderableType:
    metrics, environment = found.metrics, found.environment
    machine = environment["machine"]
    setting = [
        asked["dtype"],
        *([] if asked["runtime"] in EXPORTED else ["channels_last" if asked["channels_last"] else "contiguous"]),
        *([] if asked["runtime"] == "eager" else [RUNTIME_TITLES.get(asked["runtime"], asked["runtime"])]),
        *(["CUDA graph"] if asked["cuda_graph"] else []),
        counted(environment["threads"], "CPU thread"),
    ]
    columns = [
        Column("mode"),
        Column("batch", "count"),
        Column("speed", "number"),
        Column("95% interval", "number"),
        Column("precision", optional=1),
    ]
    title = f"{asked['model']}: {asked['input_size']}×{asked['input_size']} px, {asked['num_classes']:,} classes"
    table = TerminalTable(columns, f"{title}\n{', '.join(setting)}, on {machine['gpu'] or machine['cpu']}")
    for mode, prefix in MODES.items():
        key = f"{prefix}throughput_img_per_s"
        if key in metrics:
            rate, interval = _with_interval(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"], "img/s")
            reached = _reached(metrics[f"{prefix}throughput_reached_precision"])
            table.add_row(mode, metrics["throughput_batch_size"], rate, interval, reached)
    sweep: Any = found.samples.get("throughput_by_batch", ())
    for batch_size, value, low, high in sweep:
        rate, interval = _with_interval(value, low, high, "img/s")
        best = "best batch size" if batch_size == metrics["best_batch_size"] else ""
        table.add_row("inference", int(batch_size), rate, interval, best)
    if "latency_p50_ms" in metrics:
        value, low, high = (metrics[f"latency_p50_ms{end}"] for end in ("", "_low", "_high"))
        median, interval = _with_interval(value, low, high, "ms")
        table.add_row("latency p50", 1, median, interval, _reached(metrics["latency_reached_precision"]))
        for percentile in (each for each in ("p95", "p99") if f"latency_{each}_ms" in metrics):
            table.add_row(
                f"latency {percentile}", 1, f"{format_number(metrics[f'latency_{percentile}_ms'])} ms", "", ""
            )
    return Group(table, *map(Text, _notes(asked, found)))


def _notes(asked: dict[str, Any], found: Speed) -> Iterator[str]:
    """What stands below the table: the share of the machine's peak, energy, compilation, disturbance."""
    metrics, environment = found.metrics, found.environment
    if "macs_per_s" in metrics:
        achieved, peak = (
            format_number(value / 1e9) for value in (metrics["macs_per_s"], environment["peak_macs_per_s"])
        )
        share = f"{metrics['macs_utilisation']:.1%} of the machine's peak of {peak}"
        yield f"{achieved} GMAC/s, {share} ({environment['peak_form']})"
    for mode, prefix in MODES.items():
        if (joules := metrics.get(f"{prefix}energy_per_img_joules")) is not None:
            yield f"energy, {mode}: {format_number(1000 * joules)} mJ per image"
    yield f"energy: {environment['energy']}"
    if "tuning" in environment:
        tried = (f"{form} {format_number(rate)}" for form, rate in environment["tuning"]["images_per_s"].items())
        yield f"chosen as a run chooses, by training speed (images/s): {'; '.join(tried)}"
    if "runtime_output_difference" in metrics:
        yield (
            f"outputs: within {metrics['runtime_output_difference']:.1g} of eager mode's, relative to the largest "
            f"(tolerance {TOLERANCE:g})"
        )
    if asked["runtime"] == "compile":
        seconds = [value for name, value in metrics.items() if name.endswith("compile_seconds")]
        yield f"compilation, not included above: {sum(seconds):.1f} s"
    for flag in found.flags:
        yield str(flag)


def _with_interval(value: float, low: float, high: float, unit: str) -> tuple[str, str]:
    """The value with its unit, and the interval: with the digits that the interval's width supports."""
    middle, first, last = format_within(value, low, high)
    return f"{middle} {unit}", f"{first} – {last}"


def _reached(reached_precision: bool) -> str:
    return "reached" if reached_precision else "not reached"
