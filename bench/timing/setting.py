"""How a model is run while it is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """Device, precision, memory format and runtime.

    ``dtype`` None is float32, under bfloat16 autocast where ``autocast`` is set. A dtype that is named is that of the
    weights and images in inference; in training it is that of autocast. ``runtime`` is one of
    `bench.runtimes`; what it takes to export and compile is no part of the times. With ``cuda_graph`` a step is
    replayed as a CUDA graph (see `bench.cuda_graph`).
    """

    device: torch.device
    input_size: int
    channels_last: bool = True
    autocast: bool = False
    dtype: str | None = None
    runtime: str = "eager"
    cuda_graph: bool = False

    def images(self, count: int) -> Tensor:
        """Random images ``count×3×S×S`` as the network takes them; their content does not affect speed."""
        images = torch.randn(count, *self.image_shape, device=self.device)
        return images.to(dtype=self.weights_dtype, memory_format=self.memory_format)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return 3, self.input_size, self.input_size

    @property
    def memory_format(self) -> torch.memory_format:
        """Of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def weights_dtype(self) -> torch.dtype:
        """The type of weights and images in inference."""
        return getattr(torch, self.dtype) if self.dtype is not None else torch.float32

    @property
    def multiplied_dtype(self) -> torch.dtype:
        """The type in which inference multiplies: autocast's, or that of the weights."""
        return torch.bfloat16 if self._inference_autocast else self.weights_dtype

    @property
    def training_autocast(self) -> bool:
        """Whether a step of training runs under bfloat16 autocast."""
        return self.autocast if self.dtype is None else self.dtype == "bfloat16"

    @property
    def precision(self) -> str:
        """In words: ``float32``, ``bfloat16 autocast``, or the type of the weights."""
        return "bfloat16 autocast" if self._inference_autocast else str(self.weights_dtype).removeprefix("torch.")

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradients, in this precision."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._inference_autocast),
        ):
            yield

    def describe(self) -> dict[str, Any]:
        """What a record says of the setting; the flags of the process are in its environment's ``precision``."""
        return {
            "precision": self.precision,
            "memory_format": "channels_last" if self.channels_last else "contiguous",
            "runtime": self.runtime,
            "cuda_graph": self.cuda_graph,
        }

    @property
    def _inference_autocast(self) -> bool:
        return self.autocast and self.dtype is None


@contextlib.contextmanager
def fastest_kernels() -> Iterator[None]:
    """cuDNN chooses by trial and deterministic algorithms are off, as speed is measured; then all as it was before.

    Training that must be repeatable turns deterministic algorithms on: some are slower, and every new tensor is filled.
    """
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.benchmark, cudnn.deterministic = True, False
    if algorithms:  # not otherwise: the call imports torch.compile's machinery, which takes seconds
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
        if algorithms:
            torch.use_deterministic_algorithms(True, warn_only=warn_only)
