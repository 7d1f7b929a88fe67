"""One step of training, in micro-batches where memory does not hold the whole batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bench.config import Recipe
from bench.device import is_out_of_memory
from bench.training.dense import Outputs, main_logits
from bench.training.distributed import ALONE, Ranks
from bench.training.optim import create_optimizer
from bench.training.progress import Training

AUXILIARY_WEIGHT = 0.5
"""Of an auxiliary head's loss, as in torchvision's reference training of segmentation networks."""
TINY_LR = 1e-6
"""Timed training steps change the weights so little that nothing overflows."""


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

    With micro-batches the gradients add up to those of the whole batch, except that batch norm sees less at a time.
    """
    optimizer.zero_grad(set_to_none=True)
    loss, logits = _accumulate(model, images, targets, recipe, autocast, micro_batch_size or len(images), len(images))
    _update(model, optimizer, recipe)
    return loss, logits


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    if recipe.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
    optimizer.step()


def step_together(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    autocast: bool,
    training: Training,
    ranks: Ranks,
    whole: int,
) -> tuple[Tensor, Tensor] | None:
    """A step on the slices that the ranks have of a batch of ``whole`` images.

    Returns the loss of the whole batch and the logits of this slice; None where memory did not suffice in some rank.
    The buffers are the first rank's before each step, as in DDP: batch norm normalises each slice by its own
    statistics, and of the running ones those of the first rank are kept.
    """
    ranks.share(model.buffers())
    optimizer.zero_grad(set_to_none=True)
    done = _accumulate_together(model, images, targets, recipe, autocast, training, ranks, whole)
    if done is not None:
        ranks.add_gradients(model.parameters(), done[0])
        _update(model, optimizer, recipe)
    return done


def create_timed_step(
    model: nn.Module,
    compiled: nn.Module,
    images: Tensor,
    autocast: bool,
    *,
    recipe: Recipe,
    ranks: Ranks = ALONE,
) -> Callable[[], object]:
    """A step of training on ``images`` with random labels, to be timed; ``compiled`` is ``model`` as it is to run.

    Several ``ranks`` do it together, each on its slice. It trains ``model``: pass a copy.
    """
    whole = len(images)
    images = images[ranks.part(whole)] if ranks.size > 1 else images
    with torch.no_grad():  # not in inference mode, where buffers that a first pass makes could not be trained with
        logits = main_logits(model.eval()(images[:1]))
    targets = torch.randint(logits.shape[1], (len(images), *logits.shape[2:]), device=images.device)
    model.train()
    if recipe.freeze_batch_norm:
        freeze_batch_norm(model)
    optimizer = create_optimizer(model, recipe.model_copy(update={"muon_lr": TINY_LR}), TINY_LR, 0.0)
    if ranks.size > 1:
        fitted = Training(micro_batch_size=len(images))
        return lambda: fitting_step(compiled, optimizer, images, targets, recipe, autocast, fitted, ranks, whole)
    return lambda: train_step(compiled, optimizer, images, targets, recipe, autocast)


def freeze_batch_norm(model: nn.Module, moves: Callable[[str], bool] = lambda name: False) -> None:
    """Keep the statistics of batch norms, but of those that ``moves`` names, in training mode too."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not moves(name):
            module.eval()


def warm_up(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    recipe: Recipe,
    autocast: bool,
    training: Training | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """One forward and backward pass, off the clock, for what a framework does only once; it leaves no trace.

    The weights, the batch norms' statistics and the random stream are as before. With ``training`` it also finds the
    micro-batch that fits into memory, in every rank, and whether the model changes its input.
    """
    images, targets = batch
    training = training or Training(micro_batch_size=len(images))
    version = images._version
    if not model.training:  # in training mode, layers that are frozen may be in evaluation mode, and stay there
        model.train()
    with leaving_no_trace(model, images.device):
        while _accumulate_together(model, images, targets, recipe, autocast, training, ranks, len(images)) is None:
            pass
    training.changes_input = images._version != version
    model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def leaving_no_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model's buffers and the random streams are afterwards as they were before.

    A buffer that the model has made meanwhile, in its first forward pass, stays.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for name, before in buffers.items():
                owner, _, attribute = name.rpartition(".")
                module = model.get_submodule(owner)
                now = getattr(module, attribute)
                if now is not None and now.shape == before.shape and now.dtype == before.dtype:
                    now.copy_(before)
                else:
                    setattr(module, attribute, before)


def loss_of(outputs: Outputs, targets: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of the logits, plus half that of an auxiliary head if there is one."""
    loss = F.cross_entropy(main_logits(outputs).float(), targets, label_smoothing=label_smoothing)
    if isinstance(outputs, dict) and outputs.get("aux") is not None:
        auxiliary = F.cross_entropy(outputs["aux"].float(), targets, label_smoothing=label_smoothing)
        loss = loss + AUXILIARY_WEIGHT * auxiliary
    return loss


def _accumulate(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    autocast: bool,
    micro_batch_size: int,
    whole: int,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of these images' part of the mean loss of ``whole`` images, one micro-batch at a time.

    Returns that part of the loss, and the logits.
    """
    losses, logits = [], []
    parts = torch.split(images, micro_batch_size), torch.split(targets, micro_batch_size)
    for part, wanted in zip(*parts, strict=True):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            outputs = model(part)
            loss = loss_of(outputs, wanted, recipe.label_smoothing)
        if len(part) < whole:
            loss = loss * (len(part) / whole)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        logits.append(main_logits(outputs).detach())
    return (losses[0], logits[0]) if len(losses) == 1 else (torch.stack(losses).sum(), torch.cat(logits))


def _accumulate_together(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    autocast: bool,
    training: Training,
    ranks: Ranks,
    whole: int,
) -> tuple[Tensor, Tensor] | None:
    """As `_accumulate`; None where memory did not suffice in some rank: all have then halved their micro-batch."""
    size, done = training.micro_batch_size, None
    with _Halving(training):
        done = _accumulate(model, images, targets, recipe, autocast, size, whole)
    if ranks.any(done is None):
        training.micro_batch_size = math.ceil(size / 2)
        return None
    return done


def fitting_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    autocast: bool,
    training: Training,
    ranks: Ranks = ALONE,
    whole: int = 0,
) -> tuple[Tensor, Tensor]:
    """A step in micro-batches that fit: an out-of-memory error halves them, and the step is repeated.

    Of a failed attempt only the batch-norm statistics remain; a model that changes its input gets a copy each time.
    Where there are several ``ranks``, the images are this one's slice of a batch of ``whole``; see `step_together`.
    """
    while True:
        batch = images.clone() if training.changes_input else images
        if ranks.size > 1:
            done = step_together(model, optimizer, batch, targets, recipe, autocast, training, ranks, whole)
            if done is not None:
                return done
            continue
        with _Halving(training):
            return train_step(model, optimizer, batch, targets, recipe, autocast, training.micro_batch_size)


class _Halving:
    """Suppresses an out-of-memory error and halves the micro-batch while it can be halved; others propagate."""

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
