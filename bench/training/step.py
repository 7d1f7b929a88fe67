"""One step of training, in micro-batches where memory does not hold the whole batch."""

from __future__ import annotations

import math
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import Recipe
from bench.training.dense import Outputs, main_logits
from bench.training.progress import Training

AUXILIARY_WEIGHT = 0.5
"""Of an auxiliary head's loss, as in torchvision's reference training of segmentation networks."""


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    autocast: bool,
    micro_batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward, step. Returns the loss (a scalar) and the logits ``B×K``, both detached.

    In micro-batches the gradients add up to those of the whole batch, but for what batch norm sees.
    """
    optimizer.zero_grad(set_to_none=True)
    loss, logits = _accumulate(model, images, targets, recipe, autocast, micro_batch_size or len(images))
    if recipe.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
    optimizer.step()
    return loss, logits


def warm_up(
    model: nn.Module, batch: tuple[Tensor, Tensor], recipe: Recipe, autocast: bool, training: Training | None = None
) -> None:
    """Do off the clock what a framework does once: one forward and backward pass, which leaves no trace.

    The weights, the batch norms' statistics and the random stream are as before. With ``training`` it also finds the
    micro-batch that fits into memory.
    """
    images, targets = batch
    training = training or Training(micro_batch_size=len(images))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [images.device] if images.device.type == "cuda" else []
    model.train()
    while True:
        with torch.random.fork_rng(devices), _Halving(training):
            _accumulate(model, images, targets, recipe, autocast, training.micro_batch_size)
            break
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def loss_of(outputs: Outputs, targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of the logits, and half that of an auxiliary head's, if there is one."""
    loss = F.cross_entropy(main_logits(outputs).float(), targets, label_smoothing=label_smoothing)
    if isinstance(outputs, dict) and "aux" in outputs:
        auxiliary = F.cross_entropy(outputs["aux"].float(), targets, label_smoothing=label_smoothing)
        loss = loss + AUXILIARY_WEIGHT * auxiliary
    return loss


def _accumulate(
    model: nn.Module, images: Tensor, targets: Tensor, recipe: Recipe, autocast: bool, micro_batch_size: int
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the batch's mean loss, one micro-batch at a time. Returns that loss and the logits."""
    losses, logits = [], []
    parts = torch.split(images, micro_batch_size), torch.split(targets, micro_batch_size)
    for part, wanted in zip(*parts, strict=True):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            outputs = model(part)
            loss = loss_of(outputs, wanted, recipe.label_smoothing)
        if len(part) < len(images):
            loss = loss * (len(part) / len(images))
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        logits.append(main_logits(outputs).detach())
    return (losses[0], logits[0]) if len(losses) == 1 else (torch.stack(losses).sum(), torch.cat(logits))


def fitting_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    autocast: bool,
    training: Training,
) -> tuple[Tensor, Tensor]:
    """A step in micro-batches that fit; memory that runs out halves them and the step is done again.

    Nothing of the failed attempt stays but what batch norm saw in it.
    """
    while True:
        with _Halving(training):
            return train_step(model, optimizer, images, targets, recipe, autocast, training.micro_batch_size)


class _Halving:
    """Swallows a true out-of-memory and halves the micro-batch, while it can be halved; lets all else pass."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not is_out_of_memory(error) or self._training.micro_batch_size == 1:
            return False
        self._training.micro_batch_size = math.ceil(self._training.micro_batch_size / 2)
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on CUDA and MPS torch has a class for that, on the CPU only a message."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    )
