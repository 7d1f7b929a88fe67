"""The device, and the settings of a process that computes on it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from typing import TYPE_CHECKING

from bench.disturbance import FOREIGN_SHARE, foreign_share_of_cores
from bench.errors import DeviceError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> str:
    """``auto`` to the best device here; any other name to itself. Raises `DeviceError` if it is not here."""
    import torch

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise DeviceError(f"--device {name!r} is not possible: expected auto, cpu, cuda, cuda:N or mps.")
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            found = f"torch {torch.__version__} sees {count} CUDA devices" if count else "torch sees no CUDA device"
            raise DeviceError(
                f"--device {name} is not possible: {found} on this machine. Use --device cpu or --device auto; "
                "`zoobench doctor` says what is missing."
            )
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps is not possible: torch sees no Apple GPU on this machine. Use --device cpu.")
    return name


def check_devices(device: str, wanted: int) -> None:
    """Check that this machine has ``wanted`` devices of that kind; cores can be shared. Raises `DeviceError`."""
    import torch

    if wanted == 1:
        return
    if device == "cuda" and wanted > (count := torch.cuda.device_count()):
        raise DeviceError(
            f"--nproc wants {wanted} GPUs of this machine, and torch sees {count}. Set --nproc to {count} or less, use "
            "--nodes for the GPUs of several machines, or --device cpu for processes that share the cores."
        )
    if device == "mps":
        raise DeviceError("--nproc is not possible on mps: this machine has one Apple GPU. Use --device cpu.")


def has_glibc() -> bool:
    """Whether the C library is glibc, whose allocator can be told to keep pages."""
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


_allocator = "default"


def allocator() -> str:
    """How this process allocates: ``default``, or ``pages kept`` after `keep_allocator_pages`."""
    return _allocator


def keep_allocator_pages() -> None:
    """Let glibc keep the memory that tensors give back, rather than return it and fault it in again.

    Worth 15 to 35% of training time on a CPU. Does nothing where the C library is not glibc; call it before torch is
    imported.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    if has_glibc():
        global _allocator
        _allocator = "pages kept"
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)


BUSY_LOOK_SECONDS = 0.3


SHORT_SPIN = "1000"
"""Iterations; a few microseconds."""


def thread_settings(threads: int, crowded: bool = False) -> dict[str, str]:
    """The environment of a process that computes with that many threads.

    OpenMP's threads spin while they wait for one another. Where another program holds one of the cores, the spinning
    burns the time slices that the last thread needs: with one such program on two cores, a training step becomes ten
    times slower. So on a busy machine they fall asleep after a short spin; on a quiet one that would cost small
    networks a quarter of their speed. ``crowded`` says that it will be busy.
    """
    settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    chosen_by_user = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if not chosen_by_user and (crowded or foreign_share_of_cores(BUSY_LOOK_SECONDS) > FOREIGN_SHARE):
        settings["GOMP_SPINCOUNT"] = SHORT_SPIN
    return settings


def repeatable_settings(device: str) -> dict[str, str]:
    """The environment in which cuBLAS repeats itself bit for bit; it reads it when it is first used.

    Source: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    """
    if not device.startswith("cuda"):
        return {}
    return {"CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no memory for its handle
    "CUDNN_STATUS_NOT_SUPPORTED",  # of a convolution, where no algorithm's workspace fits
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "nable to find an engine to execute this computation",
)
"""What a `RuntimeError` says where memory did not suffice, and torch does not raise its `OutOfMemoryError`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed for want of memory.

    torch has a class for what its own allocators of CUDA and MPS lack. On the CPU, and where CUDA or one of its
    libraries asks for memory by itself, there is only a message.
    """
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in OUT_OF_MEMORY)
    )


def multiplies_bfloat16(device: str) -> bool:
    """Whether a CUDA device multiplies bfloat16 itself, from Ampere (2020) on; before that torch emulates it slowly."""
    import torch

    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
