"""Options and arguments that several commands share: one name, type and help text each.

A default belongs to the command: ``def throughput(device: DeviceOption = "auto")``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Step(StrEnum):
    """What a gate times: a forward pass, or a training step."""

    INFER = "infer"
    TRAIN = "train"


class ExecutorName(StrEnum):
    """Where a plan's runs are done."""

    LOCAL = "local"
    RAY = "ray"


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name in the zoo, timm/NAME or torchvision/NAME.")
]
ModelsOption = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Comma-separated names or wildcards; NAME,OPTION=VALUE sets an option."),
]

ResultsOption = Annotated[
    str | None,
    typer.Option("--results", metavar="DIR", help="Results folder or fsspec URL; results/PLAN if omitted."),
]
SeveralResultsOption = Annotated[
    list[str] | None,
    typer.Option("--results", metavar="DIR", help="Results folder or fsspec URL; repeatable. results if omitted."),
]
LimitTrainOption = Annotated[int | None, typer.Option(help="Use at most that many training images, val included.")]
LimitTestOption = Annotated[int | None, typer.Option(help="Use at most that many test images.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Train and measure again what is done; earlier records are kept.")
]
MeasureAgainOption = Annotated[
    bool, typer.Option("--measure-again", help="Measure again what is trained; earlier records are kept.")
]
BaselinesOption = Annotated[Path, typer.Option("--baselines", metavar="DIR", help="Folder of the baselines.")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, with exact values.")]
WideOption = Annotated[bool, typer.Option("--wide", help="Print exact counts and all columns, however wide.")]

DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")]
ThreadsOption = Annotated[int, typer.Option(min=1, metavar="N", help="CPU threads; 1 gives the most repeatable times.")]
OptionalThreadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="CPU threads; PyTorch's default if omitted.")
]
CudaGraphOption = Annotated[
    bool, typer.Option("--cuda-graph", help="Replay each step as a CUDA graph: without the time of launching kernels.")
]
StepOption = Annotated[Step, typer.Option(help="Time inference or a training step.")]
BudgetOption = Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Most time to spend on each model.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, metavar="N", help="Images per step.")]
OptionalBatchSizeOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Images per step; chosen for each model if omitted.")
]
InputSizeOption = Annotated[int, typer.Option(min=1, metavar="PIXELS", help="Image side.")]
NumClassesOption = Annotated[int, typer.Option(min=1, metavar="N", help="Number of classes.")]
CanonicalInputSizeOption = Annotated[
    int | None, typer.Option(min=1, metavar="PIXELS", help="Image side; the architecture's own if omitted.")
]
CanonicalNumClassesOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Number of classes; the architecture's own if omitted.")
]
