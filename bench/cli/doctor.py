"""`zoobench doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import os
import shutil
from typing import Any

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.data.cache import cache_folder
from bench.device import resolve_device
from bench.disturbance import FOREIGN_SHARE
from bench.machine import PACKAGES, describe_environment
from bench.nvml import watching
from bench.records import Flag
from bench.runs.resolve import training_defaults

LOOK_SECONDS = 0.5
PARTS = {True: "yes (MIG): its other parts share power and clock", False: "no", None: "unknown"}


def examine() -> dict[str, Any]:
    """Versions, machine, threads and folders; ``missing`` maps what is not there to how to get it."""
    import torch

    device = resolve_device("auto")
    environment = describe_environment(device, torch.get_num_threads())
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    missing = {name: f"pip install {name}" for name in PACKAGES if environment["versions"][name] is None}
    if device == "cpu":
        missing["GPU"] = (
            "torch finds none; with an NVIDIA GPU, install its driver and a torch built for that CUDA version"
            if torch.version.cuda
            else "this torch is built without CUDA; with an NVIDIA GPU, install a CUDA build of torch"
        )
    if "ZOOBENCH_DATA" not in os.environ and not (cache / "downloads").exists():
        missing["CIFAR-10"] = "downloaded on first use; or set ZOOBENCH_DATA to the folder that holds its archive"
    if device.startswith("cuda") and environment["machine"].get("driver") is None:
        missing["nvidia-ml-py"] = "pip install 'zoobench[nvml]': energy, power limit, and what disturbs the GPU"
    lost = device.startswith("cuda") and "gpu_uuid" not in environment["machine"]
    asked = "cpu" if lost else device  # a GPU that does not answer would answer with an error
    return environment | {
        "training": training_defaults(asked)._asdict(),
        "energy": _energy(asked),
        "disturbed_by": disturbances(asked),
        "cache": str(cache),
        "cache_free_bytes": shutil.disk_usage(existing).free,
        "data_dir": os.environ.get("ZOOBENCH_DATA"),
        "missing": missing,
    }


def disturbances(device: str) -> list[str]:
    """What would disturb a measurement now: other work on the processor, and on the GPU where there is one."""
    import torch

    flags: list[Flag] = []
    if device.startswith("cuda"):
        torch.zeros(1, device=device)  # one of the processes that compute on it is then this one
    with watching(device, "doctor", flags):
        busy = psutil.cpu_percent(interval=LOOK_SECONDS) / 100
    found = [flag.message for flag in flags]
    return [f"processes use {busy:.0%} of the processor", *found] if busy > FOREIGN_SHARE else found


def _energy(device: str) -> str:
    import torch

    from bench.timing.energy import MIN_SECONDS, EnergyMeter, EnergyUnavailableError

    try:
        EnergyMeter(torch.device(device))
    except EnergyUnavailableError as error:
        return f"not measured: {error}"
    return f"NVML's counter of the whole GPU, over {MIN_SECONDS:.0f} seconds or more"


def render(findings: dict[str, Any]) -> RenderableType:
    """The findings for a terminal."""
    machine, versions = findings["machine"], findings["versions"]
    here = Table.grid(padding=(0, 2, 0, 0))
    here.add_column(no_wrap=True)
    here.add_column(overflow="fold")
    here.add_row("device", machine["gpu"] or machine["device"])
    here.add_row("processor", f"{machine['cpu']}, {machine['cores']} cores, {findings['threads']} threads used")
    if machine["gpu"]:
        for name, value in _describe_gpu(findings).items():
            here.add_row(name, value)
    here.add_row("memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB")
    for name, version in versions.items():
        here.add_row(name, version or "missing")
    here.add_row("cache", f"{findings['cache']} ({findings['cache_free_bytes'] / 2**30:.1f} GiB free)")
    here.add_row("data folder", findings["data_dir"] or "not set (ZOOBENCH_DATA)")
    here.add_row("disturbed by", "; ".join(findings["disturbed_by"]) or "nothing that is seen now")
    missing = [Text(f"missing: {name}: {remedy}") for name, remedy in findings["missing"].items()]
    return Group(here, *missing)


def _describe_gpu(findings: dict[str, Any]) -> dict[str, str]:
    """What a run uses on this GPU, and what the GPU is allowed."""
    machine, precision, training = findings["machine"], findings["precision"], findings["training"]
    if "gpu_memory_bytes" not in machine:
        return {"used for": "nothing: a run would fail until it answers"}
    limit, usual = (machine.get(f"{name}power_limit_watts") for name in ("", "default_"))
    power = "unknown" if limit is None else f"{limit:.0f} W"
    if limit is not None and usual is not None and limit < usual:
        power += f", below the usual {usual:.0f} W"
    override = precision["tf32_override"]
    products = f"{precision['cuda_matmul']}; convolutions {precision['cudnn_conv']}"
    if override != "none":
        products += f"; NVIDIA_TF32_OVERRIDE={override} goes before"
    return {
        "GPU memory": f"{machine['gpu_memory_bytes'] / 2**30:.1f} GiB",
        "driver": f"{machine.get('driver', 'unknown')}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}",
        "part of a GPU": PARTS[machine.get("mig")],
        "power limit": power,
        "highest clock": f"{machine['max_clock_mhz']} MHz" if "max_clock_mhz" in machine else "unknown",
        "training in": "bfloat16 autocast" if training["autocast"] else "float32: this GPU only emulates bfloat16",
        "float32 products": products,
        "cuDNN": "chooses kernels by trial while speed is measured; deterministic ones in training",
        "CUDA graphs": "on request: --cuda-graph of throughput and compare; else launches are part of the time",
        "energy": findings["energy"],
    }
