"""A driver of ours behind NVIDIA's own Python package: GPUs whose every answer a test writes."""

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml
import pytest


@dataclass
class ScriptedGpu:
    """What one GPU answers; an error in place of an answer is raised, and a function in its place is called."""

    uuid: str = "GPU-aaaa"
    clock_mhz: object = 1980
    celsius: object = 50
    reasons: object = 0
    pids: object = (4321,)
    power_limit_milliwatts: object = 700_000
    usual_power_limit_milliwatts: object = 700_000
    max_clock_mhz: object = 1980
    millijoules: object = 0
    parent: "ScriptedGpu | None" = None
    """The whole GPU, of one that is a part of it (MIG)."""


@dataclass
class ScriptedNvml:
    """The machine's GPUs; names in ``gone`` are functions that this version of NVML no longer has."""

    gpus: list[ScriptedGpu] = field(default_factory=lambda: [ScriptedGpu()])
    gone: tuple[str, ...] = ()
    driver: str = "575.1"
    init_error: pynvml.NVMLError | None = None

    def find(self, uuid):
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise pynvml.NVMLError_NotFound()

    def init(self):
        if self.init_error is not None:
            raise self.init_error

    @contextlib.contextmanager
    def installed(self):
        def asks(attribute):
            def answer(gpu, *arguments):
                if gpu.parent is not None and attribute != "pids":
                    raise pynvml.NVMLError_NotSupported()
                value = getattr(gpu, attribute)
                if isinstance(value, Exception):
                    raise value
                return value() if callable(value) else value

            return answer

        def processes(gpu):
            return [SimpleNamespace(pid=pid) for pid in asks("pids")(gpu)]

        functions = {
            "nvmlInit": self.init,
            "nvmlSystemGetDriverVersion": lambda: self.driver,
            "nvmlDeviceGetHandleByUUID": self.find,
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda part: part.parent,
            "nvmlDeviceGetCurrentClocksEventReasons": asks("reasons"),
            "nvmlDeviceGetCurrentClocksThrottleReasons": asks("reasons"),
            "nvmlDeviceGetComputeRunningProcesses": processes,
            "nvmlDeviceGetClockInfo": asks("clock_mhz"),
            "nvmlDeviceGetTemperature": asks("celsius"),
            "nvmlDeviceGetEnforcedPowerLimit": asks("power_limit_milliwatts"),
            "nvmlDeviceGetPowerManagementDefaultLimit": asks("usual_power_limit_milliwatts"),
            "nvmlDeviceGetMaxClockInfo": asks("max_clock_mhz"),
            "nvmlDeviceGetTotalEnergyConsumption": asks("millijoules"),
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, function in functions.items():
                patch.setattr(pynvml, name, function)
            for name in self.gone:
                patch.delattr(pynvml, name)
            yield self
