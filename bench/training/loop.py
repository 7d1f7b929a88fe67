"""The training loop: one for every architecture, recipe and budget; and evaluation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import Budget, Recipe
from bench.training.checkpoint import Checkpoints
from bench.training.optim import lr_factor

CALIBRATION_BINS = 15
REPORT_EVERY_SECONDS = 0.5

Row = dict[str, Any]
"""What is known of an epoch: epoch, step, seconds, images_seen, lr, train_loss, train_top1, images_per_s, val_…"""


class Batches(Protocol):
    """Where training batches come from: images ``B×C×H×W`` and labels ``B`` on the device."""

    batch_size: int

    def __len__(self) -> int:
        """Batches an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, from the batch ``start`` on."""


class EvaluationBatches(Protocol):
    """Where evaluation batches come from."""

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracy of a split, and what they are made of.

    ``confusion[t][p]`` counts images of class t taken for p. ``calibration`` has a row for each of 15 bins of
    confidence: mean confidence, accuracy, count (Guo et al. 2017).
    """

    loss: float
    top1: float
    confusion: list[list[float]]
    calibration: list[list[float]]


@dataclass
class Training:
    """How far a training is and what it has seen. ``seconds`` is its own clock: evaluation and warm-up are off it."""

    status: Literal["running", "completed", "diverged"] = "running"
    epoch: int = 0
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: Recipe,
    budget: Budget,
    *,
    autocast: bool = False,
    evaluate_val: Callable[[], Evaluation] | None = None,
    report: Callable[[Row], None] = lambda row: None,
    checkpoints: Checkpoints | None = None,
) -> Training:
    """Train ``model`` in place until the budget is spent or the loss is no longer finite (``diverged``).

    ``history`` gets a row an epoch, also for one that the budget cuts short. ``report`` is called with the row so
    far, about twice a second and at each epoch's end. Under a budget of epochs the result is a function of the
    model, the batches and the recipe alone; under one of seconds also of the machine's speed. With ``checkpoints`` the
    training goes on from the newest one, and ends as if it had never stopped.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    device = next(model.parameters()).device
    total_steps = budget.epochs * len(batches) if budget.epochs else None
    # Reading a loss makes the CPU wait for the GPU; on the CPU itself it is free.
    check_every = 1 if device.type == "cpu" else 50
    training, clock = Training(), _Clock(device)
    meter = _Meter(training, batches.batch_size, device)

    warm_up(model, next(batches.epoch(0)), recipe, autocast)
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        _restore(saved, model, optimizer, training, meter, clock)
    while training.status == "running":
        model.train()
        clock.resume()
        for images, targets in batches.epoch(training.epoch, start=meter.steps):
            spent = training.step / total_steps if total_steps else clock.seconds / (budget.seconds or 1.0)
            if spent >= 1:
                break
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_factor(recipe, spent)
            loss, logits = train_step(model, optimizer, images, targets, recipe, autocast)
            training.step += 1
            meter.add(loss, logits, targets)
            if training.step % check_every == 0:
                if not meter.is_finite():
                    break
                if meter.is_due():
                    report(meter.row(clock.seconds, optimizer))
            if checkpoints is not None and checkpoints.is_due():
                clock.pause()
                checkpoints.save(training.step, model.state_dict(), _state(optimizer, training, meter, clock))
                clock.resume()
        clock.pause()
        finite = meter.is_finite()
        if meter.steps:
            row = meter.row(clock.seconds, optimizer)
            if evaluate_val is not None and finite:
                evaluation = evaluate_val()
                row |= {"val_loss": evaluation.loss, "val_top1": evaluation.top1}
            training.history.append(row)
            report(row)
        training.epoch += 1
        training.seconds = clock.seconds
        training.images_seen = training.step * batches.batch_size
        meter = _Meter(training, batches.batch_size, device)
        if not finite:
            training.status = "diverged"
        elif training.step == total_steps or (budget.seconds and clock.seconds >= budget.seconds):
            training.status = "completed"
        if checkpoints is not None:
            checkpoints.save(training.step, model.state_dict(), _state(optimizer, training, meter, clock))
    return training


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    autocast: bool,
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward, step. Returns the loss (a scalar) and the logits ``B×K``, both detached."""
    with _autocast(images.device, autocast):
        logits = model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
    optimizer.step()
    return loss.detach(), logits.detach()


