"""What machine, what versions, what settings of the process that measures.

The gate loads this file by its path inside other revisions and environments: it imports nothing of this project, and
only the standard library, before `describe_environment`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import operator
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

PACKAGES = ("zoobench", "torch", "torchvision", "timm", "fvcore", "numpy", "pandas")


COMPARED = (
    *(f"machine.{fact}" for fact in ("device", "cpu", "cores", "system", "gpu", "cuda", "cudnn", "driver")),
    *(
        "machine.mig",
        "machine.power_limit_watts",
        "machine.max_clock_mhz",
        "threads",
        "process",
        "allocator",
        "openmp_spin",
    ),
    *(f"precision.{flag}" for flag in ("cuda_matmul", "cudnn_conv", "cpu_matmul", "cudnn_benchmark", "deterministic")),
    "precision.tf32_override",
    *(f"versions.{package}" for package in ("python", "torch", "torchvision", "timm")),
)
"""The facts of an `Environment` of which none may differ between times that are compared."""


class Environment(TypedDict):
    """What a measurement was made on and with, as records, baselines and comparisons store it.

    ``process`` says in whose process the networks of a comparison live; a comparison has the commits of its sides
    elsewhere, not in ``git``.
    """

    machine: dict[str, Any]
    threads: int
    openmp_spin: str
    precision: dict[str, str | bool]
    versions: dict[str, str | None]
    allocator: NotRequired[str]
    process: NotRequired[str]
    git: NotRequired[dict[str, Any] | None]


def incomparable(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Why times from two environments cannot be compared: each fact of `COMPARED` that differs, ``threads 1 → 2``.

    What one of them does not know, as an older record, is no difference.
    """
    old, new = known_facts(before), known_facts(after)
    return tuple(f"{name} {old[name]} → {new[name]}" for name in old if name in new and old[name] != new[name])


UNKNOWN = "unknown"


def known_facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of `COMPARED` that an environment knows, each by the last part of its name."""
    known = {}
    for name in COMPARED:
        value: Any = environment
        for key in name.split("."):
            value = value.get(key, UNKNOWN) if isinstance(value, Mapping) else UNKNOWN
        if value != UNKNOWN:
            known[name.rpartition(".")[2]] = value
    return known


def describe_environment(device: str, threads: int) -> Environment:
    """The machine, the settings, the library versions and the commit that a result depends on."""
    from bench.device import allocator

    environment = describe_process(device, threads)
    environment["allocator"] = allocator()
    environment["git"] = describe_commit(Path(__file__).parent.parent, "zoo", "bench")
    return environment


def describe_process(device: str, threads: int) -> Environment:
    """The part of an environment that needs no code but this file."""
    return {
        "machine": describe_machine(device),
        "threads": threads,
        "precision": describe_precision(),
        "openmp_spin": os.environ.get("GOMP_SPINCOUNT") or os.environ.get("OMP_WAIT_POLICY") or "default",
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, memory and, where the device is one, the GPU with its driver, power limit and clock."""
    machine: dict[str, Any] = {
        "device": device,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": None,
    }
    return machine | (_describe_gpu(device) if device.startswith("cuda") else {})


def _describe_gpu(device: str) -> dict[str, Any]:
    import torch

    try:
        properties = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError) as error:  # lost, perhaps: then it is why a run has died
        return {"gpu": f"does not answer: {error}"}
    facts = {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "gpu_uuid": str(properties.uuid)}
    facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return facts | _describe_board(str(properties.uuid))


def find_gpu(nvml: Any, uuid: str) -> tuple[Any, Any]:
    """NVML's handle of a GPU, or of a part of one (MIG), and that of the whole GPU.

    By its UUID without prefix, as torch gives it: CUDA_VISIBLE_DEVICES renumbers the GPUs for CUDA alone. Raises
    ``NVMLError``.
    """
    try:
        found = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError_NotFound:
        part = nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
        return part, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)
    return found, found


def _describe_board(uuid: str) -> dict[str, Any]:
    """What NVML says of a GPU, as far as it answers; nothing without nvidia-ml-py.

    ``mig`` is whether it is a part of a GPU: driver, power and clock are then those of the whole GPU.
    """
    try:
        import pynvml as nvml
    except ImportError:
        return {}
    try:
        nvml.nvmlInit()
        found, whole = find_gpu(nvml, uuid)
    except nvml.NVMLError as error:
        return {"driver": f"NVML: {error}"}
    queries: dict[str, Callable[[], Any]] = {
        "driver": nvml.nvmlSystemGetDriverVersion,
        "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(whole) / 1000,
        "default_power_limit_watts": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(whole) / 1000,
        "max_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(whole, nvml.NVML_CLOCK_SM),
    }
    facts = {"mig": found is not whole}
    for name, query in queries.items():
        with contextlib.suppress(nvml.NVMLError):  # what this driver does not say is unknown
            facts[name] = query()
    return facts


def describe_precision() -> dict[str, str | bool]:
    """The flags that decide on precision and on the choice of kernels in this process."""
    import torch

    def precision(operations: str) -> str:
        try:
            return str(operator.attrgetter(f"{operations}.fp32_precision")(torch.backends))
        except AttributeError:  # before torch 2.9
            return UNKNOWN

    return {
        "cuda_matmul": precision("cuda.matmul"),
        "cudnn_conv": precision("cudnn.conv"),
        "cpu_matmul": precision("mkldnn.matmul"),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        # Which NVIDIA's libraries heed before torch's flags.
        "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE", "none"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.virtual_memory().total)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_commit(root: Path, *folders: str) -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout at ``root``; None where that is none, as of an installed package.

    Only what lies in ``folders`` counts as changed.
    """
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--", *folders))}
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no commit yet
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def peak_resident_bytes() -> int:
    """The most memory that this process ever held."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
