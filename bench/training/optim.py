"""Optimizers and learning rates as a recipe names them."""

from __future__ import annotations

import math

import torch
from torch import nn

from bench.config import Recipe

REFERENCE_BATCH_SIZE = 128
DEFAULT_LR = 0.1
DEFAULT_WEIGHT_DECAY = 5e-4
ONE_CYCLE_FIRST, ONE_CYCLE_LAST = 1 / 25, 1 / 250_000
"""Where the one-cycle schedule begins and ends, as shares of its peak; torch's own defaults."""


def peak_lr(recipe: Recipe, architecture_lr: float | None, batch_size: int) -> float:
    """The recipe's peak learning rate, or the architecture's scaled linearly from batch 128 (Goyal et al. 2017)."""
    if recipe.lr is not None:
        return recipe.lr
    return (architecture_lr or DEFAULT_LR) * batch_size / REFERENCE_BATCH_SIZE


def weight_decay(recipe: Recipe, architecture_decay: float | None) -> float:
    """The recipe's weight decay, or the architecture's."""
    if recipe.weight_decay is not None:
        return recipe.weight_decay
    return DEFAULT_WEIGHT_DECAY if architecture_decay is None else architecture_decay


def create_optimizer(model: nn.Module, recipe: Recipe, lr: float, decay: float) -> torch.optim.Optimizer:
    """The recipe's optimizer over two groups: what decays, and norms and biases, which by default do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = [p for p in trainable if p.ndim > 1 or recipe.decay_norm_and_bias]
    spared = [p for p in trainable if p.ndim <= 1 and not recipe.decay_norm_and_bias]
    groups = [{"params": plain, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer != "sgd":
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=lr, fused=True)
    nesterov = recipe.nesterov and recipe.momentum > 0
    # Fused SGD wants a momentum of each parameter or of none; after a head trained alone only the head has one.
    fused = recipe.head_epochs == 0
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def lr_factor(recipe: Recipe, progress: float) -> float:
    """The learning rate as a share of its peak, after the share ``progress`` (0 to 1) of the budget.

    Linear from 0 to 1 over the warm-up, then the recipe's schedule over the rest: cosine after Loshchilov and Hutter
    2017 (SGDR, without restarts); one-cycle after Smith 2018 (from 1/25, and down to 1/250,000, both linearly); steps
    as He et al. 2015 train on CIFAR-10.
    """
    first, last = (ONE_CYCLE_FIRST, ONE_CYCLE_LAST) if recipe.schedule == "one_cycle" else (0.0, 0.0)
    if progress < recipe.warmup:
        return first + (1 - first) * progress / recipe.warmup
    done = min((progress - recipe.warmup) / (1 - recipe.warmup), 1.0)
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule in ("linear", "one_cycle"):
        return 1 - (1 - last) * done
    if recipe.schedule == "step":
        return recipe.step_factor ** sum(progress >= step for step in recipe.steps)
    return 1.0
