"""How far a training is: its history, its clock, and what the epoch in progress has shown."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

REPORT_EVERY_SECONDS = 0.5

Row = dict[str, Any]
"""What is known of an epoch: epoch, step, seconds, images_seen, lr, train_loss, train_top1, images_per_s, val_…"""


@dataclass
class Training:
    """How far a training is and what it has seen. ``seconds`` is its own clock: evaluation and warm-up are off it.

    ``micro_batch_size`` is smaller than the batch where memory did not suffice: gradients were then accumulated.
    ``head_share`` is the share of the budget in which the head trained alone. ``target_seconds`` and ``target_step``
    tell when the target accuracy was first seen, None if it was not.
    """

    status: Literal["running", "completed", "diverged"] = "running"
    epoch: int = 0
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    micro_batch_size: int = 0
    head_share: float = 0.0
    target_seconds: float | None = None
    target_step: int | None = None
    history: list[Row] = field(default_factory=list)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Clock:
    """Seconds of training, across pauses; the device is waited for at both ends of each stretch."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._total = device, 0.0
        self._since: float | None = None

    def set(self, seconds: float) -> None:
        """Go on from so many seconds."""
        self._total = seconds

    def resume(self) -> None:
        """Training goes on."""
        synchronize(self._device)
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Something else is done."""
        synchronize(self._device)
        self._total, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """What it shows."""
        return self._total + (time.perf_counter() - self._since if self._since is not None else 0.0)


class Meter:
    """What an epoch has shown so far; its sums stay on the device until they are asked for."""

    def __init__(self, training: Training, batch_size: int, device: torch.device) -> None:
        self._training, self._batch_size = training, batch_size
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros((), device=device, dtype=torch.int64)
        self._first_second = training.seconds
        self._reported = time.perf_counter()
        self._labels = 0
        self.steps = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        sums = {"loss": self._loss, "correct": self._correct, "labels": self._labels}
        return sums | {"first_second": self._first_second, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._loss.copy_(state["loss"])
        self._correct.copy_(state["correct"])
        self._first_second, self._labels, self.steps = state["first_second"], state["labels"], state["steps"]

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """A step's loss, and its logits against the targets; mixed images count for the class with the larger share."""
        hard = targets.argmax(1) if targets.is_floating_point() else targets
        self.steps += 1
        self._labels += hard.numel()
        self._loss += loss
        self._correct += (logits.argmax(1) == hard).sum()

    def is_finite(self) -> bool:
        """A loss that was not finite once makes the sum so for good."""
        return bool(torch.isfinite(self._loss))

    def is_due(self) -> bool:
        """Whether the last row is long enough ago for another."""
        return time.perf_counter() - self._reported > REPORT_EVERY_SECONDS

    def row(self, seconds: float, optimizer: torch.optim.Optimizer) -> Row:
        """The epoch so far, after so many seconds of training."""
        self._reported = time.perf_counter()
        images = self.steps * self._batch_size
        return {
            "epoch": self._training.epoch,
            "step": self._training.step,
            "seconds": seconds,
            "images_seen": self._training.step * self._batch_size,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": float(self._loss) / self.steps,
            "train_top1": float(self._correct) / self._labels,
            "images_per_s": images / (seconds - self._first_second),
        }
