"""Optimizers and learning rates as a recipe names them."""

from __future__ import annotations

import math

import torch
from torch import nn

from bench.config import Recipe

REFERENCE_BATCH_SIZE = 128
DEFAULT_LR = 0.1
DEFAULT_WEIGHT_DECAY = 5e-4


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
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(
        groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0, fused=True
    )


def lr_factor(recipe: Recipe, progress: float) -> float:
    """The learning rate as a share of its peak, after the share ``progress`` (0 to 1) of the budget.

    Linear from 0 to 1 over the warm-up, then the recipe's schedule over the rest; cosine after Loshchilov and Hutter
    2017 (SGDR), without restarts.
    """
    if progress < recipe.warmup:
        return progress / recipe.warmup
    if recipe.schedule == "constant":
        return 1.0
    done = min((progress - recipe.warmup) / (1 - recipe.warmup), 1.0)
    return (1 + math.cos(math.pi * done)) / 2