def warm_up(model: nn.Module, batch: tuple[Tensor, Tensor], recipe: Recipe, autocast: bool) -> None:
    """Do off the clock what a framework does once: one forward and backward pass, which leaves no trace.

    The weights, the batch norms' statistics and the random stream are as before.
    """
    images, targets = batch
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [images.device] if images.device.type == "cuda" else []
    model.train()
    with torch.random.fork_rng(devices):
        with _autocast(images.device, autocast):
            loss = F.cross_entropy(model(images).float(), targets, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def evaluate(model: nn.Module, batches: EvaluationBatches, num_classes: int, autocast: bool = False) -> Evaluation:
    """Loss, accuracy, confusion and calibration of the model, in evaluation mode, over every image once."""
    model.eval()
    logits_parts, target_parts = [], []
    with torch.inference_mode():
        for images, targets in batches.in_order():
            with _autocast(images.device, autocast):
                logits_parts.append(model(images).float())
            target_parts.append(targets)
        logits, targets = torch.cat(logits_parts).cpu(), torch.cat(target_parts).cpu()
        confidence, predicted = logits.softmax(1).max(1)
        correct = predicted == targets
        pairs = targets * num_classes + predicted
        confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
        return Evaluation(
            loss=float(F.cross_entropy(logits, targets)),
            top1=float(correct.double().mean()),
            confusion=confusion.double().tolist(),
            calibration=_calibration(confidence.double(), correct.double()),
        )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _Clock:
    """Seconds of training, across pauses; the device is waited for at both ends of each stretch."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._total = device, 0.0
        self._since: float | None = None

    def set(self, seconds: float) -> None:
        self._total = seconds

    def resume(self) -> None:
        synchronize(self._device)
        self._since = time.perf_counter()

    def pause(self) -> None:
        synchronize(self._device)
        self._total, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._total + (time.perf_counter() - self._since if self._since is not None else 0.0)


class _Meter:
    """What an epoch has shown so far; its sums stay on the device until they are asked for."""

    def __init__(self, training: Training, batch_size: int, device: torch.device) -> None:
        self._training, self._batch_size = training, batch_size
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros((), device=device, dtype=torch.int64)
        self._first_second = training.seconds
        self._reported = time.perf_counter()
        self.steps = 0

    def state(self) -> dict[str, Any]:
        return {"loss": self._loss, "correct": self._correct, "first_second": self._first_second, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self._loss.copy_(state["loss"])
        self._correct.copy_(state["correct"])
        self._first_second, self.steps = state["first_second"], state["steps"]

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        self.steps += 1
        self._loss += loss
        self._correct += (logits.argmax(1) == targets).sum()

    def is_finite(self) -> bool:
        """A loss that was not finite once makes the sum so for good."""
        return bool(torch.isfinite(self._loss))

    def is_due(self) -> bool:
        return time.perf_counter() - self._reported > REPORT_EVERY_SECONDS

    def row(self, seconds: float, optimizer: torch.optim.Optimizer) -> Row:
        self._reported = time.perf_counter()
        images = self.steps * self._batch_size
        return {
            "epoch": self._training.epoch,
            "step": self._training.step,
            "seconds": seconds,
            "images_seen": self._training.step * self._batch_size,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": float(self._loss) / self.steps,
            "train_top1": float(self._correct) / images,
            "images_per_s": images / (seconds - self._first_second),
        }


def _state(optimizer: torch.optim.Optimizer, training: Training, meter: _Meter, clock: _Clock) -> dict[str, Any]:
    """All that the rest of a training depends on, but for the weights.

    Order and augmentation are functions of (seed, epoch); dropout draws from torch's own streams.
    """
    return {
        "optimizer": optimizer.state_dict(),
        "training": vars(training),
        "meter": meter.state(),
        "seconds": clock.seconds,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(
    saved: tuple[dict[str, Tensor], dict[str, Any]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Training,
    meter: _Meter,
    clock: _Clock,
) -> None:
    weights, state = saved
    model.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["training"].items():
        setattr(training, name, value)
    meter.restore(state["meter"])
    clock.set(state["seconds"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def _autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _calibration(confidence: Tensor, correct: Tensor) -> list[list[float]]:
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    counts = torch.bincount(bins, minlength=CALIBRATION_BINS)
    filled = counts.clamp(min=1)
    sums = [
        torch.bincount(bins, weights=values, minlength=CALIBRATION_BINS) / filled for values in (confidence, correct)
    ]
    return torch.stack([*sums, counts.double()], dim=1).tolist()
