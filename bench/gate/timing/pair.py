"""A pair of networks that stay alive side by side and are timed in turn, block by block, ABBA BAAB …

Both live in one process if they share an interpreter, so that whatever happens to the process happens to both; else in
two processes that take turns. `measure_pair` gives one observation: fresh processes, both orders of building, many
blocks.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from bench.disturbance import CpuUse
from bench.gate.timing.interference import Interference, Notice, preemption_flags
from bench.gate.timing.process import Worker, WorkerError, start_workers
from bench.gate.timing.sample import MIN_ABBA, Abba, Block, PairSample
from bench.gate.timing.subject import Setting, Subject
from bench.nvml import Board, GpuWatch

BLOCK_SECONDS = 0.01
"""The target for a block; four of them are as long as a few ticks of the counters that show what disturbed them."""
SLICE_SECONDS = 0.0005
"""The target for a slice, of which a block consists on a CPU: where neighbours contend for cores and caches, the error
after as long a time is a half to a fifth of that of blocks in one piece."""
MAX_PADDING = 2**20
ORDERS: tuple[tuple[Literal[0, 1], ...], ...] = ((0, 1, 1, 0), (1, 0, 0, 1))


@dataclass(frozen=True)
class WorkerPair:
    """The workers that hold the subjects of one model after another, by interpreter: one, or two where they differ.

    Starting them took ``start_seconds``; starting the next such pair would take ``next_start_seconds``.
    ``in_process`` says whether the subjects live in this very process.
    """

    workers: Mapping[str, Worker]
    setting: Setting
    start_seconds: float = 0.0
    next_start_seconds: float = 0.0
    in_process: bool = False

    @contextlib.contextmanager
    def build(self, subjects: Sequence[Subject], batch_size: int, order: Sequence[int], seed: int) -> Iterator[Built]:
        """Inside, the subjects are built in that order, with a layout in memory that ``seed`` chooses, and warm."""
        generator = random.Random(seed)  # noqa: S311 - of layouts, not of secrets
        places: dict[int, tuple[Worker, int]] = {}
        step_seconds = [0.0] * len(subjects)
        for interpreter, worker in self.workers.items():
            own = [index for index, subject in enumerate(subjects) if subject.interpreter == interpreter]
            if not own:
                continue
            answer = worker.ask(
                "build",
                subjects=[subjects[index].to_worker(self.setting, batch_size) for index in own],
                order=[own.index(index) for index in order if index in own],
                padding=[generator.randrange(MAX_PADDING) for _ in own],
            )
            for position, index in enumerate(own):
                places[index] = worker, position
                step_seconds[index] = answer["step_seconds"][position]
        try:
            yield Built(places, tuple(step_seconds), self.setting, self.in_process)
        finally:
            for worker in self.workers.values():
                with contextlib.suppress(WorkerError):  # one that died has freed everything
                    worker.ask("drop")

    def watch_gpu(self) -> GpuWatch | None:
        """What watches the GPU that the workers compute on; None where that is none."""
        if not self.setting.device.startswith("cuda"):
            return None
        uuid = next(iter(self.workers.values())).environment["machine"].get("gpu_uuid", "of unknown UUID")
        return GpuWatch(lambda: Board(uuid), own_processes=len(self.workers))


OpenPair = Callable[[Sequence[str], Setting], AbstractContextManager[WorkerPair]]
"""Inside, fresh workers, one for each interpreter."""


@dataclass(frozen=True)
class Host:
    """Where networks live: ``connect`` gives a worker for each interpreter to ask for models and counts, and ``serve``
    what opens the pairs that time the subjects. What either has started ends with its context.
    """

    connect: Callable[[Sequence[str], Setting], AbstractContextManager[Mapping[str, Worker]]]
    serve: Callable[[Sequence[Subject]], AbstractContextManager[OpenPair]]


@contextlib.contextmanager
def open_fresh_pair(interpreters: Sequence[str], setting: Setting) -> Iterator[WorkerPair]:
    """Inside, fresh processes. Raises `bench.gate.timing.process.InterpreterError`."""
    begun = time.monotonic()
    with start_workers(interpreters, setting) as workers:
        seconds = time.monotonic() - begun
        yield WorkerPair(workers, setting, seconds, seconds)


@dataclass(frozen=True)
class BlockWork:
    """What a block of base and of head does: ``turns`` slices of ``steps[i]`` steps, which the four blocks of an ABBA
    take in turn; with one turn, block after block."""

    steps: tuple[int, int]
    turns: int = 1

    @property
    def block_steps(self) -> tuple[int, int]:
        """The steps of a whole block of either."""
        return self.steps[0] * self.turns, self.steps[1] * self.turns


@dataclass(frozen=True)
class Built:
    """Subjects that are built and warm; ``step_seconds`` is what a step of each took at the end of its warm-up."""

    places: Mapping[int, tuple[Worker, int]]
    step_seconds: tuple[float, ...]
    setting: Setting
    in_process: bool = False

    def choose_work(self, *, equal: bool = True) -> BlockWork:
        """What fills a block: as many steps of one subject as of the other where they are to be ``equal``."""
        seconds = (max(self.step_seconds),) * 2 if equal else self.step_seconds
        in_slices = self.setting.device == "cpu" and len({id(worker) for worker, _ in self.places.values()}) == 1
        target = SLICE_SECONDS if in_slices else BLOCK_SECONDS
        base, head = (max(1, round(target / each)) for each in seconds)
        longest = max(base * seconds[0], head * seconds[1])
        return BlockWork((base, head), max(1, round(BLOCK_SECONDS / longest)) if in_slices else 1)

    def measure_abba(self, work: BlockWork, order: Sequence[Literal[0, 1]], interference: Interference) -> Abba:
        """Time four blocks."""
        before = CpuUse.now()
        if work.turns > 1:
            worker = self.places[0][0]  # of both, which are its subjects 0 and 1
            answer = worker.ask("take_turns", order=list(order), steps=list(work.steps), turns=work.turns)
            timed, used = answer["blocks"], answer["cpu_seconds"]
        else:
            timed = [self._run(index, work.steps[index]) for index in order]
            used = sum(block["cpu_seconds"] for block in timed)
        after = CpuUse.now()
        blocks: list[Block] = []
        for index, block in zip(order, timed, strict=True):
            if (launching := block.pop("launch_seconds", None)) is not None:
                interference.launch_shares[index].append(launching * work.steps[index] / block["seconds"])
            blocks.append(Block(subject=index, **block))
        # What this process itself uses is accounted for already.
        flags = interference.add(before, after, 0.0 if self.in_process else used)
        if self.setting.compares_cpu_time:
            flags |= preemption_flags([(each.seconds, each.cpu_seconds) for each in blocks])
        return Abba((blocks[0], blocks[1], blocks[2], blocks[3]), tuple(sorted(flags)))

    def _run(self, index: int, steps: int) -> dict[str, Any]:
        worker, position = self.places[index]
        return worker.ask("run", subject=position, steps=steps)


def measure_pair(
    workers: WorkerPair, subjects: tuple[Subject, Subject], batch_size: int, seconds: float, seed: int
) -> PairSample:
    """Time base and head in turn for ``seconds``, building and warming up included; half of it in either order.

    Whichever is built first now and then gets the better place in memory; built once in either order, that cancels
    within the pair. Subjects that are compiled are built once, in an order that changes with ``seed``. Both do the same
    number of steps in a block; beside a fixed workload each does as many as fill a block of its own.

    Raises `WorkerError` if a subject cannot be built or run.
    """
    begun = time.monotonic()
    orders = [(0, 1), (1, 0)] if seed % 2 == 0 else [(1, 0), (0, 1)]
    if any(subject.runtime == "compile" for subject in subjects):
        orders = orders[:1]
    beside_fixed = any(subject.workload is not None for subject in subjects)
    sequences: list[Abba] = []
    work: BlockWork | None = None
    step_seconds: tuple[float, ...] = ()
    interference, watch = Interference(), workers.watch_gpu()
    for number, order in enumerate(orders):
        deadline = begun + seconds * (number + 1) / len(orders)
        with (
            workers.build(subjects, batch_size, order, seed * len(orders) + number) as built,
            watch or contextlib.nullcontext(),
        ):
            work = work or built.choose_work(equal=not beside_fixed)
            step_seconds = step_seconds or built.step_seconds
            done = 0
            while done < MIN_ABBA or time.monotonic() < deadline:
                sequences.append(built.measure_abba(work, ORDERS[(done + number) % 2], interference))
                done += 1
    assert work is not None
    notices = interference.notices()
    if watch is not None:
        notices += [Notice(*notice) for notice in watch.notices()]
    seconds = time.monotonic() - begun
    return PairSample(
        tuple(sequences), work.block_steps, step_seconds, seconds, tuple(notices), interference.launch_share
    )
