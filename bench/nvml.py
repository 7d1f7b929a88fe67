"""What NVIDIA's management library says of one GPU: what it is, and what holds it back at this moment.

Of a part of a GPU (MIG) the whole GPU's clocks and power are reported, which the parts share, and the processes of that
part.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from bench.flags import Flag, FlagKind
from bench.machine import find_gpu

REASONS = {
    "nvmlClocksEventReasonSwPowerCap": "its power cap",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "the power brake",
    "nvmlClocksEventReasonHwThermalSlowdown": "heat",
    "nvmlClocksEventReasonSwThermalSlowdown": "heat",
    "nvmlClocksEventReasonHwSlowdown": "a hardware slowdown",
}
"""NVML's reasons for a lower clock than the highest that say that something holds the GPU back."""
IDLE_REASON = "nvmlClocksEventReasonGpuIdle"
SECONDS_BETWEEN_LOOKS = 0.1
PATIENCE_SECONDS = 2.0
"""How long an answer is waited for at the end of a watch."""
CLOCK_SHARE = 0.1
"""A clock that falls by more than this share of its highest value while the GPU works changes what is measured."""


class NvmlUnavailableError(RuntimeError):
    """NVML is not to be had, or does not know this GPU; the message says which, and what to do."""


@dataclass(frozen=True)
class Look:
    """A GPU at one moment; what NVML did not answer is None, and ``unanswered`` says why."""

    clock_mhz: int | None
    celsius: int | None
    reasons: frozenset[str] | None
    """What holds it back, in words of `REASONS`."""
    idle: bool
    processes: frozenset[int] | None
    unanswered: tuple[str, ...]


class Board:
    """A GPU, by its UUID without prefix as torch gives it. Raises `NvmlUnavailableError`."""

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlUnavailableError("the package nvidia-ml-py is missing: pip install 'zoobench[nvml]'") from error
        self.nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self.handle, self._whole = find_gpu(pynvml, uuid)
        except pynvml.NVMLError as error:
            raise NvmlUnavailableError(f"NVML does not answer for GPU {uuid}: {error}") from error

    @classmethod
    def of(cls, device: str) -> Self:
        """The GPU of a CUDA device of torch."""
        import torch

        return cls(str(torch.cuda.get_device_properties(device).uuid))

    def look(self) -> Look:
        """The GPU as it is now."""
        nvml, unanswered = self.nvml, list[str]()
        bits = self._ask(
            "reasons of a lower clock",
            unanswered,
            ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
            self._whole,
        )
        running = self._ask("processes", unanswered, ("nvmlDeviceGetComputeRunningProcesses",), self.handle)
        return Look(
            clock_mhz=self._ask("clock", unanswered, ("nvmlDeviceGetClockInfo",), self._whole, nvml.NVML_CLOCK_SM),
            celsius=self._ask(
                "temperature", unanswered, ("nvmlDeviceGetTemperature",), self._whole, nvml.NVML_TEMPERATURE_GPU
            ),
            reasons=None
            if bits is None
            else frozenset(word for name, word in REASONS.items() if bits & self._bit(name)),
            idle=bits is not None and bool(bits & self._bit(IDLE_REASON)),
            processes=None if running is None else frozenset(process.pid for process in running),
            unanswered=tuple(unanswered),
        )

    def _bit(self, name: str) -> int:
        """A reason's bit, also under the name that it had before it was called an event."""
        return int(getattr(self.nvml, name, getattr(self.nvml, name.replace("Event", "Throttle"), 0)))

    def _ask(self, what: str, unanswered: list[str], names: tuple[str, ...], *arguments: Any) -> Any:
        """The answer of the first of these functions that is there; None, and a word of why, where it fails."""
        for name in names:
            if (function := getattr(self.nvml, name, None)) is not None:
                try:
                    return function(*arguments)
                except self.nvml.NVMLError as error:
                    unanswered.append(f"{what}: {error}")
                    return None
        unanswered.append(f"{what}: this NVML has no {' or '.join(names)}")
        return None


class GpuWatch:
    """Looks at a GPU from a thread of its own while something is measured; `notices` says what disturbed it.

    ``with`` can be entered again, for the next part of the same measurement.

    Args:
        open_board: finds the GPU, and may raise `NvmlUnavailableError`; called in the thread.
        own_processes: how many of the processes on it are ours. Their ids would not help: in a container they are
            others than those that NVML lists.
    """

    def __init__(self, open_board: Callable[[], Board], own_processes: int) -> None:
        self._open_board, self._own = open_board, own_processes
        self._looks: list[Look] = []
        self._unavailable: str | None = None
        self._hung = False

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        # A daemon, so that a driver that hangs does not keep the process.
        self._thread = threading.Thread(target=self._watch, args=(self._stop,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_SECONDS)
        self._hung = self._hung or self._thread.is_alive()

    def _watch(self, stop: threading.Event) -> None:
        try:
            board = self._open_board()
            self._looks.append(board.look())
            while not stop.wait(SECONDS_BETWEEN_LOOKS):
                self._looks.append(board.look())
        except NvmlUnavailableError as error:
            self._unavailable = str(error)

    def notices(self) -> list[tuple[FlagKind, str]]:
        """Kind and message of each disturbance, and of what could not be seen. Call it after the watch."""
        if self._unavailable is not None:
            return [("gpu_unknown", f"what else disturbed the GPU was not seen: {self._unavailable}")]
        looks, found = list(self._looks), list[tuple[FlagKind, str]]()
        if self._hung:
            found.append(("gpu_unknown", f"NVML had not answered after {PATIENCE_SECONDS:g} s"))
        if unanswered := sorted({each for look in looks for each in look.unanswered}):
            found.append(("gpu_unknown", f"NVML did not say all: {'; '.join(unanswered)}"))
        foreign = max((len(look.processes) for look in looks if look.processes is not None), default=0) - self._own
        if foreign > 0:
            found.append(("gpu_load", f"{foreign} other process{'es' * (foreign > 1)} computed on this GPU"))
        return found + _held_back([look for look in looks if not look.idle])


def _held_back(looks: list[Look]) -> list[tuple[FlagKind, str]]:
    """What the looks at a working GPU say of its clock."""
    clocks = [look.clock_mhz for look in looks if look.clock_mhz is not None]
    hottest = max((look.celsius for look in looks if look.celsius is not None), default=None)
    state = f"clock {min(clocks)} to {max(clocks)} MHz" if clocks else "clock unknown"
    state += "" if hottest is None else f", at most {hottest} °C"
    words = [word for look in looks for word in look.reasons or ()]
    if words:
        share = sum(bool(look.reasons) for look in looks) / len(looks)
        reasons = " and ".join(sorted(set(words)))
        return [("gpu_throttling", f"{reasons} held the GPU back in {share:.0%} of {len(looks)} looks ({state})")]
    if clocks and min(clocks) < (1 - CLOCK_SHARE) * max(clocks):
        return [("gpu_clock", f"the GPU's clock moved while it worked ({state})")]
    return []


@contextlib.contextmanager
def watching(device: str, phase: str, flags: list[Flag]) -> Iterator[None]:
    """Watch the GPU while this process measures or trains on it, and flag what disturbed it; elsewhere do nothing."""
    if not device.startswith("cuda"):
        yield
        return
    with GpuWatch(lambda: Board.of(device), own_processes=1) as watch:
        yield
    flags += [Flag(kind=kind, phase=phase, message=message) for kind, message in watch.notices()]
