"""Loss, accuracy, confusion and calibration of a network over a split, image by image or pixel by pixel."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.device import is_out_of_memory
from bench.training.dense import mean_iou
from bench.training.distributed import ALONE, Ranks
from bench.training.outputs import checked_logits

CALIBRATION_BINS = 15


class EvaluationBatches(Protocol):
    """Evaluation batches."""

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once."""


@dataclass(frozen=True)
class Predictions:
    """For each image in order: its label, the predicted class (int64), and that class's probability (float32)."""

    labels: Tensor
    predicted: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy and accuracy of a split, and what they are made of.

    ``confusion[t][p]`` counts images (pixels, where labels are dense) of class t taken for p. ``calibration`` has a
    row for each of 15 bins of confidence: mean confidence, accuracy, count (Guo et al. 2017). ``miou`` is for dense
    labels only, ``predictions`` for labels of whole images only.

    ``not_finite`` counts images (pixels) whose logits hold NaN or infinity, so that no class is the most probable: they
    count as wrong, the loss is not finite, and ``confusion`` and ``calibration`` leave them out. ``single_view_top1``
    is the accuracy on the images as they are, where ``top1`` is that of several views.
    """

    loss: float
    top1: float
    confusion: list[list[float]]
    calibration: list[list[float]]
    miou: float | None = None
    predictions: Predictions | None = field(default=None, compare=False, repr=False)
    not_finite: int = 0
    single_view_top1: float | None = None


def evaluate(
    model: nn.Module,
    batches: EvaluationBatches,
    num_classes: int,
    autocast: bool = False,
    test_flip: bool = False,
    test_shift: int = 0,
    test_share: float = 1.0,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Loss, accuracy, confusion and calibration of the model, in evaluation mode, over every image once.

    With ``test_flip`` the logits are the mean of those for the image and for its mirror. With ``test_shift`` the least
    certain ``test_share`` of each batch is also seen shifted by this many pixels up-left and down-right, padded by
    reflection, which counts half (Jordan 2024, arXiv:2404.00498, §3.5). Raises `ModelError` where the model puts out
    anything else than logits for ``num_classes``.

    Several ``ranks`` take whole batches in turn, all with the first one's buffers, and all get the result: that of one
    process that has evaluated every batch, to the last bit.
    """
    model.eval()
    ranks.share(model.buffers())
    several_views = test_flip or test_shift > 0
    single_correct: Tensor | int = 0  # stays on the device: a number that is read makes it wait
    confusion = torch.zeros(num_classes**2, dtype=torch.int64)
    count = not_finite = 0
    seen: dict[int, _Batch] = {}
    fitting = _Fitting(model, num_classes, autocast)
    with torch.no_grad():  # not in inference mode, where buffers that the model makes could not be trained with
        for index, (images, targets) in enumerate(batches.in_order()):
            if index % ranks.size != ranks.rank:
                continue
            predict = functools.partial(fitting.logits, targets=targets)
            single, logits = _seen(predict, images, test_flip, test_shift, test_share)
            if several_views:
                single_correct = single_correct + (single.argmax(1) == targets).sum()
            logits, targets = logits.cpu(), targets.cpu()
            count += targets.numel()
            loss = float(F.cross_entropy(logits, targets, reduction="sum").double())
            confidence, predicted = logits.softmax(1).max(1)
            answers = (targets, predicted, confidence) if targets.ndim == 1 else None
            finite = confidence.isfinite()
            not_finite += int((~finite).sum())
            confidence, predicted, targets = confidence[finite], predicted[finite], targets[finite]
            confusion += torch.bincount(targets * num_classes + predicted, minlength=num_classes**2)
            bins = _calibration(confidence.double(), (predicted == targets).double())
            seen[index] = _Batch(loss, bins, answers)
    ranks.add([confusion])
    count, not_finite, hits = map(sum, zip(*ranks.gather((count, not_finite, int(single_correct))), strict=True))
    every = {index: batch for part in ranks.gather(seen) for index, batch in part.items()}
    in_order = [every[index] for index in sorted(every)]
    answers_in_order = [batch.answers for batch in in_order if batch.answers is not None]
    table = confusion.view(num_classes, num_classes)
    bins = sum((batch.bins for batch in in_order), torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64))
    sums, filled = bins[:2], bins[2].clamp(min=1)
    counts = table.double().tolist()
    return Evaluation(
        loss=sum(batch.loss for batch in in_order) / count,
        top1=float(table.diagonal().sum()) / count,
        confusion=counts,
        calibration=torch.stack([*(sums / filled), bins[2]], dim=1).tolist(),
        miou=None if answers_in_order else mean_iou(counts),
        predictions=Predictions(*map(torch.cat, zip(*answers_in_order, strict=True))) if answers_in_order else None,
        not_finite=not_finite,
        single_view_top1=hits / count if several_views else None,
    )


