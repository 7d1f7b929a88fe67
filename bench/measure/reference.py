"""The reference workload: a fixed stack of convolutions and matrix products that baselines are kept relative to.

A baseline is measured at one time and compared with at another, when the machine may be slower or faster as a whole.
Both times the network is timed in turn with this workload, and the two ratios are compared. It imports nothing of
ours: `bench.measure.duet_worker` loads it by its path, in whatever environment.

**Any change to what is computed here changes `REFERENCE`**, and baselines that name another are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

REFERENCE = "convolutions-and-products-1"
"""The name of the workload, with its version."""
CHANNELS, SIZE, LAYERS, ORDER = 64, 16, 3, 256
CPU_IMAGES, GPU_IMAGES = 4, 256


def create_step(device: Any) -> Callable[[], None]:
    """One step of the workload on a `torch.device`, without gradients.

    Three 3×3 convolutions of 64 channels on maps of 16×16 pixels, each with ReLU and a residual sum, then two products
    of matrices of order 256: 0.15 G multiply-accumulates on a CPU (4 maps), 7.3 G elsewhere (256 maps), float32. The
    numbers are drawn from a generator of its own and keep their size, so that none is denormal.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    images = CPU_IMAGES if device.type == "cpu" else GPU_IMAGES
    maps = torch.randn(images, CHANNELS, SIZE, SIZE, generator=generator).to(device)
    spread = (9 * CHANNELS) ** -0.5
    kernels = [(torch.randn(CHANNELS, CHANNELS, 3, 3, generator=generator) * spread).to(device) for _ in range(LAYERS)]
    matrices = [(torch.randn(ORDER, ORDER, generator=generator) * ORDER**-0.5).to(device) for _ in range(2)]
    left = torch.randn(ORDER, ORDER, generator=generator).to(device)

    def step() -> None:
        with torch.inference_mode():
            x = maps
            for kernel in kernels:
                x = x + torch.relu(torch.nn.functional.conv2d(x, kernel, padding=1))
            y = left
            for matrix in matrices:
                y = y @ matrix

    return step
