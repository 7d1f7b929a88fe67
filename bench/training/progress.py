"""The progress of a training: its history, its clock, and the metrics of the current epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bench.training.distributed import ALONE, Ranks

REPORT_EVERY_SECONDS = 0.5

Row = dict[str, Any]
"""Metrics of an epoch: epoch, step, seconds, images_seen, lr, train_loss, train_top1, images_per_s, val_…"""


@dataclass
class Training:
    """The state of a training. ``seconds`` counts training only, neither evaluation nor warm-up.

    ``micro_batch_size`` is smaller than the batch if memory did not suffice; gradients are then accumulated.
    ``head_share`` is the share of the budget before the last step in which the head trained alone. ``changes_input``
    says that the model works in place on the images it is given. ``target_seconds`` and ``target_step`` are when the
    target accuracy was first reached, None if it was not.
    """

    status: Literal["running", "completed", "diverged"] = "running"
    epoch: int = 0
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    micro_batch_size: int = 0
    head_share: float = 0.0
    changes_input: bool = False
    target_seconds: float | None = None
    target_step: int | None = None
    history: list[Row] = field(default_factory=list)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work; a no-op on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Clock:
    """Seconds of training, without pauses; the device is synchronised at both ends of each interval."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._total = device, 0.0
        self._since: float | None = None

    def set(self, seconds: float) -> None:
        """Continue from this many seconds."""
        self._total = seconds

    def resume(self) -> None:
        """Start, or continue."""
        synchronize(self._device)
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop, for work that is not training."""
        synchronize(self._device)
        self._total, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._total + (time.perf_counter() - self._since if self._since is not None else 0.0)


class Meter:
    """Loss and accuracy of the current epoch; the sums stay on the device until they are read.

    Losses are those of whole batches; hits are of this rank's slices until they are read, which all ``ranks`` do.
    """

    def __init__(self, training: Training, batch_size: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._training, self._batch_size, self._ranks = training, batch_size, ranks
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros((), device=device, dtype=torch.int64)
        self._first_second = training.seconds
        self._reported = time.perf_counter()
        self._labels = 0
        self.steps = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        correct, labels = self._hits()
        sums = {"loss": self._loss, "correct": correct, "labels": labels}
        return sums | {"first_second": self._first_second, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the state that a checkpoint kept."""
        self._loss.copy_(state["loss"])
        self._first_second, self.steps = state["first_second"], state["steps"]
        if self._ranks.rank == 0:
            self._correct.copy_(state["correct"])
            self._labels = state["labels"]

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a step's loss and hits; mixed images count for the class with the larger share."""
        hard = targets.argmax(1) if targets.is_floating_point() else targets
        self.steps += 1
        self._labels += hard.numel()
        self._loss += loss
        self._correct += (logits.argmax(1) == hard).sum()

    def is_finite(self) -> bool:
        """Whether every loss so far was finite: the sum of one that was not never is again."""
        return bool(torch.isfinite(self._loss))

    def is_due(self) -> bool:
        """Whether it is time to report another row."""
        return time.perf_counter() - self._reported > REPORT_EVERY_SECONDS

    def row(self, seconds: float, optimizer: torch.optim.Optimizer) -> Row:
        """The epoch so far, after this many seconds of training."""
        self._reported = time.perf_counter()
        correct, labels = self._hits()
        images = self.steps * self._batch_size
        return {
            "epoch": self._training.epoch,
            "step": self._training.step,
            "seconds": seconds,
            "images_seen": self._training.step * self._batch_size,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": float(self._loss) / self.steps,
            "train_top1": float(correct) / labels,
            "images_per_s": images / (seconds - self._first_second),
        }

    def _hits(self) -> tuple[Tensor, int]:
        """Hits and labels of all ranks."""
        if self._ranks.size == 1:
            return self._correct, self._labels
        both = torch.stack([self._correct, torch.full_like(self._correct, self._labels)])
        self._ranks.add([both])
        return both[0], int(both[1])
