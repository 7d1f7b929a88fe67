"""Commands that measure one model, without training it. Like `bench.cli`: parses and prints, decides nothing."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from bench.speed import Speed


class Mode(StrEnum):
    """What `zoobench throughput` measures."""

    INFER = "infer"
    TRAIN = "train"
    BOTH = "both"


class DType(StrEnum):
    """The types of numbers that a model can be measured in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def throughput(
    model: Annotated[str, typer.Argument(help="A registered name, timm/NAME or torchvision/NAME.")],
    mode: Annotated[Mode, typer.Option(help="What is timed.")] = Mode.BOTH,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    batch_sizes: Annotated[str | None, typer.Option(help="Sweep inference over these as well: '1,8,64'.")] = None,
    precision: Annotated[str, typer.Option(help="Stop when half the 95% interval is within this.")] = "1%",
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Stop at the latest after so many, each of inference and training.")
    ] = 10,
    input_size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 32,
    num_classes: Annotated[int, typer.Option(min=1, help="Outputs of the head.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own choice if not given.")] = None,
    dtype: Annotated[DType, typer.Option(help="Of weights and images; training: of autocast.")] = DType.FLOAT32,
    channels_last: Annotated[bool, typer.Option(help="Layout of images and weights.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile; its time apart.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's throughput, latency and share of the machine's peak, without training it.

    Every figure comes with its 95% interval, and with why measuring stopped: precision reached, or time over.
    """
    from bench.config import MeasureConfig
    from bench.environment import keep_allocator_pages, resolve_device
    from bench.executors import thread_settings

    config = MeasureConfig(
        batch_size=batch_size,
        batch_sizes=_parse_sizes(batch_sizes) if batch_sizes is not None else (),
        precision=parse_share(precision, "--precision"),
        seconds=seconds,
    )
    keep_allocator_pages()
    settings = thread_settings(threads or 1)  # before torch is imported, which reads them
    os.environ |= settings if threads else {k: v for k, v in settings.items() if not k.endswith("_NUM_THREADS")}

    import torch

    from bench.speed import Setting, look_at_speed

    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(
        device=torch.device(resolve_device(device)),
        input_size=input_size,
        channels_last=channels_last,
        dtype=dtype.value,
        compile=compiled,
    )
    modes = ("infer", "train") if mode is Mode.BOTH else (mode.value,)
    found = look_at_speed(model, setting, config, modes, num_classes, _tell_phase)
    asked = {
        "model": model, "mode": mode.value, "input_size": input_size, "num_classes": num_classes, "dtype": dtype.value,
        "channels_last": channels_last, "compile": compiled, "measure": config.model_dump(mode="json"),
    }  # fmt: skip
    if as_json:
        measured = {"environment": found.environment, "metrics": found.metrics, "samples": found.samples}
        flags = [flag.model_dump() for flag in found.flags]
        print(json.dumps(asked | measured | {"flags": flags}, indent=2, allow_nan=False))
    else:
        Console().print(_render_speed(asked, found))


def history(
    model: Annotated[str, typer.Argument(help="A model's name, as the records have it.")],
    results: Annotated[
        list[str] | None, typer.Option("--results", help="Folder of records; may be repeated. results if not given.")
    ] = None,
    metric: Annotated[str, typer.Option(help="What is followed: a metric of the records.")] = "throughput_img_per_s",
    alpha: Annotated[float, typer.Option(min=0.002, max=0.5, help="Chance of a step where there is none.")] = 0.05,
    undisturbed: Annotated[bool, typer.Option("--undisturbed", help="Leave disturbed records out.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Draw it: a path that ends in .svg, .png or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the steps in a model's records over time, and the commit at which each begins."""
    from reports.change_points import MIN_SERIES
    from reports.history import find_steps, load_points, plot_history

    if figure is not None and figure.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--figure {str(figure)!r} names no kind of picture. Let it end in .svg, .png or .pdf.")
    points = load_points(results or ["results"], model, metric, undisturbed=undisturbed)
    steps = find_steps(points, metric, alpha)
    if figure is not None:
        plot_history(points, steps, metric, f"{model}: {metric}").savefig(figure)
    if as_json:
        series = [
            {
                "series": name,
                "searched": len(own) >= MIN_SERIES,
                "steps": _rows(steps[steps.series == name]),
                "points": _rows(own),
            }
            for name, own in points.groupby("series", sort=False)
        ]
        print(json.dumps({"model": model, "metric": metric, "alpha": alpha, "series": series}, indent=2))
        return
    console = Console()
    for name, own in points.groupby("series", sort=False):
        console.print(_render_series(str(name), own, steps[steps.series == name], metric, MIN_SERIES))
    if figure is not None:
        print(f"Figure: {figure}")


def parse_share(text: str, option: str) -> float:
    """``1%`` or ``0.01`` to 0.01. Raises `ConfigError` for what is no share above zero."""
    number, percent = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / percent
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"{option} {text!r} is no share between 0 and 1. Write it as 1% or as 0.01.")
    return share


def _parse_sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batch-sizes {text!r} is no list of numbers from 1 on. Write it as 1,8,64.")
    return tuple(map(int, parts))


def _tell_phase(name: str) -> None:
    if sys.stderr.isatty():  # nothing moves while something is measured: a spinner would take its share of the CPU
        print(name.replace("_", " "), file=sys.stderr)


def _render_speed(asked: dict[str, Any], found: Speed) -> RenderableType:
    metrics, environment = found.metrics, found.environment
    machine = environment["machine"]
    layout = "channels_last" if asked["channels_last"] else "contiguous"
    title = f"{asked['model']}, {asked['input_size']} pixels, {asked['dtype']}, {layout}"
    title += ", torch.compile" if asked["compile"] else ""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading, justify in (("", "left"), ("batch", "right"), ("value", "right"), ("95% interval", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("stopped")
    for label, prefix in (("inference", ""), ("training", "train_")):
        key = f"{prefix}throughput_img_per_s"
        if key in metrics:
            ends = f"{metrics[f'{key}_low']:,.1f} – {metrics[f'{key}_high']:,.1f}"
            stopped = _stopped(metrics[f"{prefix}throughput_reached_precision"])
            batch = str(metrics["throughput_batch_size"])
            table.add_row(label, batch, f"{metrics[key]:,.1f} images/s", ends, stopped)
    sweep: Any = found.samples.get("throughput_by_batch", ())
    for batch_size, rate, low, high in sweep:
        best = "best" if batch_size == metrics["best_batch_size"] else ""
        table.add_row("  sweep", f"{batch_size:.0f}", f"{rate:,.1f} images/s", f"{low:,.1f} – {high:,.1f}", best)
    if "latency_p50_ms" in metrics:
        ends = f"{metrics['latency_p50_ms_low']:.3g} – {metrics['latency_p50_ms_high']:.3g}"
        stopped = _stopped(metrics["latency_reached_precision"])
        table.add_row("latency p50", "1", f"{metrics['latency_p50_ms']:.3g} ms", ends, stopped)
        for percentile in ("p95", "p99"):
            table.add_row(f"latency {percentile}", "1", f"{metrics[f'latency_{percentile}_ms']:.3g} ms")
    lines = []
    if "macs_per_s" in metrics:
        lines.append(
            f"{metrics['macs_per_s'] / 1e9:,.3g} GMAC/s of {environment['peak_macs_per_s'] / 1e9:,.3g} at the peak "
            f"(matrix product): {metrics['macs_utilisation']:.1%}"
        )
    for label, prefix in (("inference", ""), ("training", "train_")):
        if (joules := metrics.get(f"{prefix}energy_per_img_joules")) is not None:
            lines.append(f"energy, {label}: {joules:.3g} J an image")
    lines.append(f"energy: {environment['energy']}")
    if asked["compile"]:
        seconds = [value for name, value in metrics.items() if name.endswith("compile_seconds")]
        lines.append(f"compiling, apart: {sum(seconds):.1f} s")
    lines.append(f"on {machine['gpu'] or machine['cpu']}, {machine['device']}, CPU threads: {environment['threads']}")
    lines += [f"{flag.kind} during {flag.phase.replace('_', ' ')}: {flag.message}" for flag in found.flags]
    return Group(table, *(Text(line) for line in lines))


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON knows it: ISO dates, null for what is missing, the series' name left out."""
    rows: list[dict[str, Any]] = json.loads(frame.drop(columns="series").to_json(orient="records", date_format="iso"))
    return rows


def _render_series(name: str, own: pd.DataFrame, steps: pd.DataFrame, metric: str, least: int) -> RenderableType:
    from reports.history import change_text
    from reports.metrics import counted

    begun, ended = (f"{own.started_at.iloc[end]:%Y-%m-%d %H:%M}" for end in (0, -1))
    disturbed = int(own.disturbed.sum())
    title = f"{name}: {counted(len(own), 'record')} from {begun} to {ended}, {disturbed} of them disturbed"
    if steps.empty:
        why = "no step" if len(own) >= least else f"fewer than {least} records: not searched for steps"
        return Group(Text(title), Text(f"  {why}"))
    table = Table(box=None, padding=(0, 2, 0, 2))
    for heading in ("since", "commit", "after", "change [95%]", "", "records", "also changed"):
        table.add_column(heading)
    for _, step in steps.iterrows():
        better = {True: "better", False: "worse", None: ""}[step.better]
        table.add_row(
            f"{step.started_at:%Y-%m-%d %H:%M}", step["commit"][:10] or "none", step.commit_before[:10] or "none",
            change_text(step, metric), better, f"{step.before}, then {step.after}", step.also_changed,
        )  # fmt: skip
    return Group(Text(title), table)


def _stopped(reached_precision: bool) -> str:
    return "precision reached" if reached_precision else "time over"
