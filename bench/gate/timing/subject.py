"""What is timed: networks as a side builds them, and the setting that both sides share."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from bench import cuda_graph
from bench.errors import UserError, did_you_mean
from bench.gate.timing.reference import Workload
from bench.runtimes import why_impossible

DTYPES = ("float32", "bfloat16", "float16")
MODES = ("infer", "train")


@dataclass(frozen=True)
class Task:
    """The work of a step, with its number format and memory layout: the same on any machine.

    Images are ``in_chans × input_size × input_size``; ``train`` is forward, loss, backward and a step of SGD. With
    ``cuda_graph`` it is replayed as a CUDA graph. Raises `UserError` for a value that is not possible.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    mode: Literal["infer", "train"] = "infer"
    input_size: int = 32
    num_classes: int = 10
    in_chans: int = 3
    dtype: str = "float32"
    channels_last: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        for name, possible in (("mode", MODES), ("dtype", DTYPES)):
            value = getattr(self, name)
            if value not in possible:
                hint = did_you_mean(str(value), possible)
                raise UserError(f"{name}={value!r} is not possible: expected one of {', '.join(possible)}.{hint}")
        for name in ("threads", "input_size", "num_classes", "in_chans"):
            if getattr(self, name, 1) < 1:
                raise UserError(f"{name}={getattr(self, name)} is not possible: expected an integer of at least 1.")

    @property
    def images(self) -> str:
        """What goes in and comes out, and in which format, for people."""
        images = f"images of {self.in_chans}×{self.input_size}×{self.input_size}, {self.num_classes} classes"
        return f"{images}, {self.dtype}{', channels_last' * self.channels_last}{', CUDA graph' * self.cuda_graph}"

    def __str__(self) -> str:
        return f"mode {self.mode}, {self.images}"


@dataclass(frozen=True)
class Setting(Task):
    """What both sides share: the work, the device and the threads."""

    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuda_graph and self.device != "auto" and (problem := cuda_graph.why_impossible(self.device)):
            raise UserError(problem)

    @property
    def task(self) -> Task:
        """The part that is not the machine's."""
        return Task(**{each.name: getattr(self, each.name) for each in dataclasses.fields(Task)})

    @property
    def compares_cpu_time(self) -> bool:
        """Whether process CPU time measures the same work as wall time: on CPU with one thread, which never waits."""
        return self.device == "cpu" and self.threads == 1

    def __str__(self) -> str:
        work = {"infer": "inference", "train": "training steps"}[self.mode]
        return f"{work}, {self.device}, {self.threads} thread{'s' * (self.threads > 1)}, {self.images}"


@dataclass(frozen=True)
class Subject:
    """One network as one side builds it.

    ``root`` holds the side's package `zoo`; None means the one that ``interpreter`` has installed. ``dtype`` and
    ``channels_last`` are the setting's where they are None. ``runtime`` is one of `bench.runtimes`. ``workload`` takes
    the network's place: see `bench.gate.timing.reference`.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    channels_last: bool | None = None
    dtype: str | None = None
    runtime: str = "eager"
    interpreter: str = sys.executable
    root: str | None = None
    workload: Workload | None = None

    def to_worker(self, setting: Setting, batch_size: int = 1) -> dict[str, Any]:
        """All that a worker needs to build it, as plain values. Raises `UserError` if the runtime cannot do that."""
        own = dataclasses.asdict(self)
        shared = dataclasses.asdict(setting)
        work = {key: shared[key] for key in ("mode", "input_size", "num_classes", "in_chans", "cuda_graph")}
        layout = {key: shared[key] if own[key] is None else own[key] for key in ("dtype", "channels_last")}
        problem = why_impossible(self.runtime, setting.mode, setting.device, **layout)
        if problem is None and setting.cuda_graph:
            problem = cuda_graph.why_impossible(setting.device, self.runtime)
        if problem is not None:
            raise UserError(f"{self.model}: {problem}")
        return own | work | layout | {"batch_size": batch_size, "threads": setting.threads}
