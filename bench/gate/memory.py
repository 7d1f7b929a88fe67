"""Peak memory of a step: exact on a CPU, by the allocator on CUDA; and whether it grew.

On a CPU the bytes of all tensors that are alive at once are counted at every operator, so that equal code gives equal
numbers to the last byte; what libraries allocate for themselves is not seen. Imports nothing of ours:
`bench.gate.timing.worker` loads this file by its path.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Memory:
    """The most bytes that base's step and head's hold: weights, gradients, optimizer state, images, activations."""

    before: int
    after: int

    @classmethod
    def of(cls, before: int | None, after: int | None) -> Self | None:
        """None where either is not known."""
        return None if before is None or after is None else cls(before, after)

    @property
    def change(self) -> float:
        """As a share: 0.05 is 5% more."""
        return self.after / self.before - 1

    def grew(self, tolerance: float) -> bool:
        """Whether head needs more, by more than that share."""
        return self.after > self.before * (1 + tolerance)


def measure_peak_bytes(create_step: Callable[[], Callable[[], Any]], device: Any) -> int | None:
    """The peak of a step's second execution, in which an optimizer's state is there beside the activations.

    None on devices whose memory cannot be observed. ``device`` is a `torch.device`.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        step = create_step()
        step()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    if device.type != "cpu":
        return None
    step = create_step()
    with _live_tensors() as live:
        step()  # whatever it uses is seen
        gc.collect()
        live.peak_bytes = live.held_bytes
        step()
    return int(live.peak_bytes)


def _live_tensors() -> Any:
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Inside, the storages of all operators' inputs and outputs are counted for as long as they live."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.held_bytes = self.peak_bytes = 0
            self._sizes: dict[int, int] = {}

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            output = operator(*args, **kwargs)
            for each in tree_leaves((args, kwargs, output)):
                if isinstance(each, Tensor):
                    self._count(each.untyped_storage())
            return output

        def _count(self, storage: Any) -> None:
            key = storage._cdata
            before = self._sizes.get(key)
            self._sizes[key] = storage.nbytes()  # again, since it may have been resized
            self.held_bytes += self._sizes[key] - (before or 0)
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
            if before is None:
                weakref.finalize(storage, self._forget, key).atexit = False

        def _forget(self, key: int) -> None:
            self.held_bytes -= self._sizes.pop(key)

    return LiveTensors()
