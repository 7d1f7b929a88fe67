"""The command of the regression gate. Like `bench.cli`: parses and prints, decides nothing."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bench.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from bench.measure.compare import Comparison


class Mode(StrEnum):
    """What `zoobench compare` times."""

    INFER = "infer"
    TRAIN = "train"


def compare(
    base: Annotated[
        str, typer.Argument(help="git:REV, '.' (the working tree), env:VENV, MODEL[,KEY=VALUE…], or baseline:NAME.")
    ],
    head: Annotated[str, typer.Argument(help="The same; what is compared against BASE.")],
    models: Annotated[
        str | None,
        typer.Option(help="Names or wildcards, by commas; @representative, or all of a baseline, if not given."),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="What is timed: infer, or what a baseline did.")] = None,
    budget: Annotated[float, typer.Option(min=1, help="Seconds of timing a model.")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; one spreads least.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Chosen for each model if not given.")] = None,
    input_size: Annotated[int | None, typer.Option(min=1, help="Pixels: 32, or what a baseline did.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Outputs: 10, or what a baseline did.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="The change that counts as none: 0.05, of a baseline 0.1.")
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option(help="Which of environment,missing,changed,regressed,nothing,inconclusive; or none.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Measure though the environments differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append a summary in Markdown; '-' prints it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all raw blocks as JSON.")] = None,
    folder: Annotated[Path, typer.Option("--baselines", metavar="DIR", help="Folder of the baselines.")] = Path(
        "results/baselines"
    ),
) -> None:
    """Tell whether HEAD made a model slower than BASE: exact gates first, then paired timing.

    Exit status, the first that applies: 13 environments differ, 12 a model is missing or new, 15 the model itself
    changed, 10 regressed, 14 nothing was measured, 11 inconclusive, 0 fine; 2 bad input, 130 interrupted.
    """
    from bench.baselines import Task
    from bench.config import parse_models
    from bench.measure.compare import CompareOptions
    from bench.measure.compare import compare as compare_two
    from bench.measure.duet import Setting
    from bench.measure.past import compare_with_past, load_past
    from bench.measure.relative import PAST_TOLERANCE

    failing = _parse_fail_on(fail_on)
    wanted = {"mode": mode and mode.value, "input_size": input_size, "num_classes": num_classes}
    if markdown == "-" and as_json:
        raise ConfigError("--json and --markdown - would both be printed: give --markdown a file.")
    past = load_past(base, head, folder)
    task = past[0].task if past else Task()
    task = task.model_copy(update={k: v for k, v in wanted.items() if v is not None})
    options = CompareOptions(
        models=parse_models(models) if models is not None else () if past else ("@representative",),
        setting=Setting(device, threads, task.mode, task.input_size, task.num_classes),
        budget_seconds=budget,
        batch_size=batch_size,
        tolerance=tolerance or (PAST_TOLERANCE if past else CompareOptions.tolerance),
        force=force,
    )
    for file in (out, None if markdown in (None, "-") else Path(markdown)):
        _check_folder(file)
    with told_on_stderr() as tell:
        comparison = compare_with_past(past, head, options, tell) if past else compare_two(base, head, options, tell)
    _print(comparison, as_json, markdown, out)
    code = comparison.exit_code(failing)
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def told_on_stderr() -> Iterator[Callable[[str], None]]:
    """Inside, something that shows how it goes: on a terminal in place, else a line each."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda text: status.update(text.replace("[", r"\["))
    else:
        yield lambda text: print(text, file=sys.stderr, flush=True)


def _print(comparison: Comparison, as_json: bool, markdown: str | None, out: Path | None) -> None:
    from bench.measure.compare_summary import comparison_to_dict, raw_to_dict, render_markdown, render_table

    if out is not None:
        out.write_text(_json(raw_to_dict(comparison)))
    if markdown == "-":
        print(render_markdown(comparison), end="")
    elif as_json:
        print(_json(comparison_to_dict(comparison)), end="")
    else:
        Console().print(render_table(comparison))
    if markdown not in (None, "-"):
        with Path(markdown).open("a", encoding="utf-8") as file:
            file.write(render_markdown(comparison))


def _parse_fail_on(text: str | None) -> list[str]:
    """The names in ``--fail-on``; all if not given, none for ``none``."""
    from bench.measure.compare import EXIT_CODES

    if text is None:
        return list(EXIT_CODES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in EXIT_CODES:
            hint = did_you_mean(name, EXIT_CODES)
            raise ConfigError(
                f"--fail-on {name!r} is not possible: expected none, or of {', '.join(EXIT_CODES)}.{hint}"
            )
    if not names:
        raise ConfigError(f"--fail-on names nothing: expected none, or of {', '.join(EXIT_CODES)}.")
    return names


def _check_folder(file: Path | None) -> None:
    """An output that cannot be written is told before the minutes of measuring, not after."""
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"{file} cannot be written: its folder {file.parent} does not exist. Create it first.")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
