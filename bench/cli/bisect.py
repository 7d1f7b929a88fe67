"""`zoobench bisect`: the commit that made a model slower. Like `bench.cli.app`: parses and prints, decides nothing."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from bench.cli.compare import (
    AsRunOption,
    DTypeOption,
    InChansOption,
    InputSizeOption,
    NumClassesOption,
    StepOption,
    ThreadsOption,
    ToleranceOption,
    create_options,
    progress_on_stderr,
)
from bench.cli.options import (
    BudgetOption,
    CudaGraphOption,
    DeviceOption,
    JsonOption,
    ModelsOption,
    OptionalBatchSizeOption,
)
from bench.cli.tables import Column, TerminalTable, create_console, print_json

if TYPE_CHECKING:
    from bench.gate.bisect import Bisection

STYLES = {"bad": "bold red", "good": "green", "inconclusive": "yellow", "skipped": "yellow"}


class History(StrEnum):
    """Which commits between GOOD and BAD are searched."""

    FIRST_PARENT = "first-parent"
    ANCESTRY_PATH = "ancestry-path"


def bisect(
    good: Annotated[str, typer.Argument(help="A revision at which the models are fast, without `git:`.")],
    bad: Annotated[str, typer.Argument(help="A later revision, at which one of them is slower.")] = "HEAD",
    models: ModelsOption = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Find the commit that changed the counts; nothing is timed.")
    ] = False,
    history: Annotated[
        History,
        typer.Option(help="first-parent: merges count as one commit; ancestry-path: all commits between the two."),
    ] = History.FIRST_PARENT,
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
    as_json: JsonOption = False,
) -> None:
    """Find the commit after GOOD, up to BAD, that made a model slower.

    Each commit that git picks is compared with GOOD as `zoobench compare` does it, in temporary folders. One whose
    comparison is inconclusive is measured again with twice the budget, twice at most; one that cannot be tested is
    skipped.

    Exit status: 0 found, 11 inconclusive, 14 BAD is not slower than GOOD, 2 bad input, 130 interrupted.
    """
    from bench.gate.bisect import bisect as find_commit
    from bench.gate.bisect import bisection_to_dict

    options = create_options(
        models,
        budget=budget,
        batch_size=batch_size,
        as_run=as_run,
        tolerance=tolerance,
        device=device,
        threads=threads,
        mode=mode,
        input_size=input_size,
        num_classes=num_classes,
        in_chans=in_chans,
        dtype=dtype,
        cuda_graph=cuda_graph or None,
    )
    if exact:
        options = dataclasses.replace(options, decide="counts")
    with progress_on_stderr() as progress:
        found = find_commit(good, bad, options, history=history.value, progress=progress)
    print_json(bisection_to_dict(found)) if as_json else _print(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _print(found: Bisection) -> None:
    console = create_console()
    table = TerminalTable([Column("commit"), Column("outcome"), Column("date"), Column("subject", optional=1)])
    for trial in found.trials:
        commit = trial.commit
        outcome = Text(trial.outcome, STYLES[trial.outcome])
        table.add_row(commit.sha[:12], outcome, commit.date[:10], commit.subject)
    console.print(table)
    for trial in found.trials:
        console.print(Text(f"{trial.commit.sha[:12]}: {trial.detail}"))
    console.print(Text(found.summary))
    if found.verdict == "found" and found.confirmation is not None:
        console.print(Text(f"Beside its parent: {found.confirmation.detail}"))
        for result in found.confirmation.results:
            for difference in result.differences:
                console.print(Text(f"{result.model}: {difference}"))
    elif len(found.suspects) > 1:
        console.print(Text("\n".join(map(str, found.suspects))))
