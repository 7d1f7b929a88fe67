"""Loss, accuracy, confusion and calibration of a network over a split, image by image or pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.training.dense import main_logits, mean_iou

CALIBRATION_BINS = 15


class EvaluationBatches(Protocol):
    """Where evaluation batches come from."""

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracy of a split, and what they are made of.

    ``confusion[t][p]`` counts images (pixels, where labels are dense) of class t taken for p. ``calibration`` has a
    row for each of 15 bins of confidence: mean confidence, accuracy, count (Guo et al. 2017). ``miou`` is for dense
    labels only.
    """

    loss: float
    top1: float
    confusion: list[list[float]]
    calibration: list[list[float]]
    miou: float | None = None


def evaluate(
    model: nn.Module,
    batches: EvaluationBatches,
    num_classes: int,
    autocast: bool = False,
    test_flip: bool = False,
) -> Evaluation:
    """Loss, accuracy, confusion and calibration of the model, in evaluation mode, over every image once.

    With ``test_flip`` the logits are the mean of those for the image and for its mirror.
    """
    model.eval()
    count, loss, dense = 0, 0.0, False
    confusion = torch.zeros(num_classes**2, dtype=torch.int64)
    bins = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
    with torch.inference_mode():
        for images, targets in batches.in_order():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
                logits = main_logits(model(images)).float()
                if test_flip:
                    mirrored = main_logits(model(images.flip(3))).float()
                    logits = (logits + (mirrored.flip(3) if mirrored.ndim == 4 else mirrored)) / 2
            logits, targets = logits.cpu(), targets.cpu()
            count, dense = count + targets.numel(), targets.ndim > 1
            loss += float(F.cross_entropy(logits, targets, reduction="sum").double())
            confidence, predicted = logits.softmax(1).max(1)
            confusion += torch.bincount((targets * num_classes + predicted).flatten(), minlength=num_classes**2)
            bins += _calibration(confidence.flatten().double(), (predicted == targets).flatten().double())
    table = confusion.view(num_classes, num_classes)
    sums, filled = bins[:2], bins[2].clamp(min=1)
    counts = table.double().tolist()
    return Evaluation(
        loss=loss / count,
        top1=float(table.diagonal().sum()) / count,
        confusion=counts,
        calibration=torch.stack([*(sums / filled), bins[2]], dim=1).tolist(),
        miou=mean_iou(counts) if dense else None,
    )


def _calibration(confidence: Tensor, correct: Tensor) -> Tensor:
    """Sums of confidence and of correctness, and the count, in each bin of confidence."""
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    weights = (confidence, correct, torch.ones_like(correct))
    return torch.stack([torch.bincount(bins, weights=each, minlength=CALIBRATION_BINS) for each in weights])