@dataclass(frozen=True)
class _Batch:
    """The sum of losses, the sums of calibration, and the answers where an image has one label, of a batch."""

    loss: float
    bins: Tensor
    answers: tuple[Tensor, Tensor, Tensor] | None


class _Fitting:
    """A network's logits, of as many images at a time as fit into memory: where they do not, half as many.

    In evaluation mode that changes no logit.
    """

    def __init__(self, model: nn.Module, num_classes: int, autocast: bool) -> None:
        self._model, self._num_classes, self._autocast = model, num_classes, autocast
        self._at_once: int | None = None

    def logits(self, images: Tensor, targets: Tensor) -> Tensor:
        """float32 ``B×K``, or ``B×K×H×W`` for targets of each pixel."""
        while True:
            version = images._version
            try:
                parts = torch.split(images, self._at_once or len(images))
                return torch.cat([self._part(part, targets) for part in parts])
            except (RuntimeError, MemoryError) as error:
                size = min(self._at_once or len(images), len(images))
                # A network that has changed its input would be given that again.
                if not is_out_of_memory(error) or size == 1 or images._version != version:
                    raise
                self._at_once = -(-size // 2)

    def _part(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._autocast):
            outputs = self._model(images)
        return checked_logits(outputs, len(images), self._num_classes, targets.shape[1:]).float()


def _seen(
    predict: Callable[[Tensor], Tensor], images: Tensor, flip: bool, shift: int, share: float
) -> tuple[Tensor, Tensor]:
    """The logits of the images as they are, and of all their views."""
    untouched = images.clone() if flip or shift else images  # the model may change the images that it is given
    single = predict(images)
    logits = _with_mirror(predict, untouched, single) if flip else single
    if shift:
        best = logits.softmax(1).topk(2, dim=1).values
        unsure = (best[:, 0] - best[:, 1]).topk(math.ceil(share * len(images)), largest=False).indices
        padded = F.pad(untouched[unsure], [shift] * 4, mode="reflect")
        height, width = images.shape[2:]
        corners = padded[..., :height, :width], padded[..., 2 * shift :, 2 * shift :]
        views = [corner.contiguous(memory_format=_layout(images)) for corner in corners]
        shifted = [_with_mirror(predict, view, predict(view.clone())) if flip else predict(view) for view in views]
        logits = logits.index_copy(0, unsure, (logits[unsure] + (shifted[0] + shifted[1]) / 2) / 2)
    return single, logits


def _with_mirror(predict: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor) -> Tensor:
    """The mean of the images' logits and those of their mirrors."""
    mirrored = predict(images.flip(3))
    return (logits + (mirrored.flip(3) if mirrored.ndim == 4 else mirrored)) / 2


def _layout(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _calibration(confidence: Tensor, correct: Tensor) -> Tensor:
    """Sums of confidence and of correctness, and the count, in each bin of confidence."""
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    weights = (confidence, correct, torch.ones_like(correct))
    return torch.stack([torch.bincount(bins, weights=each, minlength=CALIBRATION_BINS) for each in weights])
