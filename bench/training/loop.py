"""The training loop: one for every architecture, recipe and budget, from scratch and by fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.config import Budget, Recipe
from bench.training.averaging import WeightAverage
from bench.training.checkpoint import Checkpoints
from bench.training.distributed import ALONE, Ranks
from bench.training.evaluation import Evaluation
from bench.training.lookahead import Lookahead
from bench.training.optim import is_part_of, lr_factor
from bench.training.progress import Clock, Meter, Row, Training
from bench.training.step import fitting_step, freeze_batch_norm, warm_up

STEP_COST = 3
"""Multiply-accumulates of a training step, relative to the forward pass."""


class Batches(Protocol):
    """Training batches, on the device: images ``B×C×H×W`` and their targets.

    Targets are labels ``B``, class probabilities ``B×K``, or a label for each pixel ``B×H×W``.
    """

    batch_size: int

    def __len__(self) -> int:
        """Batches per epoch."""

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
    ranks: Ranks = ALONE,
) -> Training:
    """Train ``model`` in place until the budget is spent or the loss is no longer finite (``diverged``).

    Args:
        model: on the device of the batches; it ends up with the averaged weights if the recipe averages.
        optimizer: over the model's parameters, with peak learning rates.
        batches: the training images.
        recipe: schedule, augmented loss, clipping, averaging, fine-tuning.
        budget: when to stop; under epochs or MACs the result is a function of the model, the batches and the recipe
            alone, under seconds also of the machine's speed.
        autocast: compute in bfloat16.
        macs: of one image's forward pass; needed for a budget in MACs.
        head: names of the modules that the recipe's ``head_epochs`` train alone.
        evaluate_val: evaluates ``val`` after each epoch, off the clock.
        target_top1: accuracy on ``val``; the result says when it was first reached.
        report: called with the row so far and the share of the budget spent, about twice a second and at each epoch's
            end.
        checkpoints: where to resume from and to save to; a resumed training ends as one that never stopped.
        ranks: the processes that train together, each on its slice of every batch; all have the same batches, and the
            first one's clock and checkpoints count.

    ``history`` gets one row per epoch, also for one that the budget cuts short. An out-of-memory error halves the
    micro-batch.
    """
    device = next(model.parameters()).device
    peaks = [group["lr"] for group in optimizer.param_groups]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total_steps = _count_steps(budget, batches, macs)
    # Reading a loss makes the CPU wait for the GPU; on the CPU itself it is free.
    check_every = 1 if device.type == "cpu" else 50
    training, clock = Training(micro_batch_size=ranks.largest_part(batches.batch_size)), Clock(device)
    meter = Meter(training, batches.batch_size, device, ranks)

    warm_up(model, ranks.own(*next(batches.epoch(0))), recipe, autocast, training, ranks)
    warm_for = (False, recipe.small_epochs > 0)
    # After the warm-up, in which a model may make buffers.
    average = WeightAverage(model, recipe.ema) if recipe.ema is not None else None
    lookahead = Lookahead(model, recipe.lookahead) if recipe.lookahead else None
    if checkpoints is not None and (saved := ranks.from_first(checkpoints.load)) is not None:
        _restore(saved, device, model, optimizer, average, lookahead, training, meter, clock, ranks)

    def spent() -> float:
        if total_steps:
            return training.step / total_steps
        return ranks.first([clock.seconds])[0] / (budget.seconds or 1.0)

    def save(checkpoints: Checkpoints) -> None:
        state = _state(device, optimizer, average, lookahead, training, meter, clock, ranks)
        if ranks.rank == 0:
            checkpoints.save(training.step, model.state_dict(), state)

    while training.status == "running":
        head_alone = training.epoch < recipe.head_epochs
        _set_mode(model, trainable, head if head_alone else None, recipe.freeze_batch_norm)
        # torch.compile compiles anew where other gradients are wanted, and for images of another size.
        if warm_for != (wanted := (head_alone, training.epoch < recipe.small_epochs)):
            warm_up(model, ranks.own(*next(batches.epoch(training.epoch))), recipe, autocast, training, ranks)
            warm_for = wanted
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
            images, targets = ranks.own(images, targets)
            loss, logits = fitting_step(
                model, optimizer, images, targets, recipe, autocast, training, ranks, batches.batch_size
            )
            if average is not None:
                average.update(model)
            training.step += 1
            if lookahead is not None:
                lookahead.update(training.step, spent())
            meter.add(loss, logits, targets)
            row_is_due, save_is_due = ranks.first([meter.is_due(), checkpoints is not None and checkpoints.is_due()])
            if training.step % check_every == 0:
                if not meter.is_finite():
                    break
                if row_is_due:
                    report(meter.row(clock.seconds, optimizer), spent())
            if checkpoints is not None and save_is_due:
                clock.pause()
                save(checkpoints)
                clock.resume()
        clock.pause()
        finite = meter.is_finite()
        if lookahead is not None and finite and spent() >= 1:
            lookahead.finish()  # before `val` is looked at: the slow weights are those that are tested
        if meter.steps:
            row = meter.row(clock.seconds, optimizer)
            if evaluate_val is not None and finite:
                row |= _look_at_val(evaluate_val(average.module if average else model), target_top1, row, training)
            training.history.append(row)
            report(row, min(spent(), 1.0))
        training.epoch += 1
        training.seconds = clock.seconds
        training.images_seen = training.step * batches.batch_size
        meter = Meter(training, batches.batch_size, device, ranks)
        if not finite:
            training.status = "diverged"
        elif spent() >= 1:
            training.status = "completed"
        if checkpoints is not None:
            save(checkpoints)
    for parameter in trainable:  # the budget may end while the head is alone
        parameter.requires_grad_(True)
    if average is not None and average.updates > 0:
        model.load_state_dict(average.module.state_dict())
    if lookahead is not None and training.status == "completed":
        lookahead.finish()  # where the last checkpoint was the end
    return training


def _set_mode(
    model: nn.Module, trainable: list[nn.Parameter], head_alone: Collection[str] | None, freeze_statistics: bool
) -> None:
    """Training mode; with ``head_alone`` all else is frozen. Frozen batch norms keep their statistics."""

    def moves(name: str) -> bool:
        return head_alone is None or is_part_of(name, head_alone)

    model.train()
    freeze_batch_norm(model, moves=lambda name: moves(name) and not freeze_statistics)
    ours = set(map(id, trainable))  # of the rest, some are frozen for good
    for name, parameter in model.named_parameters():
        if id(parameter) in ours:
            parameter.requires_grad_(moves(name))


def _count_steps(budget: Budget, batches: Batches, macs: int) -> int | None:
    """Steps that the budget allows, at least one; None if it is in seconds."""
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
    device: torch.device,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    lookahead: Lookahead | None,
    training: Training,
    meter: Meter,
    clock: Clock,
    ranks: Ranks,
) -> dict[str, Any]:
    """Everything except the weights that the rest of a training depends on.

    Order and augmentation are functions of (seed, epoch); dropout draws from torch's global generators, of which each
    rank has its own.
    """
    own = {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    first, *others = ranks.gather(own)
    return {
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "slow": lookahead.slow if lookahead is not None else None,
        "training": vars(training),
        "meter": meter.state(),
        "seconds": clock.seconds,
        **first,
        **({"other_ranks": others} if others else {}),
    }


def _restore(
    saved: tuple[dict[str, Tensor], dict[str, Any]],
    device: torch.device,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    lookahead: Lookahead | None,
    training: Training,
    meter: Meter,
    clock: Clock,
    ranks: Ranks,
) -> None:
    weights, state = saved
    model.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    if lookahead is not None:
        lookahead.load(state["slow"])
    for name, value in state["training"].items():
        setattr(training, name, value)
    meter.restore(state["meter"])
    clock.set(state["seconds"])
    own = state if ranks.rank == 0 else state["other_ranks"][ranks.rank - 1]
    torch.set_rng_state(own["rng"])
    if device.type == "cuda":  # of this GPU alone: the next machine may have fewer
        torch.cuda.set_rng_state(own["cuda_rng"], device)
