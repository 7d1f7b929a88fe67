"""A duet: two networks that stay alive side by side and are timed in turn, block by block, ABBA BAAB …

Both live in one process where they run on one interpreter, which makes them share whatever befalls it; else in two
processes that take turns. `measure_pair` is one observation: fresh processes, both orders of building, many quads.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from bench.environment import CpuUse
from bench.errors import UserError
from bench.measure.interference import Interference, Notice, gpu_notices, momentary_flags, preemption_flags

WORKER = Path(__file__).with_name("duet_worker.py")
BLOCK_SECONDS = 0.01
"""What a block is aimed at: short, so that many fit and what befalls the machine befalls both sides.

On a quiet machine the error after a second of measuring was about half of that with blocks of 30 ms. Below 10 ms it
did not fall further, while a switch of a few milliseconds to another process spoilt more of the blocks.
"""
MIN_QUADS = 2
MAX_PADDING = 2**20
STDERR_TAIL = 2000
QUAD_ORDERS = ((0, 1, 1, 0), (1, 0, 0, 1))
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(64 * 2**20)}
"""glibc keeps the memory that tensors give back; see `bench.environment.keep_allocator_pages`."""

SHORT_SPIN = "1000"


class WorkerError(Exception):
    """A command that a worker could not do; ``kinds`` names the error's class and its bases."""

    def __init__(self, message: str, kinds: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.kinds = tuple(kinds)


class InterpreterError(UserError):
    """An interpreter that does not run, or lacks torch."""


@dataclass(frozen=True)
class Setting:
    """What both sides share: the device, the threads, and the task."""

    device: str = "cpu"
    threads: int = 1
    mode: Literal["infer", "train"] = "infer"
    input_size: int = 32
    num_classes: int = 10
    in_chans: int = 3

    @property
    def has_cpu_witness(self) -> bool:
        """Whether process CPU time measures the same work as wall time: on CPU with one thread, which never waits."""
        return self.device == "cpu" and self.threads == 1


@dataclass(frozen=True)
class Lane:
    """One network as one side builds it; ``root`` holds its package `zoo`, None means the interpreter's own.

    ``program`` is a file whose `create_step` takes the network's place: a fixed workload.
    """

    interpreter: str
    root: str | None
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    channels_last: bool = False
    dtype: str = "float32"
    compile: bool = False
    program: str | None = None


@dataclass(frozen=True)
class Block:
    """The seconds of one block by the wall clock (on CUDA: by the GPU's) and by process CPU time."""

    lane: int
    seconds: float
    cpu_seconds: float
    involuntary_switches: int


@dataclass(frozen=True)
class Quad:
    """Four blocks in the order ABBA or BAAB; ``flags`` name what disturbed them."""

    blocks: tuple[Block, ...]
    flags: tuple[str, ...]

    def log_ratio(self, clock: Literal["seconds", "cpu_seconds"] = "seconds") -> float:
        """Of head's time over base's: the difference of the mean logarithms."""
        sums = [0.0, 0.0]
        for block in self.blocks:
            sums[block.lane] += math.log(max(getattr(block, clock), 1e-9)) / 2
        return sums[1] - sums[0]


@dataclass(frozen=True)
class PairSample:
    """One pair of fresh lanes: its quads, the steps of a block of each, and the seconds that it took, start apart.

    ``notices`` say what disturbed it as a whole.
    """

    quads: tuple[Quad, ...]
    steps: tuple[int, int]
    step_seconds: tuple[float, ...]
    seconds: float
    notices: tuple[Notice, ...]

    @property
    def disturbed(self) -> int:
        """How many quads carry a flag."""
        return sum(bool(quad.flags) for quad in self.quads)

    def counted(self) -> tuple[Quad, ...]:
        """The quads that the statistics take: the clean ones where they are at least half, else all."""
        clean = tuple(quad for quad in self.quads if not quad.flags)
        return clean if 2 * len(clean) >= len(self.quads) and len(clean) >= MIN_QUADS else self.quads

    def log_ratios(self, clock: Literal["seconds", "cpu_seconds"] = "seconds") -> list[float]:
        """Of a step's time, over the quads that count."""
        more_steps = math.log(self.steps[1] / self.steps[0])
        return [quad.log_ratio(clock) - more_steps for quad in self.counted()]


class WorkerProcess:
    """A process that runs `duet_worker`; ``with`` ends it. ``ask`` sends a command and waits for the answer.

    It starts on its own; `wait` until it is ready, so that several can start at once.
    """

    def __init__(self, interpreter: str, setting: Setting) -> None:
        self._interpreter, self._setting = interpreter, setting
        self.environment: dict[str, Any] = {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        environment = dict(os.environ)
        if interpreter != sys.executable:
            # What our own interpreter is told to import first would take the place of what that one has.
            for name in ("PYTHONPATH", "PYTHONHOME"):
                environment.pop(name, None)
        environment |= ALLOCATOR | {name: str(setting.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        if setting.threads > 1 and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
            # See `bench.executors`. Always, not just on a busy machine: all pairs of a call must be under equal terms.
            environment["GOMP_SPINCOUNT"] = SHORT_SPIN
        try:
            self._process = subprocess.Popen(
                [interpreter, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
                env=environment,
                start_new_session=True,  # Ctrl-C comes to us alone; we then end the process
            )
        except OSError as error:
            self._stderr.close()
            raise InterpreterError(
                f"the interpreter {interpreter} does not run: {error.strerror}. Name a virtual environment whose "
                "bin/python exists: env:/path/to/venv."
            ) from error

    def wait(self) -> Self:
        """Until torch is imported and the device is there. Raises `InterpreterError` if that fails."""
        try:
            self.environment = self.ask("start", device=self._setting.device, threads=self._setting.threads)
        except WorkerError as error:
            raise InterpreterError(
                f"the interpreter {self._interpreter} cannot measure on {self._setting.device}: {error}. It needs "
                "torch, and the device; `zoobench doctor` says what is here."
            ) from error
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command. Raises `WorkerError` if it failed or the process died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # a process that died is told by the missing answer
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace")[-STDERR_TAIL:].strip()
            raise WorkerError(f"the process ended with status {status}" + (f": {said}" if said else ""))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], answer.get("kinds", ()))
        return answer

    def close(self) -> None:
        """End the process, and a fork of it, whatever they are doing."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own
        else:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Player(Protocol):
    """Something that does a worker's commands."""

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command. Raises `WorkerError`."""

    def close(self) -> None:
        """Free all that it holds."""


class Duet:
    """Fresh processes that hold the lanes of one model after another: one for each interpreter among the sides.

    Starting them took ``start_seconds``; another duet of the same kind would take ``next_start_seconds``.
    """

    inside = False
    """Whether the lanes are in this very process."""

    def __init__(self, interpreters: Sequence[str], setting: Setting) -> None:
        self.setting = setting
        self._workers: dict[str, Player] = {}
        begun = time.monotonic()
        try:
            workers = []
            for interpreter in dict.fromkeys(interpreters):
                workers.append(WorkerProcess(interpreter, setting))
                self._workers[interpreter] = workers[-1]
            for worker in workers:
                worker.wait()
        except BaseException:
            self.close()
            raise
        self.start_seconds = self.next_start_seconds = time.monotonic() - begun

    @classmethod
    def of(
        cls, workers: Mapping[str, Player], setting: Setting, *, start_seconds: float, next_start_seconds: float
    ) -> Self:
        """A duet of processes that somebody else has started."""
        duet = cls.__new__(cls)
        duet.setting, duet._workers = setting, dict(workers)
        duet.start_seconds, duet.next_start_seconds = start_seconds, next_start_seconds
        return duet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()

    @contextlib.contextmanager
    def build(self, lanes: Sequence[Lane], batch_size: int, order: Sequence[int], seed: int) -> Iterator[Stage]:
        """Inside, the lanes are built, in that order and at a place in memory that ``seed`` chooses, and warm."""
        generator = random.Random(seed)  # noqa: S311 - of layouts, not of secrets
        places: list[tuple[Player, int]] = [(self._workers[lane.interpreter], 0) for lane in lanes]
        step_seconds = [0.0] * len(lanes)
        for interpreter, worker in self._workers.items():
            own = [index for index, lane in enumerate(lanes) if lane.interpreter == interpreter]
            if not own:
                continue
            answer = worker.ask(
                "build",
                lanes=[self._specification(lanes[index], batch_size) for index in own],
                order=[own.index(index) for index in order if index in own],
                padding=[generator.randrange(MAX_PADDING) for _ in own],
            )
            for position, index in enumerate(own):
                places[index] = worker, position
                step_seconds[index] = answer["step_seconds"][position]
        try:
            yield Stage(places, tuple(step_seconds), self.setting, self.inside)
        finally:
            for worker in self._workers.values():
                with contextlib.suppress(WorkerError):  # one that died has freed everything
                    worker.ask("drop")

    def _specification(self, lane: Lane, batch_size: int) -> dict[str, Any]:
        task = {key: getattr(self.setting, key) for key in ("mode", "input_size", "num_classes", "in_chans")}
        return {**asdict(lane), **task, "batch_size": batch_size}


@dataclass(frozen=True)
class Stage:
    """Lanes that are built and warm; ``step_seconds`` is what a step of each took at the end of its warm-up."""

    places: Sequence[tuple[Player, int]]
    step_seconds: tuple[float, ...]
    setting: Setting
    inside: bool = False

    def block_steps(self, seconds: float = BLOCK_SECONDS) -> int:
        """How many steps of the slowest lane fill a block."""
        return max(1, round(seconds / max(self.step_seconds)))

    def own_block_steps(self, seconds: float = BLOCK_SECONDS) -> tuple[int, int]:
        """How many steps of each of two lanes fill a block of its own."""
        first, second = (max(1, round(seconds / each)) for each in self.step_seconds)
        return first, second

    def measure_quad(
        self,
        steps: Sequence[int],
        order: Sequence[int],
        interference: Interference,
        lanes: tuple[int, int] = (0, 1),
    ) -> Quad:
        """Time four blocks; ``steps[i]`` is what a block of the i-th of the two ``lanes`` does."""
        blocks: list[Block] = []
        before = CpuUse.now()
        for index in order:
            worker, position = self.places[lanes[index]]
            blocks.append(Block(lane=index, **worker.ask("run", lane=position, steps=steps[index])))
        after = CpuUse.now()
        # Our own process is told apart already.
        own_seconds = 0.0 if self.inside else sum(block.cpu_seconds for block in blocks)
        interference.add(before, after, own_seconds)
        flags = momentary_flags(before, after, own_seconds)
        if self.setting.has_cpu_witness:
            flags |= preemption_flags([(each.seconds, each.cpu_seconds) for each in blocks])
        return Quad(tuple(blocks), tuple(sorted(flags)))


def measure_pair(duet: Duet, lanes: tuple[Lane, Lane], batch_size: int, seconds: float, seed: int) -> PairSample:
    """Time base and head in turn for ``seconds``, building and warming up included; half of it in either order.

    The lane that is built first lies better in memory now and then; built once in either order, that cancels inside
    the pair. Lanes that are compiled are built once, in an order that changes with ``seed``. Both lanes do as
    many steps in a block; beside a fixed workload each does as many as fill its own.

    Raises `WorkerError` if a lane cannot be built or run.
    """
    begun = time.monotonic()
    orders = [(0, 1), (1, 0)] if seed % 2 == 0 else [(1, 0), (0, 1)]
    if any(lane.compile for lane in lanes):
        orders = orders[:1]
    beside_fixed = any(lane.program is not None for lane in lanes)
    quads: list[Quad] = []
    steps: tuple[int, int] | None = None
    step_seconds: tuple[float, ...] = ()
    interference = Interference()
    for number, order in enumerate(orders):
        deadline = begun + seconds * (number + 1) / len(orders)
        with duet.build(lanes, batch_size, order, seed * len(orders) + number) as stage:
            steps = steps or (stage.own_block_steps() if beside_fixed else (stage.block_steps(),) * 2)
            step_seconds = step_seconds or stage.step_seconds
            sitting = 0
            while sitting < MIN_QUADS or time.monotonic() < deadline:
                quads.append(stage.measure_quad(steps, QUAD_ORDERS[(sitting + number) % 2], interference))
                sitting += 1
    assert steps is not None
    notices = interference.notices()
    if duet.setting.device.startswith("cuda"):
        notices += gpu_notices(own_processes=len({lane.interpreter for lane in lanes}))
    return PairSample(tuple(quads), steps, step_seconds, time.monotonic() - begun, tuple(notices))
