"""The hash of a model's weights, and the names of its head."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def _head_of(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that produce the logits, also inside `ImageLogits`."""
    from bench.training.dense import ImageLogits
    from zoo.pretrained import head_names

    if isinstance(model, ImageLogits):
        return tuple(f"network.{name}" for name in head_names(model.network))
    return head_names(model)


def renew_head(model: nn.Module, *, always: bool) -> None:
    """Give the head of a model with pretrained weights a layer's own initialisation, as ``nn.Linear(…)`` would have.

    Unless ``always``, only where the weights had no head that fits. What a library's builder draws may suit training
    from scratch alone: EfficientNet's head begins with a loss of 4.4 for ten classes. A head that is fixed by design
    stays as it is.
    """
    from torch import nn

    from bench.training.dense import ImageLogits
    from zoo.pretrained import head_names, loaded_weights

    network = model.network if isinstance(model, ImageLogits) else model
    report = loaded_weights(network)
    for name in head_names(network):
        fresh = report is not None and any(tensor.startswith(f"{name}.") for tensor in report.fresh)
        layer = network.get_submodule(name)
        if (always or fresh) and isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a model's parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
