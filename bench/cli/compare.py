"""The command of the regression gate. Like `bench.cli.app`: parses and prints, decides nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bench.cli.options import (
    BaselinesOption,
    BudgetOption,
    CudaGraphOption,
    DeviceOption,
    JsonOption,
    ModelsOption,
    OptionalBatchSizeOption,
    Step,
)
from bench.cli.tables import Column, TerminalTable, create_console, print_json
from bench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from bench.gate.baselines import Baseline
    from bench.gate.result import CompareOptions, Comparison

BASELINES = Path("results/baselines")
STYLES = {"regressed": "bold red", "changed": "bold red", "missing": "red", "new": "red", "failed": "red"}
STYLES |= {"inconclusive": "yellow"}


class DType(StrEnum):
    """The number formats that a step can be timed in, by autocast."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


StepOption = Annotated[Step | None, typer.Option("--mode", help="Time inference or training; default: infer.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; default: 1, which gives the most repeatable times.")
]
InputSizeOption = Annotated[int | None, typer.Option(min=1, help="Image side in pixels; default: 32.")]
NumClassesOption = Annotated[int | None, typer.Option(min=1, help="Number of classes; default: 10.")]
InChansOption = Annotated[int | None, typer.Option(min=1, help="Channels of the images; default: 3.")]
DTypeOption = Annotated[DType | None, typer.Option(help="Number format of both sides, by autocast; default: float32.")]
ToleranceOption = Annotated[
    float, typer.Option(min=0.001, max=1, help="A smaller change of a step's time does not matter; 0.05 is 5%.")
]
AsRunOption = Annotated[
    bool,
    typer.Option(
        "--as-run", help="As zoobench run begins: training, all threads, batch 128, its first dtype and layout."
    ),
]


def compare(
    base: Annotated[
        str, typer.Argument(help="git:REV, '.' (the working tree), env:VENV, MODEL[,KEY=VALUE…] or baseline:NAME.")
    ],
    head: Annotated[str, typer.Argument(help="The same; what is compared with BASE.")],
    models: ModelsOption = None,
    mode: StepOption = None,
    budget: BudgetOption = 60.0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    batch_size: OptionalBatchSizeOption = None,
    input_size: InputSizeOption = None,
    num_classes: NumClassesOption = None,
    in_chans: InChansOption = None,
    dtype: DTypeOption = None,
    cuda_graph: CudaGraphOption = False,
    as_run: AsRunOption = False,
    tolerance: ToleranceOption = 0.05,
    memory_tolerance: Annotated[
        float, typer.Option(min=0, max=10, help="By how much peak memory may grow, as a share.")
    ] = 0.05,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Of environment,missing,changed,regressed,memory,nothing,inconclusive; default: all but the last."
        ),
    ] = None,
    accept: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Known changes that fail nothing: TOML, see the guide.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure although the environments differ.")] = False,
    as_json: JsonOption = False,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append a summary in Markdown; '-' prints it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all raw blocks as JSON.")] = None,
    folder: BaselinesOption = BASELINES,
) -> None:
    """Find out whether HEAD made a model slower than BASE: exact gates first, then paired timing.

    Without options a baseline is compared in its own setting, and all of its models are.

    Exit status, the first that applies: 13 environments differ, 12 a model is missing or new, 15 the model itself
    changed, 10 regressed, 16 its peak memory grew, 14 nothing was measured, 11 inconclusive (only with --fail-on),
    0 otherwise; 2 bad input, 130 interrupted.
    """
    from bench.gate.accepted import accept as accept_changes
    from bench.gate.accepted import load_accepted
    from bench.gate.against_baseline import load_sides
    from bench.gate.baselines import Baseline
    from bench.gate.compare import compare as compare_sides

    known = None if accept is None else load_accepted(accept)
    failing = _parse_fail_on(fail_on)
    if markdown == "-" and as_json:
        raise ConfigError("--json and --markdown - would both be printed: give --markdown a file.")
    sides = load_sides(base, head, folder)
    check_models(models, head)
    past = sides[0] if isinstance(sides[0], Baseline) else None
    options = create_options(
        models,
        budget=budget,
        batch_size=batch_size,
        as_run=as_run,
        tolerance=tolerance,
        memory_tolerance=memory_tolerance,
        force=force,
        past=past,
        device=device,
        threads=threads,
        mode=mode,
        input_size=input_size,
        num_classes=num_classes,
        in_chans=in_chans,
        dtype=dtype,
        cuda_graph=cuda_graph or None,
    )
    for file in (out, None if markdown in (None, "-") else Path(markdown)):
        _check_folder(file)
    with progress_on_stderr() as progress:
        comparison = compare_sides(*sides, options, progress)
    if known is not None:
        comparison = accept_changes(comparison, known)
    _print(comparison, as_json, markdown, out)
    code = comparison.exit_code(failing)
    if code:
        raise typer.Exit(code)


