"""Optimizers and learning rates as a recipe names them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bench.config import Recipe
from bench.errors import ConfigError
from bench.training.muon import Muon

REFERENCE_BATCH_SIZE = 128
DEFAULT_LR = 0.1
DEFAULT_WEIGHT_DECAY = 5e-4
ONE_CYCLE_FIRST, ONE_CYCLE_LAST = 1 / 25, 1 / 250_000
"""Where the one-cycle schedule begins and ends, relative to its peak; torch's defaults."""


def peak_lr(recipe: Recipe, architecture_lr: float | None, batch_size: int) -> float:
    """The recipe's peak learning rate, or the architecture's scaled linearly from batch 128 (Goyal et al. 2017).

    Raises `ConfigError` where the recipe leaves it open under another optimizer than SGD, for which architectures
    state theirs: a hundred times what Adam takes.
    """
    if recipe.lr is not None:
        return recipe.lr
    if recipe.optimizer not in ("sgd", "muon"):
        raise ConfigError(
            f"the recipe {recipe.name!r} leaves lr open under {recipe.optimizer!r}, and the learning rates of the "
            "architectures are given for SGD. State one, for example --set recipe.lr=1e-3, or set recipe.optimizer to "
            "'sgd'."
        )
    return (architecture_lr or DEFAULT_LR) * batch_size / REFERENCE_BATCH_SIZE


def weight_decay(recipe: Recipe, architecture_decay: float | None) -> float:
    """The recipe's weight decay, or the architecture's, whatever the optimizer."""
    if recipe.weight_decay is not None:
        return recipe.weight_decay
    return DEFAULT_WEIGHT_DECAY if architecture_decay is None else architecture_decay


def create_optimizer(
    model: nn.Module, recipe: Recipe, lr: float, decay: float, head: Collection[str] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimizer over two groups: decayed weights, and norms and biases, by default without decay.

    There are more groups where the recipe has rates of their own for some layers; the first is at ``lr``. A higher rate
    for biases of batch norms raises their rate and not their decay (Jordan 2024). ``head`` names the modules of the
    head.
    """
    factors = rate_factors(model, recipe, head)
    raised = _norm_biases(model) if recipe.norm_bias_lr_factor != 1 else set()
    sorted_out: dict[tuple[bool, bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_filter = recipe.optimizer == "muon" and parameter.ndim == 4 and not is_part_of(name, head)
            spared = parameter.ndim <= 1 and not recipe.decay_norm_and_bias
            sorted_out.setdefault((is_filter, spared, factors[name], name in raised), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": sorted_out[is_filter, spared, factor, is_raised],
            "lr": (recipe.muon_lr if is_filter else lr) * factor,
            "weight_decay": 0.0 if spared else decay / (recipe.norm_bias_lr_factor if is_raised else 1.0),
        }
        | ({"orthogonal": True, "normalized": recipe.normalize_filters} if is_filter else {})
        for is_filter, spared, factor, is_raised in sorted(sorted_out, key=lambda key: (*key[:2], key[2] != 1.0))
    ]
    if recipe.optimizer == "muon":
        return Muon(groups, lr, recipe.momentum, recipe.nesterov)
    if recipe.optimizer != "sgd":
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=lr, fused=True)
    nesterov = recipe.nesterov and recipe.momentum > 0
    # Fused SGD wants a momentum of each parameter or of none; after a head trained alone only the head has one.
    fused = recipe.head_epochs == 0
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def rate_factors(model: nn.Module, recipe: Recipe, head: Collection[str] = ()) -> dict[str, float]:
    """The learning rate of each parameter, by name, relative to that of the backbone's last layer.

    Layers count in the order in which the model registers them; a norm or bias goes with the weights before it.
    """
    depths: dict[str, int] = {}
    depth = -1
    for name, parameter in model.named_parameters():
        if not is_part_of(name, head):
            depth += parameter.ndim > 1
            depths[name] = max(depth, 0)
    norm_biases = _norm_biases(model)
    return {
        name: (recipe.stem_lr_factor ** (1 - depths[name] / max(depth, 1)) if name in depths else recipe.head_lr_factor)
        * (recipe.norm_bias_lr_factor if name in norm_biases else 1.0)
        for name, _ in model.named_parameters()
    }


def _norm_biases(model: nn.Module) -> set[str]:
    return {f"{name}.bias" for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def is_part_of(name: str, modules: Collection[str]) -> bool:
    """Whether a parameter or module of that name lies in one of the modules, or is one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def lr_factor(recipe: Recipe, progress: float) -> float:
    """The learning rate as a share of its peak, after the share ``progress`` (0 to 1) of the budget.

    Linear from 0 to 1 over the warm-up, then the recipe's schedule over the rest: cosine after Loshchilov and Hutter
    2017 (SGDR, without restarts); one-cycle after Smith 2018 (from 1/25, and down to 1/250,000, both linearly); steps
    as He et al. 2015 train on CIFAR-10. ``progress`` is that before the step, so that the first step of a linear
    warm-up has rate 0 and moves nothing but statistics and momentum; published results depend on it.
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
