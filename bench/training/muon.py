"""Muon: SGD whose updates of filters are orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

torch's own ``torch.optim.Muon`` takes matrices only. Here a filter bank ``out×in×k×k`` is one of ``out`` rows, and what
is no filter bank is stepped as SGD does, in the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: the steepest at zero that keeps singular values near 1, not at it."""
ITERATIONS = 5


def orthogonalize(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """About the nearest matrix with orthonormal rows or columns: UVᵀ of the singular value decomposition.

    Singular values of a well-conditioned matrix end up between 0.6 and 1.3. Each iteration is a polynomial in XXᵀ times
    X; these polynomials are multiplied first, since XXᵀ is the smaller matrix.
    """
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrix.float() / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    gram, product = x @ x.T, None
    for _ in range(iterations):
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        product = step if product is None else step @ product
        gram = step @ gram @ step
    x = x if product is None else product @ x
    x = x.T if tall else x
    return x.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the groups with ``orthogonal``, Nesterov or plain momentum SGD for the others.

    Orthogonal updates are scaled by the root of rows over columns where there are more rows, so that a rate suits
    filters of any shape; their weight decay is decoupled, that of the others is SGD's. ``normalized`` filters end each
    step with the root of their number as their norm (Jordan 2024, github.com/KellerJordan/cifar10-airbench): a rate is
    then the share of the weights that a step replaces.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, nesterov: bool = True) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0}
        defaults |= {"orthogonal": False, "normalized": False}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["orthogonal"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.mul_(group["momentum"]).add_(gradient)
        update = gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        if group["orthogonal"]:
            flat = update.reshape(len(update), -1)
            scale = max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5
            update = (orthogonalize(flat) * scale).view(update.shape)
        parameter.add_(update, alpha=-group["lr"])
        if group["normalized"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
