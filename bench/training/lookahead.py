"""Lookahead: fast weights that return, every few steps, towards slow ones (Zhang et al. 2019, arXiv:1907.08610)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAY = 0.95
"""How much of the slow weights is kept at the very end, a step (Jordan 2024, arXiv:2404.00498, listing 4)."""


class Lookahead:
    """The slow weights of a model: parameters, and buffers of floating point numbers.

    Every ``interval`` steps ``slow ← decay·slow + (1 − decay)·fast`` and ``fast ← slow``, with a decay that rises with
    the cube of the budget spent: the beginning explores, the end averages.
    """

    def __init__(self, model: nn.Module, interval: int) -> None:
        self.interval = interval
        self._fast = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        self.slow = {name: value.clone() for name, value in self._fast.items()}

    @torch.no_grad()
    def update(self, step: int, share: float) -> None:
        """After the step of that number (from 1), with this share of the budget spent."""
        if step % self.interval == 0:
            decay = DECAY**self.interval * min(share, 1.0) ** 3
            for name, fast in self._fast.items():
                self.slow[name].lerp_(fast, 1 - decay)
                fast.copy_(self.slow[name])

    @torch.no_grad()
    def finish(self) -> None:
        """End with the slow weights."""
        for name, fast in self._fast.items():
            fast.copy_(self.slow[name])

    def load(self, slow: dict[str, Tensor]) -> None:
        """Set the slow weights that a checkpoint kept."""
        for name, value in slow.items():
            self.slow[name].copy_(value)
