"""How the layers of a network follow one another, found by one forward pass without arithmetic.

State dicts list layers in the order of their definition. Where that order has to stand for the names (`zoo.matching`),
two questions decide whether it can: in which order the forward pass reaches the layers, and which of them lie on
parallel branches, whose order is any author's choice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Structure:
    """Names of the layers with parameters or buffers, ``called`` in the order of the forward pass.

    ``upstream[name]`` are the layers whose output reaches that of ``name``.
    """

    called: tuple[str, ...]
    upstream: Mapping[str, frozenset[str]]

    def in_sequence(self, one: str, other: str) -> bool:
        """Whether one of the two layers feeds the other; False also where the forward pass did not call them."""
        return one in self.upstream.get(other, ()) or other in self.upstream.get(one, ())


def trace_structure(model: nn.Module, image_shape: tuple[int, int, int]) -> Structure:
    """Follow one image ``C×H×W`` through the network, in evaluation mode; the network is left as it was.

    On the meta device, or with its own tensors where it reads values on the way.
    """
    names = {module: name for name, module in model.named_modules() if _owns_tensors(module)}
    called: dict[str, Any] = {}

    def note(module: nn.Module, _: Any, output: Any, name: str) -> None:
        tensor = next(_tensors(output), None)
        if tensor is not None and name not in called:
            called[name] = tensor.grad_fn

    handles = [module.register_forward_hook(functools.partial(note, name=name)) for module, name in names.items()]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        try:
            _run(model, image_shape, torch.device("meta"))
        except (RuntimeError, NotImplementedError):
            called.clear()
            _run(model, image_shape, torch.device("cpu"))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return Structure(tuple(called), _upstream(called))


def _run(model: nn.Module, image_shape: tuple[int, int, int], device: torch.device) -> None:
    """A forward pass with stand-ins for the parameters, so that each output knows what it was computed from."""
    tensors = {name: buffer.detach().clone().to(device) for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach().to(device).requires_grad_(parameter.is_floating_point())
    image = torch.zeros(1, *image_shape, device=device, requires_grad=True)
    with torch.enable_grad():
        torch.func.functional_call(model, tensors, (image.clone(),))


def _upstream(called: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """For each layer, those of the others that are reached on the way back from its output to the image."""
    bits: dict[Any, int] = {}
    names = list(called)
    own: dict[Any, int] = {}
    for index, name in enumerate(names):
        if called[name] is not None:
            own[called[name]] = own.get(called[name], 0) | 1 << index
    for root in own:
        stack = [root]
        while stack:  # depth first; a node is done when all before it are
            node = stack[-1]
            before = [each for each, _ in node.next_functions if each is not None]
            waiting = [each for each in before if each not in bits]
            if waiting and node not in bits:
                stack.extend(waiting)
                continue
            stack.pop()
            reached = own.get(node, 0)
            for each in before:
                reached |= bits[each]
            bits[node] = reached
    return {
        name: frozenset(other for index, other in enumerate(names) if bits[called[name]] >> index & 1)
        for name in names
        if called[name] is not None
    }


def _owns_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
