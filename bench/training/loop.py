"""The training loop: one for every architecture, recipe and budget, from scratch and by fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.config import Budget, Recipe
from bench.training.checkpoint import Checkpoints
from bench.training.evaluation import Evaluation
from bench.training.optim import lr_factor
from bench.training.progress import Clock, Meter, Row, Training
from bench.training.step import fitting_step, warm_up

STEP_COST = 3
"""Multiply-accumulates of a training step in units of the forward pass."""


class Batches(Protocol):
    """Where training batches come from, on the device: images ``B×C×H×W`` and what they are.

    Targets are labels ``B``, shares of the classes ``B×K``, or a label for each pixel ``B×H×W``.
    """

    batch_size: int

    def __len__(self) -> int:
        """Batches an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, from the batch ``start`` on."""


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: Recipe,
    budget: Budget,
    *,
    autocast: bool = False,
    macs: int = 0,
    head: Collection[str] = (),
    evaluate_val: Callable[[nn.Module], Evaluation] | None = None,
    target_top1: float | None = None,
    report: Callable[[Row, float], None] = lambda row, share: None,
    checkpoints: Checkpoints | None = None,
) -> Training:
    """Train ``model`` in place until the budget is spent or the loss is no longer finite (``diverged``).

    Args:
        model: on the device of the batches; it ends with the averaged weights where the recipe averages.
        optimizer: over the model's parameters, its learning rates at their peak.
        batches: the training images.
        recipe: what else to do.
        budget: when to stop; under epochs or MACs the result is a function of the model, the batches and the recipe
            alone, under seconds also of the machine's speed.
        autocast: compute in bfloat16.
        macs: of one image's forward pass; needed for a budget in MACs.
        head: names of the modules that the recipe's ``head_epochs`` train alone.
        evaluate_val: looks at ``val`` after each epoch, off the clock.
        target_top1: on ``val``; when it is first reached is noted.
        report: called with the row so far and the share of the budget spent, about twice a second and at each epoch's
            end.
        checkpoints: where the training goes on from, to end as if it had never stopped.

    ``history`` gets a row an epoch, also for one that the budget cuts short. Out of memory halves the micro-batch.
    """
    device = next(model.parameters()).device
    peaks = [group["lr"] for group in optimizer.param_groups]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total_steps = _count_steps(budget, batches, macs)
    # Reading a loss makes the CPU wait for the GPU; on the CPU itself it is free.
    check_every = 1 if device.type == "cpu" else 50
    training, clock = Training(micro_batch_size=batches.batch_size), Clock(device)
    meter = Meter(training, batches.batch_size, device)
    average = None
    if recipe.ema is not None:
        average_fn = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=average_fn, use_buffers=True)

    warm_up(model, next(batches.epoch(0)), recipe, autocast, training)
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        _restore(saved, model, optimizer, average, training, meter, clock)

    def spent() -> float:
        return training.step / total_steps if total_steps else clock.seconds / (budget.seconds or 1.0)

    while training.status == "running":
        head_alone = training.epoch < recipe.head_epochs
        _set_mode(model, trainable, head if head_alone else None)
        clock.resume()
        for images, targets in batches.epoch(training.epoch, start=meter.steps):
            share = spent()
            if share >= 1:
                break
            if head_alone:
                training.head_share = share
            schedule = lr_factor(recipe, (share - training.head_share) / (1 - training.head_share))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = recipe.head_lr if head_alone else peak * schedule
            loss, logits = fitting_step(model, optimizer, images, targets, recipe, autocast, training)
            if average is not None:
                average.update_parameters(model)
            training.step += 1
            meter.add(loss, logits, targets)
            if training.step % check_every == 0:
                if not meter.is_finite():
                    break
                if meter.is_due():
                    report(meter.row(clock.seconds, optimizer), spent())
            if checkpoints is not None and checkpoints.is_due():
                clock.pause()
                checkpoints.save(training.step, model.state_dict(), _state(optimizer, average, training, meter, clock))
                clock.resume()
        clock.pause()
        finite = meter.is_finite()
        if meter.steps:
            row = meter.row(clock.seconds, optimizer)
            if evaluate_val is not None and finite:
                row |= _look_at_val(evaluate_val(average.module if average else model), target_top1, row, training)
            training.history.append(row)
            report(row, min(spent(), 1.0))
        training.epoch += 1
        training.seconds = clock.seconds
        training.images_seen = training.step * batches.batch_size
        meter = Meter(training, batches.batch_size, device)
        if not finite:
            training.status = "diverged"
        elif spent() >= 1:
            training.status = "completed"
        if checkpoints is not None:
            checkpoints.save(training.step, model.state_dict(), _state(optimizer, average, training, meter, clock))
    if average is not None and average.n_averaged > 0:
        model.load_state_dict(average.module.state_dict())
    return training


def _set_mode(model: nn.Module, trainable: list[nn.Parameter], head_alone: Collection[str] | None) -> None:
    """Training mode; with ``head_alone`` nothing outside those modules moves, batch-norm statistics included."""

    def moves(name: str) -> bool:
        return head_alone is None or any(name == each or name.startswith(f"{each}.") for each in head_alone)

    model.train()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not moves(name):
            module.eval()
    ours = set(map(id, trainable))  # of the rest, some are frozen for good
    for name, parameter in model.named_parameters():
        if id(parameter) in ours:
            parameter.requires_grad_(moves(name))


def _count_steps(budget: Budget, batches: Batches, macs: int) -> int | None:
    """Steps that the budget allows, at least one; None under a budget of seconds."""
    if budget.epochs is not None:
        return budget.epochs * len(batches)
    if budget.macs is not None:
        return max(1, int(budget.macs / (STEP_COST * macs * batches.batch_size)))
    return None


def _look_at_val(evaluation: Evaluation, target_top1: float | None, row: Row, training: Training) -> Row:
    """The row's ``val_…``; notes when the target was first reached."""
    if target_top1 is not None and evaluation.top1 >= target_top1 and training.target_step is None:
        training.target_seconds, training.target_step = row["seconds"], row["step"]
    dense = {} if evaluation.miou is None else {"val_miou": evaluation.miou}
    return {"val_loss": evaluation.loss, "val_top1": evaluation.top1} | dense


def _state(
    optimizer: torch.optim.Optimizer, average: AveragedModel | None, training: Training, meter: Meter, clock: Clock
) -> dict[str, Any]:
    """All that the rest of a training depends on, but for the weights.

    Order and augmentation are functions of (seed, epoch); dropout draws from torch's own streams.
    """
    return {
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average is not None else None,
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
    average: AveragedModel | None,
    training: Training,
    meter: Meter,
    clock: Clock,
) -> None:
    weights, state = saved
    model.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    for name, value in state["training"].items():
        setattr(training, name, value)
    meter.restore(state["meter"])
    clock.set(state["seconds"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
