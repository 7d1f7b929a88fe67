"""`zoobench evaluate`: a checkpoint on a data set, without training. Like `bench.cli.app`: parses and prints."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from bench.cli.options import DeviceOption, JsonOption, ModelArgument, OptionalThreadsOption
from bench.cli.tables import Column, TerminalTable, create_console, print_json
from bench.records import ROOT, RunRecord
from reports.data.metrics import METRICS, counted, format_within

FAILED = 1
RESULTS = f"{ROOT}/evaluations"


class EvaluatedSplit(StrEnum):
    """What `zoobench evaluate` evaluates on."""

    TEST = "test"
    VAL = "val"


def evaluate(
    model: ModelArgument,
    weights: Annotated[
        str, typer.Option(metavar="FILE|RUN_ID", help="A state dict or checkpoint, or a run that kept its weights.")
    ],
    data: Annotated[str, typer.Option(help="digits, cifar10, parquet:PATH, folder:PATH or mosaic:DATA.")],
    data_dir: Annotated[
        Path | None, typer.Option(envvar="ZOOBENCH_DATA", help="Where archives and relative data paths are.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Which column of Parquet files holds the labels, if there are several.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Only images of these classes, by commas.")] = None,
    split: Annotated[EvaluatedSplit, typer.Option(help="test, or val as held out of the training images.")] = (
        EvaluatedSplit.TEST
    ),
    limit_test: Annotated[int | None, typer.Option(min=1, help="Use at most that many images.")] = None,
    normalization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="imagenet, cifar10 or data (its training images); the file's own if omitted."
        ),
    ] = None,
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Mean of the channels, scaled to [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation of the channels.")] = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Image side; that of the weights, or 32, if omitted.")
    ] = None,
    test_flip: Annotated[
        bool | None, typer.Option(help="Average over each image and its mirror; as the run did if omitted.")
    ] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also evaluate under 15 corruptions at 5 severities each.")
    ] = False,
    speed: Annotated[bool, typer.Option("--speed", help="Also measure throughput and latency.")] = False,
    seconds: Annotated[float, typer.Option(min=0.01, metavar="S", help="Maximum seconds of --speed.")] = 10,
    probes: Annotated[bool, typer.Option(help="Keep feature maps and the like for the report.")] = True,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per step.", show_default="500, fewer of large ones")
    ] = None,
    device: DeviceOption = "auto",
    threads: OptionalThreadsOption = None,
    allow_fresh_head: Annotated[
        bool, typer.Option("--allow-fresh-head", help="Evaluate although a part keeps its random values.")
    ] = False,
    results: Annotated[str, typer.Option(metavar="DIR", help="Where the record and the report go.")] = RESULTS,
    as_json: JsonOption = False,
) -> None:
    """Evaluate weights without training: accuracy, confusion, calibration and, if asked, robustness and speed.

    Exit status: 0 evaluated, 1 the logits are not finite or the network failed, 2 bad input.
    """
    from bench.config import MeasureConfig, validate
    from bench.device import keep_allocator_pages, repeatable_settings, thread_settings
    from bench.records import check_writable, save_record
    from bench.runs.resolve_evaluation import EvaluationRequest, parse_statistics, resolve_evaluation

    keep_allocator_pages()
    settings = thread_settings(threads or 1)  # before torch is imported, which reads them
    os.environ |= settings if threads else {k: v for k, v in settings.items() if not k.endswith("_NUM_THREADS")}
    os.environ |= repeatable_settings("cuda" if device == "auto" else device)
    request = EvaluationRequest(
        model=model,
        weights=weights,
        data=data,
        data_dir=data_dir,
        classes=tuple(part.strip() for part in classes.split(",")) if classes else (),
        label_column=label_column,
        split=split.value,
        limit_test=limit_test,
        input_size=input_size,
        batch_size=batch_size,
        normalization=normalization,
        mean=parse_statistics(mean, "--mean") if mean is not None else None,
        std=parse_statistics(std, "--std") if std is not None else None,
        test_flip=test_flip,
        corruptions=corruptions,
        speed=speed,
        measure=validate(MeasureConfig, {"seconds": seconds, "probes": probes}, "zoobench evaluate"),
        device=device,
        threads=threads,
        results=results,
    )
    config, dataset, notes = resolve_evaluation(request)
    check_writable(results)

    from bench.errors import UserError
    from bench.runs.evaluation import EvaluationRun
    from zoo.info import ZooError

    run = EvaluationRun(config, dataset, results, _print_phase, "zoobench " + shlex.join(sys.argv[1:]))
    try:
        loaded = run.load(allow_fresh_head=allow_fresh_head)
    except (UserError, ZooError):
        raise
    except Exception as error:  # noqa: BLE001 - the network itself runs here
        reason = " ".join(str(error).split())
        print(f"zoobench: the evaluation failed: {type(error).__name__}: {reason}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    record = run.to_record()
    path = save_record(record, results)
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        create_console().print(
            _render(record, [loaded.summary(), *(f"{note[0].upper()}{note[1:]}." for note in notes)])
        )
        print(f"Record: {path}")
    if record.status == "completed":
        _write_report(results, quiet=as_json)
    else:
        print(f"zoobench: {_failure(record)}", file=sys.stderr)
        raise typer.Exit(FAILED)


def _write_report(results: str, *, quiet: bool) -> None:
    from bench.records import is_local
    from reports.report import write_report

    if is_local(results):
        written = write_report(results, Path(results) / "report")
        if not quiet:
            print(f"Report: {written[0]}")


def _print_phase(event: Any) -> None:
    from bench.events import Phase

    if isinstance(event, Phase) and sys.stderr.isatty():  # no spinner: it would take CPU from what is measured
        print(event.phase.replace("_", " "), file=sys.stderr)


def _failure(record: RunRecord) -> str:
    if record.error is not None:
        return f"the evaluation failed: {record.error.kind}: {record.error.message}"
    return " ".join(flag.message for flag in record.flags if flag.kind == "not_finite")


def _render(record: RunRecord, notes: list[str]) -> RenderableType:
    config, data = record.config, record.environment["data"]
    split = config["split"]
    images = data[split]
    title = (
        f"{config['model']} with {Path(config['weights']).name}, on {data['name']} ({split})\n"
        f"{counted(images, 'image')} of {data['input_size']}×{data['input_size']} px, normalisation "
        f"{config['normalization']}: mean {_three(config['mean'])}, std {_three(config['std'])}"
    )
    table = TerminalTable([Column("measured"), Column("value", "number"), Column("95% interval", "number")], title)
    for row in _rows(record, split, images):
        table.add_row(*row)
    parts: list[RenderableType] = [table]
    if "corruption_top1" in record.samples:
        parts += [Text(), _render_corruptions(record)]
    parts += [Text(note) for note in notes]
    parts += [Text(str(flag)) for flag in record.flags]
    return Group(*parts)


def _rows(record: RunRecord, split: str, images: int) -> Iterator[tuple[str, str, str]]:
    from reports.data.loading import calibration_error, matrix
    from reports.data.statistics import wilson_interval

    metrics: dict[str, Any] = record.metrics
    if (top1 := metrics.get(f"{split}_top1")) is not None:
        yield "accuracy", *_share(top1, *wilson_interval(top1, images))
        yield "right answers", f"{round(top1 * images):,} of {images:,}", ""
    for key in (f"{split}_miou", f"{split}_pixel_accuracy", f"{split}_loss", "corruption_top1"):
        if key in metrics:
            known = METRICS[key]
            yield known.in_text, f"{known.text(metrics[key])} {known.unit}".strip(), ""
    if bins := matrix(record.samples.get(f"{split}_calibration"), 3):
        yield "calibration error", f"{METRICS['calibration_error'].text(calibration_error(bins))} %", ""
    confusion = matrix(record.samples.get(f"{split}_confusion"))
    for k, (name, counts) in enumerate(zip(record.environment["data"]["classes"], confusion, strict=False)):
        if total := sum(counts):
            share = counts[k] / total
            yield f"class {name}", *_share(share, *wilson_interval(share, total))
    for key in ("throughput_img_per_s", "latency_p50_ms"):
        if key in metrics:
            value, first, last = format_within(*(metrics[f"{key}{end}"] for end in ("", "_low", "_high")))
            yield METRICS[key].in_text, f"{value} {METRICS[key].unit}", f"{first} – {last}"


def _share(value: float, low: Any, high: Any) -> tuple[str, str]:
    """An accuracy and its interval in percent."""
    return f"{100 * value:.2f} %", f"{100 * float(low):.2f} – {100 * float(high):.2f}"


def _render_corruptions(record: RunRecord) -> TerminalTable:
    names = record.environment["corruptions"]["names"]
    rows: Any = record.samples["corruption_top1"]
    columns = [Column("accuracy % under"), *(Column(str(k + 1), "number") for k in range(len(rows[0])))]
    table = TerminalTable([*columns, Column("mean", "number")], "Corruptions, by severity")
    for name, row in zip(names, rows, strict=True):
        table.add_row(name.replace("_", " "), *(f"{100 * value:.2f}" for value in (*row, sum(row) / len(row))))
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    table.add_row("mean", *(f"{100 * value:.2f}" for value in (*means, sum(means) / len(means))))
    return table


def _three(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
