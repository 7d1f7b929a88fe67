"""What this machine has, and what it lacks: for `zoobench doctor`."""

from __future__ import annotations

import os
import shutil
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.data.cache import cache_folder
from bench.environment import PACKAGES, describe_environment, resolve_device


def examine() -> dict[str, Any]:
    """Versions, machine, threads and folders; ``missing`` names what is not there and how to get it."""
    import torch

    device = resolve_device("auto")
    environment = describe_environment(device, torch.get_num_threads())
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    missing = {name: f"pip install {name}" for name in PACKAGES if environment["versions"][name] is None}
    if device == "cpu":
        missing["GPU"] = (
            "torch sees none; on a machine with an NVIDIA GPU install its driver, and torch built for its CUDA version"
            if torch.version.cuda
            else "this torch is built without CUDA; on a machine with an NVIDIA GPU install a CUDA build of torch"
        )
    if "ZOOBENCH_DATA" not in os.environ and not (cache / "downloads").exists():
        missing["CIFAR-10"] = "downloaded at first use, or set ZOOBENCH_DATA to the folder that holds its archive"
    return environment | {
        "cache": str(cache),
        "cache_free_bytes": shutil.disk_usage(existing).free,
        "data_dir": os.environ.get("ZOOBENCH_DATA"),
        "missing": missing,
    }


def render(findings: dict[str, Any]) -> RenderableType:
    """The findings as tables for a terminal."""
    machine, versions = findings["machine"], findings["versions"]
    here = Table("here", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    here.add_row("device", machine["gpu"] or machine["device"])
    here.add_row("processor", f"{machine['cpu']}, {machine['cores']} cores, {findings['threads']} threads used")
    here.add_row("memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB")
    for name, version in versions.items():
        here.add_row(name, version or "missing")
    here.add_row("cache", f"{findings['cache']} ({findings['cache_free_bytes'] / 2**30:.1f} GiB free)")
    here.add_row("data folder", findings["data_dir"] or "not set (ZOOBENCH_DATA)")
    missing = [Text(f"missing: {name}: {remedy}") for name, remedy in findings["missing"].items()]
    return Group(here, *missing)
