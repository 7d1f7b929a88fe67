"""What a record says of a training: its metrics, and the flags for what did not go as asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.config import Recipe, RunConfig
from bench.records import Flag

if TYPE_CHECKING:
    from bench.training.progress import Training

LAST_SEEN = ("train_loss", "train_top1", "val_loss", "val_top1", "val_miou")


def needs_head(recipe: Recipe) -> bool:
    """Whether the recipe treats the head apart."""
    rates = recipe.head_lr_factor != 1.0 or recipe.stem_lr_factor != 1.0
    return rates or recipe.head_epochs > 0 or recipe.optimizer == "muon"


def training_metrics(
    training: Training, config: RunConfig, steps_per_epoch: int, batch_size: int
) -> tuple[dict[str, Any], list[Flag]]:
    """Metrics and flags.

    ``head_only_top1`` is the accuracy on ``val`` after the epochs in which the head trained alone; a fine-tuning that
    ended below it is flagged.
    """
    flags: list[Flag] = []
    metrics: dict[str, Any] = {
        "train_seconds": training.seconds,
        "epochs": training.step / steps_per_epoch,
        "steps": training.step,
        "images_seen": training.images_seen,
    }
    if config.target_top1 is not None:
        metrics |= {"target_seconds": training.target_seconds, "target_steps": training.target_step}
    if training.micro_batch_size < batch_size:
        message = (
            f"memory held {training.micro_batch_size} of {batch_size} images at a time: gradients were accumulated "
            "over the batch, and batch-norm statistics come from the micro-batches"
        )
        flags.append(Flag(kind="out_of_memory", phase="train", message=message))
        metrics["micro_batch_size"] = training.micro_batch_size
    if training.history:
        last = training.history[-1]
        metrics |= {name: last[name] for name in LAST_SEEN if name in last}
    head_epochs = config.recipe.head_epochs
    if 0 < head_epochs <= len(training.history) and "val_top1" in training.history[head_epochs - 1]:
        head_only = metrics["head_only_top1"] = training.history[head_epochs - 1]["val_top1"]
        if metrics.get("val_top1", 0.0) < head_only:
            message = (
                f"fine-tuning ended at {metrics.get('val_top1', 0.0):.1%} on val, below the {head_only:.1%} that the "
                "head alone had reached: lower recipe.lr, or keep the statistics with recipe.freeze_batch_norm=true"
            )
            flags.append(Flag(kind="below_head_only", phase="train", message=message))
    return metrics, flags