def check_models(models: str | None, side: str | None) -> None:
    """Raise `ConfigError` where ``--models`` has nothing to choose: the side is a model itself."""
    from bench.gate.baselines import PREFIX
    from bench.gate.revisions import is_model

    if models is not None and side is not None and not side.startswith(PREFIX) and is_model(side):
        raise ConfigError(
            f"{side!r} names the model itself, so that --models {models!r} has nothing to choose: leave it out, or "
            "name a revision as git:REV."
        )


def create_options(
    models: str | None,
    *,
    budget: float,
    batch_size: int | None,
    as_run: bool,
    tolerance: float = 0.05,
    memory_tolerance: float = 0.05,
    force: bool = False,
    past: Baseline | None = None,
    device: str,
    **given: Any,
) -> CompareOptions:
    """What a call asks for; what is not given is a baseline's, or that of a run, or the default."""
    from bench.config import Recipe, parse_models
    from bench.gate.result import CompareOptions
    from bench.gate.timing.subject import Setting

    if past is not None and device == "auto" and past.environment.get("machine", {}).get("device") == "cpu":
        device = "cpu"  # the baseline's own, whatever else is here
    values: dict[str, Any] = {"device": device}
    if past is not None:
        values |= dataclasses.asdict(past.task)
        values |= {key: past.environment[key] for key in ("threads",) if key in past.environment}
    if as_run:
        values |= _as_run(device)
        batch_size = batch_size or Recipe().batch_size
    for key, value in given.items():
        if value is not None:
            values[key] = value.value if isinstance(value, StrEnum) else value
    if values.get("cuda_graph"):
        from bench.device import resolve_device

        values["device"] = resolve_device(device)  # now: without a GPU there is nothing to capture
    return CompareOptions(
        models=parse_models(models) if models is not None else () if past is not None else ("@representative",),
        setting=Setting(**values),
        budget_seconds=budget,
        batch_size=batch_size,
        tolerance=tolerance,
        memory_tolerance=memory_tolerance,
        force=force,
    )


def _as_run(device: str) -> dict[str, Any]:
    from bench.device import resolve_device
    from bench.runs.resolve import training_defaults

    device = resolve_device(device)
    defaults = training_defaults(device)
    return {
        "device": device,
        "mode": "train",
        "threads": defaults.threads,
        "dtype": "bfloat16" if defaults.autocast else "float32",
        "channels_last": defaults.channels_last,
    }


@contextlib.contextmanager
def progress_on_stderr() -> Iterator[Callable[[str], None]]:
    """Inside, a function that shows a line of progress: on a terminal in place, else one after another."""
    console = create_console(stderr=True)
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda line: status.update(Text(line))
    else:
        yield lambda line: print(line, file=sys.stderr, flush=True)


def _print(comparison: Comparison, as_json: bool, markdown: str | None, out: Path | None) -> None:
    from bench.gate.summary import comparison_to_dict, raw_to_dict, render_markdown

    if markdown == "-":
        print(render_markdown(comparison), end="")
    elif as_json:
        print_json(comparison_to_dict(comparison))
    else:
        print_table(comparison)
    if markdown not in (None, "-"):
        with Path(markdown).open("a", encoding="utf-8") as file:
            file.write(render_markdown(comparison))
    if out is not None:
        out.write_text(json.dumps(raw_to_dict(comparison), allow_nan=False) + "\n", encoding="utf-8")


def print_table(comparison: Comparison) -> None:
    """A row per model, and beneath it why, what differs and what disturbed."""
    from bench.gate.summary import COLUMNS, heading, reasons, remarks, row

    console = create_console()
    console.print(Text(heading(comparison)))
    *titles, _why = COLUMNS
    columns = [
        Column(title, "text" if title in ("model", "verdict") else "number", optional=max(0, position - 3))
        for position, title in enumerate(titles)
    ]
    table = TerminalTable(columns, remedy="--json has all.")
    for result in comparison.results:
        model, verdict, *numbers, _detail = row(result)
        table.add_row(
            model, Text(verdict, "green" if result.accepted else STYLES.get(result.status, "green")), *numbers
        )
    if comparison.results:
        console.print(table)
    for line in [*reasons(comparison), *remarks(comparison)]:
        console.print(Text(line))


def _parse_fail_on(text: str | None) -> list[str]:
    """The names in ``--fail-on``; the default if not given, none for ``none``."""
    from bench.gate.result import EXIT_CODES, FAIL_ON

    if text is None:
        return list(FAIL_ON)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in EXIT_CODES:
            hint = did_you_mean(name, EXIT_CODES)
            raise ConfigError(
                f"--fail-on {name!r} is not possible: expected none, or some of {', '.join(EXIT_CODES)}.{hint}"
            )
    if not names:
        raise ConfigError(f"--fail-on names nothing: expected none, or some of {', '.join(EXIT_CODES)}.")
    return names


def _check_folder(file: Path | None) -> None:
    """Refuse an output that cannot be written before the minutes of measuring, not after."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise ConfigError(f"{file} cannot be written: its folder {file.parent} does not exist. Create it first.")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"{file} cannot be written: it is a folder, or write-protected. Name another file.")
