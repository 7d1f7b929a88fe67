"""Energy of an NVIDIA GPU by NVML: a counter of the whole GPU, so that other programs' work is counted with ours."""

from __future__ import annotations

from typing import Any

import torch

MIN_SECONDS = 5.0
"""NVML's sensor looks at an A100 or H100 for a quarter of the time only, and updates some ten times a second (Yang et
al. 2024, "Accurate and convenient energy measurements for GPUs"): over a shorter time the difference means little."""


class EnergyUnavailableError(RuntimeError):
    """Energy cannot be measured here; the message says why, and how it could be."""


class EnergyMeter:
    """The energy that a GPU has used since its driver was loaded. NVML counts it from Volta (2017) on.

    Raises `EnergyUnavailableError` where there is no such counter.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise EnergyUnavailableError(f"{device.type} has no energy counter that zoobench reads; NVIDIA GPUs have")
        try:
            import pynvml
        except ImportError as error:
            raise EnergyUnavailableError("the package nvidia-ml-py is missing: pip install 'zoobench[nvml]'") from error
        try:
            pynvml.nvmlInit()
            # By UUID: CUDA_VISIBLE_DEVICES renumbers the GPUs for CUDA alone.
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle: Any = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except (pynvml.NVMLError, AssertionError, RuntimeError) as error:  # torch asserts that it knows CUDA at all
            raise EnergyUnavailableError(f"NVML gives no energy of {device}: {error}") from error
        self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption

    def joules(self) -> float:
        """The counter, in joules; differences mean something."""
        return float(self._read(self._handle)) / 1000
