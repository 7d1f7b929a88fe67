"""The exponential moving average of a network's weights, taken on the device without waiting for it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the parameters and buffers of a network, in ``module``, a copy of it.

    The numbers are those of torch's `AveragedModel`, which keeps its count in a tensor and so waits for a GPU twice a
    step, and which rounds integers down even where they do not change.

    Args:
        model: the network, with all the buffers that it will have.
        decay: the share of the average that an update keeps, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights in as they are now; the first time they become the average."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        if self.updates == 0:
            for mean, value in pairs:
                mean.copy_(value)
        else:
            means = [mean for mean, _ in pairs if mean.is_floating_point()]
            values = [value for mean, value in pairs if mean.is_floating_point()]
            torch._foreach_lerp_(means, values, 1 - self._decay)
            for mean, value in pairs:
                if not mean.is_floating_point():
                    # Rounding would change a table of indices, whose average is what it was.
                    moved = (mean * self._decay + value * (1 - self._decay)).to(mean.dtype)
                    mean.copy_(torch.where(mean == value, value, moved))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the state that a checkpoint kept."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in itertools.chain(model.parameters(), model.buffers())]
